"""Which nodes of an image model's graph edgegen's own CPU kernels take: normalization in groups, convolutions, attention.

What follows such a node and costs a kernel nothing (an activation, a sum with another image) becomes part of it.
"""

import math
from collections import Counter
from collections.abc import Iterator

from edgegen.graphs.nodes import Constant, Graph, Node, Value, encode

DOMAIN = b"ai.edgegen.v1"

_STANDARD = (b"", b"ai.onnx")
_FLOAT32 = 1  # TensorProto.DataType
_FOLDED = (b"Cast", b"Transpose", b"Mul", b"Div", b"Reshape")
_GROUP_NORM_SINCE = 21  # before, the scale was for groups
_SHAPES = {b"Conv": (3, 3, 1, 1, 0, 0), b"ConvTranspose": (4, 4, 2, 2, 0, 0)}  # of the weights, strides, output's padding
_ACTIVATIONS = {b"Relu": 1, b"LeakyRelu": 2, b"Tanh": 3}  # native/kernels.h
_POINTS_BYTES = {b"Conv": 36 * 4, b"ConvTranspose": 64 * 4}  # winograd_op.c, doubling_op.c: of two channels, one in, one out
_MOST_POINTS_BYTES = 64 << 20  # of a graph: four times what the weights take, which small convolutions on large images repay
_LEAST_PIXELS = {b"Conv": 144, b"ConvTranspose": 256}  # of the output; below, too few of the sixteen lanes have a tile
# So few pixels that the filters of one image cost more to read than they spare: they are used from so many tiles on alone, and
# take no more room than caches have.
_FEW_PIXELS, _FEW_TILES, _MOST_OF_FEW_BYTES = 576, 32, 10 << 20
_LEAST_CHANNELS = {b"Conv": 8, b"ConvTranspose": 16}

_DEFAULTS: dict[bytes, Value] = {
    b"pads": (0, 0, 0, 0),
    b"strides": (1, 1),
    b"dilations": (1, 1),
    b"output_padding": (0, 0),
    b"group": 1,
    b"auto_pad": b"NOTSET",
}
_FEW, _MOST_TAPS = 8, 64  # native/conv_transpose_op.c: channels that a lane is not one of; rows and columns of weights
_PADS = (b"pad_top", b"pad_left", b"pad_bottom", b"pad_right")
_STRIDES = (b"stride_h", b"stride_w", b"out_pad_h", b"out_pad_w")


