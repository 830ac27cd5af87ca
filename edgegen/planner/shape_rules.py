"""What shapes operators give: standard ONNX, com.microsoft's and our own kernels', as far as exports have them.

A rule returns the shapes of a node's outputs in order, or raises an ordinary exception (LookupError, ValueError, ...) where it
lacks something. Sources: https://onnx.ai/onnx/operators and onnxruntime's docs/ContribOperators.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.graphs.nodes import Node

Shape = tuple[int, ...]
Rule = Callable[["Call"], Sequence[Sequence[int]]]

_FLOAT32, _INT64, _BOOL = 1, 7, 9  # TensorProto.DataType
_LAST = 1 << 62  # a slice's end beyond every axis


class Call:
    """One node with what is known of its inputs: shapes, and values where they are followed. What is missing raises."""

    def __init__(self, node: Node, shapes: Sequence[Shape | None], values: Sequence[NDArray[Any] | None]) -> None:
        self.node, self.shapes = node, shapes
        self._values = values

    def has(self, place: int) -> bool:
        """Whether the node has that input."""
        return place < len(self.node.inputs) and bool(self.node.inputs[place])

    def shape(self, place: int) -> Shape:
        """Of an input."""
        found = self.shapes[place]
        if found is None:
            raise LookupError(f"the shape of input {place} is not known")
        return found

    def value(self, place: int) -> NDArray[Any]:
        """Of an input."""
        found = self._values[place]
        if found is None:
            raise LookupError(f"the value of input {place} is not known")
        return found

    def whole(self, place: int) -> Shape:
        """An input's value as whole numbers."""
        return tuple(int(number) for number in self.value(place).reshape(-1))

    def integer(self, name: str, default: int | None = None) -> int:
        """An attribute."""
        found = self.node.attributes.get(name.encode(), default)
        if not isinstance(found, int):
            raise LookupError(f"no whole number {name}")
        return found

    def integers(self, name: str, default: Shape | None = None) -> Shape:
        """An attribute."""
        found = self.node.attributes.get(name.encode(), default)
        if not isinstance(found, tuple):
            raise LookupError(f"no whole numbers {name}")
        return found

    def axes(self, place: int) -> Shape | None:
        """Axes as newer opsets have them, by an input, or as older, by an attribute; None where they are not given."""
        if self.has(place):
            return self.whole(place)
        return self.integers("axes") if b"axes" in self.node.attributes else None

    def cuts(self) -> Iterator[tuple[int, slice]]:
        """What a Slice does to each axis that it cuts."""
        starts, ends = self.whole(1), self.whole(2)
        axes = self.whole(3) if self.has(3) else tuple(range(len(starts)))
        steps = self.whole(4) if self.has(4) else (1,) * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            stop = None if step < 0 and end < -_LAST // 2 else end
            yield axis % len(self.shape(0)), slice(start, stop, step)


def _same(call: Call) -> list[Shape]:
    return [call.shape(0)]


def _broadcast(call: Call) -> list[Shape]:
    return [np.broadcast_shapes(*(call.shape(place) for place in range(len(call.shapes))))]


def _with_statistics(call: Call) -> list[Shape]:
    """A normalization: its result, then mean and deviation with one in place of every normalized axis, then the sum."""
    shape = call.shape(0)
    axis = call.integer("axis", -1) % max(len(shape), 1)
    small = (*shape[:axis], *(1,) * (len(shape) - axis))
    return [shape, small, small, shape]


def _matmul(call: Call) -> list[Shape]:
    one, other = call.shape(0), call.shape(1)
    for name, is_first in (("transA", True), ("transB", False)):
        if call.integer(name, 0):
            turned = one if is_first else other
            turned = (*turned[:-2], turned[-1], turned[-2])
            one, other = (turned, other) if is_first else (one, turned)
    rows = one[-2:-1] if len(one) > 1 else ()
    columns = other[-1:] if len(other) > 1 else ()
    return [(*np.broadcast_shapes(one[:-2], other[:-2]), *rows, *columns)]


def _matmul_nbits(call: Call) -> list[Shape]:
    return [(*call.shape(0)[:-1], call.integer("N"))]


