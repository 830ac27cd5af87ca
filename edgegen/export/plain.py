"""Operators of ONNX 20 to 24 spelled out in older ones, one function for each: what a parser that knows none of them reads.

Every function takes the node, puts what replaces it in front of it, and returns the value that replaces its first output. Sums,
exponentials and angles are computed in float32 whatever the tensors are, as the operators themselves do (`stash_type`). Masks
and indices that many layers share are made once, by `Shared`.
"""

from collections.abc import Callable, Hashable, Mapping

import numpy as np
import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.export.passes import initializer, insert_before

_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_FAR = -1e30  # added to a score: its share becomes 0, and no sum with a real score overflows to -infinity
_CUBE = 0.044715  # of the tanh form of GELU
_ALL = np.iinfo(np.int64).max


class Before:
    """Puts nodes in front of `node`."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        assert node.graph is not None
        self.graph: ir.Graph = node.graph

    def __call__(self, op: str, *inputs: ir.Value | None, dtype: ir.DataType | None = None, **attributes: object) -> ir.Value:
        """The output of a new node; its dtype is the first input's unless said otherwise."""
        made = insert_before(self.node, op, inputs, attributes).outputs[0]
        chosen = dtype or next((value.dtype for value in inputs if value is not None), None)
        made.type = None if chosen is None else ir.TensorType(chosen)
        return made

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`: itself where it is."""
        return value if value.dtype == dtype else self("Cast", value, dtype=dtype, to=dtype)

    def integers(self, *numbers: int) -> ir.Value:
        """A constant int64 vector."""
        name = "const.ints_" + "_".join(map(str, numbers))
        return initializer(self.graph, name, np.array(numbers, dtype=np.int64))

    def number(self, value: float, dtype: ir.DataType = _FLOAT) -> ir.Value:
        """A constant scalar."""
        return initializer(self.graph, f"const.{dtype.name.lower()}_{value!r}", np.array(value, dtype=dtype.numpy()))

    def slice(self, value: ir.Value, start: int, end: int, axis: int) -> ir.Value:
        """A part of `value` along one axis."""
        return self("Slice", value, self.integers(start), self.integers(end), self.integers(axis))

    def range(self, value: ir.Value, axis: int) -> ir.Value:
        """0, 1, .. for each place along an axis of `value`: int64 [places]."""
        shape = self("Shape", value, dtype=_INT64, start=axis, end=axis + 1)
        count = self("Squeeze", shape, self.integers(0))
        return self("Range", self.number(0, _INT64), count, self.number(1, _INT64))


class Shared:
    """What several layers read, made once: by the first of them, which comes before the others in the graph."""

    def __init__(self) -> None:
        self._made: dict[Hashable, ir.Value] = {}

    def get(self, key: Hashable, make: Callable[[], ir.Value]) -> ir.Value:
        """The value of that key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def known(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator must have, with its type."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.dtype is None:
        raise ExportError(f"{node.op_type} {node.name or ''} has no typed input {index}; this is a bug in edgegen")
    return value


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: float) -> float:
    """A number among the attributes."""
    found = node.attributes.get(name)
    return default if found is None else float(found.value)


def refuse(node: ir.Node, what: str) -> ExportError:
    """An error for a form of an operator that nothing in `plain` spells out."""
    return ExportError(
        f"{node.op_type} ({node.name or node.outputs[0].name}) {what}, which is not spelled out for an older TensorRT; "
        "export without the variant tensorrt-legacy, or write the module with other operators"
    )


def axis_size(value: ir.Value, axis: int) -> int | None:
    """The size of an axis, where it is a number that is known."""
    if value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


# ------------------------------------------------------------------------------------------------ norms and activations


def rms_normalization(node: ir.Node, _: Shared) -> ir.Value:
    """RMS norm: x / sqrt(mean(x^2) + epsilon) in float32, times the scale."""
    put, x, scale = Before(node), known(node, 0), known(node, 1)
    if int(attribute(node, "axis", -1)) != -1:
        raise refuse(node, f"normalizes over the axes from {int(attribute(node, 'axis', -1))}")
    wide = put.cast(x, _FLOAT)
    mean = put("ReduceMean", put("Mul", wide, wide), put.integers(-1), keepdims=1)
    root = put("Sqrt", put("Add", mean, put.number(attribute(node, "epsilon", 1e-5))))
    dtype = scale.dtype
    assert dtype is not None
    return put("Mul", put.cast(put("Div", wide, root), dtype), scale)


def group_normalization(node: ir.Node, _: Shared) -> ir.Value:
    """Groups of channels become the channels of an InstanceNormalization in float32; scale and bias are the channels' own."""
    put, x, scale, bias = Before(node), known(node, 0), known(node, 1), known(node, 2)
    groups = int(attribute(node, "num_groups", 1))
    if x.shape is None:
        raise refuse(node, "has an input of unknown rank")
    grouped = put("Reshape", put.cast(x, _FLOAT), put.integers(0, groups, -1))
    ones = initializer(put.graph, f"const.ones_{groups}", np.ones(groups, np.float32))
    zeros = initializer(put.graph, f"const.zeros_{groups}", np.zeros(groups, np.float32))
    normal = put("InstanceNormalization", grouped, ones, zeros, epsilon=attribute(node, "epsilon", 1e-5))
    whole = put("Reshape", normal, put("Shape", x, dtype=_INT64))
    column = put.integers(-1, *([1] * (len(x.shape) - 2)))
    scaled = put("Mul", whole, put.cast(put("Reshape", scale, column), _FLOAT))
    assert x.dtype is not None
    return put.cast(put("Add", scaled, put.cast(put("Reshape", bias, column), _FLOAT)), x.dtype)


def gelu(node: ir.Node, _: Shared) -> ir.Value:
    """0.5 x (1 + erf(x / sqrt 2)), or its tanh form; in float32, or the cube overflows float16 from 41 on."""
    put, x = Before(node), known(node, 0)
    wide = put.cast(x, _FLOAT)
    approximate = node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() == "tanh":
        cube = put("Mul", put("Mul", wide, wide), wide)
        inner = put("Add", wide, put("Mul", cube, put.number(_CUBE)))
        bent = put("Tanh", put("Mul", inner, put.number(float(np.sqrt(2 / np.pi)))))
    else:
        bent = put("Erf", put("Mul", wide, put.number(float(np.sqrt(0.5)))))
    half = put("Mul", wide, put.number(0.5))
    assert x.dtype is not None
    return put.cast(put("Mul", half, put("Add", bent, put.number(1.0))), x.dtype)


def swish(node: ir.Node, _: Shared) -> ir.Value:
    """SiLU: x sigmoid(alpha x)."""
    put, x = Before(node), known(node, 0)
    alpha = attribute(node, "alpha", 1.0)
    assert x.dtype is not None
    inner = x if alpha == 1.0 else put("Mul", x, put.number(alpha, x.dtype))
    return put("Mul", x, put("Sigmoid", inner))


def mish(node: ir.Node, _: Shared) -> ir.Value:
    """Mish: x tanh(softplus(x))."""
    put, x = Before(node), known(node, 0)
    return put("Mul", x, put("Tanh", put("Softplus", x)))


# ------------------------------------------------------------------------------------------------ attention and its cache


def rotary_embedding(node: ir.Node, shared: Shared) -> ir.Value:
    """Turns the halves of each head: (a, b) -> (a cos - b sin, b cos + a sin); x is [batch, heads, sequence, head_dim]."""
    put, x, cos, sin, positions = Before(node), known(node, 0), known(node, 1), known(node, 2), given(node, 3)
    if attribute(node, "interleaved", 0):
        raise refuse(node, "turns neighbours, not halves")
    half = axis_size(cos, -1)
    if half is None or positions is None:
        raise refuse(node, "has no positions, or a table of unknown width")
    dtype = x.dtype
    assert dtype is not None

    def rows(table: ir.Value) -> ir.Value:
        picked = put("Gather", table, positions, axis=0)  # [batch, sequence, half]
        return put.cast(put("Unsqueeze", picked, put.integers(1)), dtype)

    of_cos = shared.get((id(cos), id(positions), dtype), lambda: rows(cos))
    of_sin = shared.get((id(sin), id(positions), dtype), lambda: rows(sin))
    a, b = put.slice(x, 0, half, 3), put.slice(x, half, 2 * half, 3)
    first = put("Sub", put("Mul", a, of_cos), put("Mul", b, of_sin))
    second = put("Add", put("Mul", b, of_cos), put("Mul", a, of_sin))
    turned = int(attribute(node, "rotary_embedding_dim", 0))
    rest = [put.slice(x, turned, _ALL, 3)] if turned else []  # an empty rest is left out by `rotary_embedding_dim` 0
    return put("Concat", first, second, *rest, axis=3)


def tensor_scatter(node: ir.Node, shared: Shared) -> ir.Value:
    """New rows of a cache by ScatterElements; all caches of a shape share one tensor of indices."""
    put, past, update, start = Before(node), known(node, 0), known(node, 1), given(node, 2)
    mode = node.attributes.get("mode")
    if int(attribute(node, "axis", -2)) not in (2, -2) or (mode is not None and mode.as_string() != "linear"):
        raise refuse(node, "writes around the end, or along another axis than 2 of 4")

    def indices() -> ir.Value:
        rows = put("Reshape", put.range(update, 2), put.integers(1, 1, -1, 1))
        if start is not None:
            rows = put("Add", rows, put("Reshape", start, put.integers(-1, 1, 1, 1)))
        return put("Expand", rows, put("Shape", update, dtype=_INT64))

    # Every layer's update has the sequence's rows: heads and their width tell the shapes apart.
    key = "rows", id(start), axis_size(past, 1), axis_size(past, 3)
    return put("ScatterElements", past, shared.get(key, indices), update, axis=2)


def attention(node: ir.Node, shared: Shared, heads: int | None = None) -> ir.Value:
    """Softmax of the scores in float32, then the mean of the values. Keys and values are not repeated for grouped queries.

    The queries of one group lie one after the other in its rows ([batch, kv_heads, group * sequence, head_dim]), so that one
    product serves them all; the mask is repeated instead, once for all layers. `heads` where the graph does not know them.
    """
    put, q, k, v = Before(node), known(node, 0), known(node, 1), known(node, 2)
    _check_attention(node)
    queries = axis_size(q, 1) or heads
    groups, width = axis_size(k, 1), axis_size(q, 3) or axis_size(k, 3)
    if queries is None or groups is None or width is None:
        raise refuse(node, "has an unknown number of heads")
    times = queries // groups
    dtype = q.dtype
    assert dtype is not None
    scale = attribute(node, "scale", 0.0) or width**-0.5
    rows = put("Mul", q, put.number(scale, dtype))
    if times > 1:
        rows = put("Reshape", rows, put.integers(0, groups, -1, width))
    scores = put.cast(put("MatMul", rows, put("Transpose", k, perm=[0, 1, 3, 2])), _FLOAT)
    if softcap := attribute(node, "softcap", 0.0):
        scores = put("Mul", put("Tanh", put("Div", scores, put.number(softcap))), put.number(softcap))
    for bias in _biases(put, node, shared, times):
        scores = put("Add", scores, bias)
    mixed = put("MatMul", put.cast(put("Softmax", scores, axis=-1), dtype), v)
    return mixed if times == 1 else put("Reshape", mixed, put.integers(0, queries, -1, axis_size(v, 3) or width))


def _check_attention(node: ir.Node) -> None:
    if any(given(node, index) is not None for index in (4, 5, 6)) or any(value.uses() for value in node.outputs[1:]):
        raise refuse(node, "keeps a cache of its own")
    if int(attribute(node, "q_num_heads", 0)):
        raise refuse(node, "takes its heads in one axis")


def _biases(put: Before, node: ir.Node, shared: Shared, times: int) -> list[ir.Value]:
    """What is added to the scores: 0 where a key is seen and far below everything where not; float32, each made once."""
    q, k, mask = known(node, 0), known(node, 1), given(node, 3)
    found = []
    if mask is not None:
        if times > 1 and mask.shape is not None and len(mask.shape) > 2 and mask.shape[-3] != 1:
            raise refuse(node, "has a mask for each head, and fewer heads of keys than of queries")
        found.append(shared.get(("mask", id(mask), times), lambda: _repeated(put, _as_bias(put, mask), times)))
    if attribute(node, "is_causal", 0):

        def causal() -> ir.Value:
            own = put("Unsqueeze", put.range(q, 2), put.integers(1))
            seen = put("LessOrEqual", put("Unsqueeze", put.range(k, 2), put.integers(0)), own, dtype=ir.DataType.BOOL)
            return _repeated(put, put("Unsqueeze", _as_bias(put, seen), put.integers(0, 1)), times)

        found.append(causal())
    return found


def _as_bias(put: Before, mask: ir.Value) -> ir.Value:
    if mask.dtype == ir.DataType.BOOL:
        return put("Where", mask, put.number(0.0), put.number(_FAR), dtype=_FLOAT)
    return put.cast(mask, _FLOAT)


def _repeated(put: Before, bias: ir.Value, times: int) -> ir.Value:
    """[.., sequence, keys] for every query of a group: [.., times * sequence, keys]."""
    return bias if times == 1 else put("Concat", *[bias] * times, axis=-2)


Rule = Callable[[ir.Node, Shared], ir.Value]

PLAIN: Mapping[str, Rule] = {
    "Attention": attention,
    "GroupNormalization": group_normalization,
    "Gelu": gelu,
    "Mish": mish,
    "RMSNormalization": rms_normalization,
    "RotaryEmbedding": rotary_embedding,
    "Swish": swish,
    "TensorScatter": tensor_scatter,
}