class ImageNodes:
    """`changed`: the bytes of new nodes by the place of the old, empty where one has become part of another."""

    def __init__(self, graph: Graph) -> None:
        self.changed: dict[int, bytes] = {}
        self._graph, self._constants = graph, _constants(graph)
        self._opset = max((graph.opsets.get(domain, 0) for domain in _STANDARD), default=0)
        self._uses = Counter(name for node in graph.nodes for name in node.inputs)
        self._users: dict[bytes, list[int]] = {}
        for place, node in enumerate(graph.nodes):
            for name in {*node.inputs}:
                self._users.setdefault(name, []).append(place)
        self._has_inner_graphs = any(None in node.attributes.values() for node in graph.nodes)
        self._minimal = {*self._with_fewer_products()}
        takers = {
            b"GroupNormalization": self._group_norm, b"ConvTranspose": self._conv_transpose, b"Attention": self._attention
        }  # fmt: skip
        for place, node in enumerate(graph.nodes):
            if node.domain in _STANDARD and node.operator in takers:
                takers[node.operator](place, node)
        for place, node in enumerate(graph.nodes):
            if node.operator == b"Conv" and node.domain in _STANDARD and place in self._minimal:
                self._convolution(place, node)
            elif node.operator == b"Conv" and node.domain in _STANDARD:
                self._convolution_to_few(place, node)

    def _put(self, places: list[int], new: bytes) -> None:
        """Nodes become one, where the last of them was: all that it reads is there by then."""
        self.changed |= dict.fromkeys(places, b"")
        self.changed[max(places)] = new

    def _group_norm(self, place: int, node: Node) -> None:
        groups, epsilon = node.attributes.get(b"num_groups"), node.attributes.get(b"epsilon", 1e-5)
        if self._opset < _GROUP_NORM_SINCE or node.attributes.get(b"stash_type", 1) != 1 or not isinstance(epsilon, float):
            return
        if not isinstance(groups, int) or len(node.inputs) != 3 or not self._are_float32(*node.inputs[1:]):
            return
        after = self._silu(node.outputs[0])
        output = self._graph.nodes[after[-1]].outputs[0] if after else node.outputs[0]
        said: dict[bytes, int | float] = {b"num_groups": groups, b"epsilon": epsilon, b"silu": int(bool(after))}
        self._put([place, *after], encode(b"GroupNorm", DOMAIN, node.inputs, (output,), said))

    def _silu(self, name: bytes) -> list[int]:
        """The two nodes that multiply `name` by its sigmoid; none where that is not what happens to it."""
        places = self._users.get(name, [])
        if len(places) != 2 or not self._is_inner(name):
            return []
        gate, product = (self._graph.nodes[place] for place in places)
        if (gate.operator, product.operator) != (b"Sigmoid", b"Mul") or sorted(product.inputs) != sorted(
            [name, gate.outputs[0]]
        ):
            return []
        return places if self._only_user(gate.outputs[0]) == places[1] else []

    def _attention(self, place: int, node: Node) -> None:
        """That of every query to every key, by heads: no mask, no cache, nothing but the output asked for."""
        said, tensors = node.attributes, (*node.inputs, *node.outputs)
        plain = not said.get(b"is_causal") and not said.get(b"softcap") and b"q_num_heads" not in said
        is_float32 = all(self._graph.dtypes.get(name, _FLOAT32) == _FLOAT32 for name in tensors)
        if plain and is_float32 and (len(node.inputs), len(node.outputs)) == (3, 1) and b"" not in tensors:
            scale = said.get(b"scale")
            scaled: dict[bytes, int | float] = {b"scale": scale} if isinstance(scale, float) else {}
            self._put([place], encode(b"Attention", DOMAIN, node.inputs, node.outputs, scaled))

    def _conv_transpose(self, place: int, node: Node) -> None:
        said = _form(node)
        if said and len(node.inputs) <= 3 and self._are_float32(*node.inputs[1:]):
            places, output, activation = self._activation(place, node.outputs[0])
            operator = b"DoublingConvTranspose" if place in self._minimal else b"ConvTranspose"
            some = {b"direct_below": _FEW_TILES} if self._pixels(node, _FEW_PIXELS) < _FEW_PIXELS else {}
            self._put(places, encode(operator, DOMAIN, node.inputs, (output,), said | activation | some))

    def _with_fewer_products(self) -> Iterator[int]:
        """Places of convolutions that minimal filtering takes, from few channels to many until weights take too much room."""
        found = []
        for place, node in enumerate(self._graph.nodes):
            if node.operator in _POINTS_BYTES and node.domain in _STANDARD and self._is_minimal(node):
                pairs = math.prod(-(-channels // 8) * 8 for channels in self._constants[node.inputs[1]].shape[:2])
                size_bytes = pairs * _POINTS_BYTES[node.operator]
                has_many = node.operator == b"Conv" or self._pixels(node, _FEW_PIXELS) >= _FEW_PIXELS
                if has_many or size_bytes <= _MOST_OF_FEW_BYTES:
                    found.append((size_bytes, place))
        taken_bytes = 0
        for size_bytes, place in sorted(found):
            taken_bytes += size_bytes
            if taken_bytes <= _MOST_POINTS_BYTES:
                yield place

    def _is_minimal(self, node: Node) -> bool:
        """Whether a convolution is one of 3 x 3 by the pixel, or one of 4 x 4 that doubles; on images not known to be tiny."""
        said, kind = _form(node), node.operator
        if not said or len(node.inputs) not in (2, 3) or not self._are_float32(*node.inputs[1:]):
            return False
        weights = self._constants[node.inputs[1]].shape
        return (
            len(weights) == 4
            and (*weights[2:], *(said[name] for name in _STRIDES)) == _SHAPES[kind]
            and min(weights[:2]) >= _LEAST_CHANNELS[kind]
            and all(0 <= said[pad] < weights[2] for pad in _PADS)
            and self._pixels(node, _LEAST_PIXELS[kind]) >= _LEAST_PIXELS[kind]
        )

    def _pixels(self, node: Node, otherwise: int) -> int:
        """Of the image that a node gives; `otherwise` where its size is not known."""
        sides = [side for side in self._graph.shapes.get(node.outputs[0], ())[2:] if isinstance(side, int)]
        return math.prod(sides) if len(sides) == 2 else otherwise

    def _convolution(self, place: int, node: Node) -> None:
        places, output, added = [place], node.outputs[0], self._added(node.outputs[0])
        inputs = node.inputs
        if added:
            places, output = [place, added[0]], self._graph.nodes[added[0]].outputs[0]
            inputs = (*node.inputs, b"", added[1]) if len(node.inputs) == 2 else (*node.inputs, added[1])
        more, output, activation = self._activation(places[-1], output, without=b"Tanh")
        said = {name: value for name, value in _form(node).items() if name in _PADS}
        self._put([*places, *more], encode(b"Conv", DOMAIN, inputs, (output,), said | activation))

    def _convolution_to_few(self, place: int, node: Node) -> None:
        """One that ends in few channels, as images have: a transposed one with its weights turned round, in steps of one."""
        said = _form(node)
        if not said or len(node.inputs) not in (2, 3) or not self._are_float32(*node.inputs[1:]):
            return
        weights = self._constants[node.inputs[1]].shape
        if len(weights) != 4 or not 1 <= weights[0] <= _FEW or weights[1] < 2 * _FEW or max(weights[2:]) > _MOST_TAPS:
            return
        pads = {pad: side - 1 - int(said[pad]) for pad, side in zip(_PADS, 2 * weights[2:], strict=True)}
        if (said[b"stride_h"], said[b"stride_w"]) == (1, 1) and all(0 <= pad < max(weights[2:]) for pad in pads.values()):
            places, output, activation = self._activation(place, node.outputs[0])
            new = encode(b"ConvTranspose", DOMAIN, node.inputs, (output,), said | pads | {b"convolution": 1} | activation)
            self._put(places, new)

    def _added(self, name: bytes) -> tuple[int, bytes] | None:
        """The place of the node that adds an image of the same shape to `name`, and that image."""
        place = self._only_user(name)
        node = self._graph.nodes[place]
        if place < 0 or place in self.changed or node.operator != b"Add" or node.domain not in _STANDARD:
            return None
        other = next((value for value in node.inputs if value != name), b"")
        shapes = [self._graph.shapes.get(value, ()) for value in (name, other)]
        is_image = len(shapes[0]) == 4 and shapes[0] == shapes[1] and b"" not in shapes[0]
        return (place, other) if is_image and self._uses[name] == 1 else None

    def _activation(self, place: int, name: bytes, without: bytes = b"") -> tuple[list[int], bytes, dict[bytes, int | float]]:
        """`place` and that of an activation after it, the name of what comes out, the new node's attributes."""
        after = self._only_user(name)
        node = self._graph.nodes[after]
        if after < 0 or node.operator not in _ACTIVATIONS or node.operator == without or node.domain not in _STANDARD:
            return [place], name, {}
        alpha = node.attributes.get(b"alpha", 0.01)
        said: dict[bytes, int | float] = {b"alpha": alpha if isinstance(alpha, float) else 0.01}
        return [place, after], node.outputs[0], {b"activation": _ACTIVATIONS[node.operator]} | said

    def _only_user(self, name: bytes) -> int:
        """The place of the only node that reads a value; -1 where others do, or the graph gives it."""
        places = self._users.get(name, [])
        return places[0] if len(places) == 1 and self._is_inner(name) else -1

    def _is_inner(self, name: bytes) -> bool:
        """Whether only nodes of this graph see a value, so that it need not exist."""
        return name not in self._graph.outputs and not self._has_inner_graphs

    def _are_float32(self, *names: bytes) -> bool:
        return all(name in self._constants and self._constants[name].dtype == _FLOAT32 for name in names)


def _constants(graph: Graph) -> dict[bytes, Constant]:
    """The initializers, and what ONNX Runtime makes of them before it asks for a kernel."""
    found = dict(graph.constants)
    for node in graph.nodes:
        if node.operator in _FOLDED and node.domain in _STANDARD and all(name in found for name in node.inputs):
            shape = [side for side in graph.shapes.get(node.outputs[0], ()) if isinstance(side, int)]
            dtype = node.attributes.get(b"to", found[node.inputs[0]].dtype)
            if isinstance(dtype, int) and len(shape) == len(graph.shapes.get(node.outputs[0], ())):
                found[node.outputs[0]] = Constant(dtype, tuple(shape))
    return found


def _form(node: Node) -> dict[bytes, int | float]:
    """A convolution's numbers as the kernels want them; empty for one that is not two-dimensional, dilated or grouped."""
    said = {name: node.attributes.get(name, default) for name, default in _DEFAULTS.items()}
    if (said[b"dilations"], said[b"group"], said[b"auto_pad"]) != ((1, 1), 1, b"NOTSET") or b"output_shape" in node.attributes:
        return {}
    pads, strides, more = said[b"pads"], said[b"strides"], said[b"output_padding"]
    if not (isinstance(pads, tuple) and isinstance(strides, tuple) and isinstance(more, tuple)):
        return {}
    numbers = (*pads, *strides, *more)
    return dict(zip((*_PADS, *_STRIDES), numbers, strict=True)) if (len(pads), len(strides), len(more)) == (4, 2, 2) else {}