def _windows(call: Call, kernel: Shape) -> list[int]:
    """The sides of what a convolution or a pool gives."""
    sides = call.shape(0)[2:]
    strides, dilations = call.integers("strides", (1,) * len(sides)), call.integers("dilations", (1,) * len(sides))
    reach = [(side - 1) * dilation + 1 for side, dilation in zip(kernel, dilations, strict=True)]
    auto = call.node.attributes.get(b"auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        return [-(-side // stride) for side, stride in zip(sides, strides, strict=True)]
    pads = call.integers("pads", (0,) * 2 * len(sides)) if auto == b"NOTSET" else (0,) * 2 * len(sides)
    total = [before + after for before, after in zip(pads[: len(sides)], pads[len(sides) :], strict=True)]
    up = call.integer("ceil_mode", 0)
    spans = [side + pad - far for side, pad, far in zip(sides, total, reach, strict=True)]
    return [(-(-span // stride) if up else span // stride) + 1 for span, stride in zip(spans, strides, strict=True)]


def _conv(call: Call) -> list[Shape]:
    weights = call.shape(1)
    return [(call.shape(0)[0], weights[0], *_windows(call, weights[2:]))]


def _pool(call: Call) -> list[Shape]:
    shape = (*call.shape(0)[:2], *_windows(call, call.integers("kernel_shape")))
    return [shape, shape]


def _conv_transpose(call: Call) -> list[Shape]:
    image, weights = call.shape(0), call.shape(1)
    rank = len(image) - 2
    channels = weights[1] * call.integer("group", 1)
    if b"output_shape" in call.node.attributes:
        return [(image[0], channels, *call.integers("output_shape"))]
    strides, more = call.integers("strides", (1,) * rank), call.integers("output_padding", (0,) * rank)
    dilations, pads = call.integers("dilations", (1,) * rank), call.integers("pads", (0,) * 2 * rank)
    if call.node.attributes.get(b"auto_pad", b"NOTSET") != b"NOTSET":
        return [(image[0], channels, *(side * stride for side, stride in zip(image[2:], strides, strict=True)))]
    sides = [
        stride * (side - 1) + extra + (kernel - 1) * dilation + 1 - pads[axis] - pads[axis + rank]
        for axis, (side, stride, extra, kernel, dilation) in enumerate(
            zip(image[2:], strides, more, weights[2:], dilations, strict=True)
        )
    ]
    return [(image[0], channels, *sides)]


def _attention(call: Call) -> list[Shape]:
    query, key, value = (call.shape(place) for place in range(3))
    past = [call.shape(place) if call.has(place) else None for place in (4, 5)]
    heads = call.integer("q_num_heads", 0)
    present = []
    for new, old in zip((key, value), past, strict=True):
        split = new
        if len(new) == 3:
            kv_heads = call.integer("kv_num_heads")
            split = (new[0], kv_heads, new[1], new[2] // kv_heads)
        present.append(split if old is None else (*old[:2], old[2] + split[2], old[3]))
    scores = (query[0], heads or query[1], query[-2], present[0][2])
    result = (*query[:-1], heads * present[1][3] if len(query) == 3 else present[1][3])
    return [result, *present, scores]


def _grouped_attention(call: Call) -> list[Shape]:
    query, heads, kv_heads = call.shape(0), call.integer("num_heads"), call.integer("kv_num_heads")
    parts = heads if call.has(1) else heads + 2 * kv_heads  # else query, key and value come in one piece
    return [(*query[:-1], query[-1] // parts * heads), call.shape(3), call.shape(4)]


def _reshape(call: Call) -> list[Shape]:
    shape, wanted = call.shape(0), list(call.whole(1))
    if not call.integer("allowzero", 0):
        wanted = [shape[place] if side == 0 else side for place, side in enumerate(wanted)]
    if -1 in wanted:
        wanted[wanted.index(-1)] = math.prod(shape) // max(-math.prod(wanted), 1)
    if math.prod(wanted) != math.prod(shape):
        raise ValueError(f"{shape} does not become {wanted}")
    return [tuple(wanted)]


def _squeeze(call: Call) -> list[Shape]:
    shape, axes = call.shape(0), call.axes(1)
    dropped = {axis % len(shape) for axis in axes} if axes is not None else {i for i, side in enumerate(shape) if side == 1}
    return [tuple(side for place, side in enumerate(shape) if place not in dropped)]


def _unsqueeze(call: Call) -> list[Shape]:
    shape, axes = list(call.shape(0)), call.axes(1)
    if axes is None:
        raise LookupError("no axes")
    rank = len(shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return [tuple(shape)]


def _flatten(call: Call) -> list[Shape]:
    shape, axis = call.shape(0), call.integer("axis", 1)
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _transpose(call: Call) -> list[Shape]:
    shape = call.shape(0)
    return [tuple(shape[axis] for axis in call.integers("perm", tuple(reversed(range(len(shape))))))]


def _concat(call: Call) -> list[Shape]:
    shapes = [call.shape(place) for place in range(len(call.shapes))]
    axis = call.integer("axis") % len(shapes[0])
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def _split(call: Call) -> list[Shape]:
    shape = call.shape(0)
    axis = call.integer("axis", 0) % len(shape)
    count = call.integer("num_outputs", len(call.node.outputs))
    most = -(-shape[axis] // count)
    even = [min(most, shape[axis] - most * place) for place in range(count)]
    sizes = call.whole(1) if call.has(1) else call.integers("split", tuple(even))
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _slice(call: Call) -> list[Shape]:
    shape = list(call.shape(0))
    for axis, cut in call.cuts():
        shape[axis] = len(range(*cut.indices(shape[axis])))
    return [tuple(shape)]


def _gather(call: Call) -> list[Shape]:
    shape, axis = call.shape(0), call.integer("axis", 0)
    axis %= len(shape)
    return [(*shape[:axis], *call.shape(1), *shape[axis + 1 :])]


def _gather_nd(call: Call) -> list[Shape]:
    shape, index, batch = call.shape(0), call.shape(1), call.integer("batch_dims", 0)
    return [(*index[:-1], *shape[batch + index[-1] :])]


def _gather_quantized(call: Call) -> list[Shape]:
    """Rows of a packed table: bytes hold 8 / bits elements."""
    rows = call.shape(0)
    return [(*call.shape(1), *rows[1:-1], rows[-1] * 8 // call.integer("bits", 4))]


def _expand(call: Call) -> list[Shape]:
    return [np.broadcast_shapes(call.shape(0), call.whole(1))]


def _tile(call: Call) -> list[Shape]:
    return [tuple(side * times for side, times in zip(call.shape(0), call.whole(1), strict=True))]


def _pad(call: Call) -> list[Shape]:
    shape = list(call.shape(0))
    pads = call.whole(1) if call.has(1) else call.integers("pads")
    axes = call.whole(3) if call.has(3) else tuple(range(len(shape)))
    for place, axis in enumerate(axes):
        shape[axis] += pads[place] + pads[place + len(axes)]
    return [tuple(shape)]


def _range(call: Call) -> list[Shape]:
    start, stop, step = (call.value(place).item() for place in range(3))
    return [(max(math.ceil((stop - start) / step), 0),)]


def _reduce(call: Call) -> list[Shape]:
    shape, axes = call.shape(0), call.axes(1)
    if not axes:
        axes = () if call.integer("noop_with_empty_axes", 0) else tuple(range(len(shape)))
    return [_without(shape, axes, bool(call.integer("keepdims", 1)))]


def _arg(call: Call) -> list[Shape]:
    return [_without(call.shape(0), (call.integer("axis", 0),), bool(call.integer("keepdims", 1)))]


def _without(shape: Shape, axes: Shape, keep: bool) -> Shape:
    gone = {axis % max(len(shape), 1) for axis in axes}
    return tuple(1 if place in gone else side for place, side in enumerate(shape) if keep or place not in gone)


def _top_k(call: Call) -> list[Shape]:
    shape, axis = list(call.shape(0)), call.integer("axis", -1)
    shape[axis] = call.whole(1)[0]
    return [tuple(shape), tuple(shape)]


def _resize(call: Call) -> list[Shape]:
    shape = list(call.shape(0))
    axes = call.integers("axes", tuple(range(len(shape))))
    sizes = call.whole(3) if call.has(3) else None
    scales = call.value(2).reshape(-1) if sizes is None else ()
    for place, axis in enumerate(axes):
        shape[axis] = sizes[place] if sizes is not None else math.floor(shape[axis] * float(scales[place]))
    return [tuple(shape)]


def _depth_to_space(call: Call) -> list[Shape]:
    batch, channels, height, width = call.shape(0)
    block = call.integer("blocksize")
    if call.node.operator == b"SpaceToDepth":
        return [(batch, channels * block * block, height // block, width // block)]
    return [(batch, channels // (block * block), height * block, width * block)]


def _einsum(call: Call) -> list[Shape]:
    equation = call.node.attributes[b"equation"]
    if not isinstance(equation, bytes):
        raise TypeError("no equation")
    given, arrow, wanted = equation.decode().replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for place, letters in enumerate(given.split(",")):
        sizes |= dict(zip(letters, call.shape(place), strict=True))
    if not arrow:
        wanted = "".join(sorted(letter for letter in sizes if given.count(letter) == 1))
    return [tuple(sizes[letter] for letter in wanted)]


_LIKE_THE_FIRST = b"""
Abs Acos Asin Atan BatchNormalization BiasGelu Cast CastLike Ceil Celu Clip Cos CumSum DequantizeLinear Dropout Elu Erf Exp
FastGelu Floor Gelu GroupNorm GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsNaN LeakyRelu Log
LogSoftmax LpNormalization Mish Neg Not QuantizeLinear QuickGelu Reciprocal Relu RotaryEmbedding Round ScatterElements ScatterND
Selu Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Swish Tan Tanh TensorScatter ThresholdedRelu Trilu""".split()
_OF_SEVERAL = b"""
Add And BitwiseAnd Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where
Xor""".split()
_NORMALIZED = b"""
LayerNormalization RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization
SkipSimplifiedLayerNormalization""".split()
_REDUCED = b"""
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare""".split()
_COMPARED = b"And Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Not Or Xor".split()

RULES: dict[bytes, Rule] = {
    **dict.fromkeys(_LIKE_THE_FIRST, _same),
    **dict.fromkeys(_OF_SEVERAL, _broadcast),
    **dict.fromkeys(_NORMALIZED, _with_statistics),
    **dict.fromkeys(_REDUCED, _reduce),
    b"ArgMax": _arg,
    b"ArgMin": _arg,
    b"Attention": _attention,
    b"AveragePool": _pool,
    b"Concat": _concat,
    b"ConstantOfShape": lambda call: [call.whole(0)],
    b"Conv": _conv,
    b"ConvTranspose": _conv_transpose,
    b"DepthToSpace": _depth_to_space,
    b"Einsum": _einsum,
    b"Expand": _expand,
    b"Flatten": _flatten,
    b"FusedConv": _conv,
    b"FusedMatMul": _matmul,
    b"Gather": _gather,
    b"GatherBlockQuantized": _gather_quantized,
    b"GatherElements": lambda call: [call.shape(1)],
    b"GatherND": _gather_nd,
    b"Gemm": _matmul,
    b"GlobalAveragePool": lambda call: [(*call.shape(0)[:2], *(1,) * (len(call.shape(0)) - 2))],
    b"GroupQueryAttention": _grouped_attention,
    b"MatMul": _matmul,
    b"MatMulNBits": _matmul_nbits,
    b"MaxPool": _pool,
    b"Pad": _pad,
    b"Range": _range,
    b"Reshape": _reshape,
    b"Resize": _resize,
    b"Shape": lambda call: [(len(call.shape(0)[call.integer("start", 0) : call.integer("end", len(call.shape(0)))]),)],
    b"Size": lambda call: [()],  # noqa: ARG005
    b"Slice": _slice,
    b"SpaceToDepth": _depth_to_space,
    b"Split": _split,
    b"Squeeze": _squeeze,
    b"Tile": _tile,
    b"TopK": _top_k,
    b"Transpose": _transpose,
    b"Unsqueeze": _unsqueeze,
}
FIXED_DTYPES = {
    **dict.fromkeys(_COMPARED, _BOOL),
    **dict.fromkeys((b"ArgMax", b"ArgMin", b"Shape", b"Size"), _INT64),
    b"ConstantOfShape": _FLOAT32,  # where no value of another kind is given
}
SECOND_DTYPES = {b"Dropout": _BOOL, b"MaxPool": _INT64, b"TopK": _INT64}
