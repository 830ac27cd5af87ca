"""How fast a run can be at best: its arithmetic at the device's peak, or its bytes at the memory's bandwidth.

A bound that no measurement beats has to be low everywhere: convolutions count with as few products as minimal filtering needs
(Winograd), causal attention with half of its scores, memory with the weights and the cache alone, for activations may stay in
caches.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from edgegen.graphs.nodes import Constant, Node
from edgegen.planner import held
from edgegen.planner.graphs import PREFILL, Ask, PlannedBundle, PlannedGraph, folded
from edgegen.planner.shapes import Form, input_forms

Bound = Literal["arithmetic", "bandwidth"]

_MINIMAL_3X3 = 36 / 144  # F(4x4, 3x3): products for 16 outputs, of 16 * 9
_MINIMAL_4X4 = 16 / 36  # F(3x3, 2x2) in each of the four phases of a doubling: for 9 outputs, of 9 * 4
_TABLES = {  # inputs of which a node reads some rows
    b"Gather": (0,),
    b"GatherND": (0,),
    b"GatherBlockQuantized": (0, 2),
    b"GroupQueryAttention": (7, 8),
    b"RotaryEmbedding": (1, 2),
}
_SCALES = 2  # of MatMulNBits


class Peaks(NamedTuple):
    """What a device does in a second: bytes, floating-point operations, operations on int8; and what its caches hold."""

    bandwidth_bytes_s: float
    flops: float
    int8_ops: float
    cache_bytes: int = 0


class Work(NamedTuple):
    """What one run needs: operations (a multiply-add is two), the fewest of them, and bytes that come from memory.

    `least_ops` are those in float, `least_int8_ops` those that run in integers where the device has them.
    """

    ops: float
    least_ops: float
    least_int8_ops: float
    weights_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class Roof:
    """The bound of one kind of run.

    Attributes:
        name: of what it bounds: "prefill", "decode", a graph.
        unit: what `per_s` counts: "token", "step", "image", "run".
        count: how many of them a run makes.
        work: of a run.
        arithmetic_s: the least time that its operations take.
        bandwidth_s: the least time that its bytes take.
    """

    name: str
    unit: str
    count: int
    work: Work
    arithmetic_s: float
    bandwidth_s: float

    @property
    def seconds(self) -> float:
        """The least time of a run."""
        return max(self.arithmetic_s, self.bandwidth_s)

    @property
    def per_s(self) -> float:
        """The most units in a second."""
        return self.count / self.seconds if self.seconds else math.inf

    @property
    def bound(self) -> Bound:
        """Which limit binds."""
        return "arithmetic" if self.arithmetic_s >= self.bandwidth_s else "bandwidth"


def roofs(bundle: PlannedBundle, ask: Ask, peaks: Peaks) -> list[Roof]:
    """The bounds of everything that a bundle does: prefill and decode of a language model, one run of each other graph."""
    asked = bundle.settled(ask)
    found = []
    for graph in bundle.graphs:
        if graph.variant.state:
            tokens = min(PREFILL, asked.context or PREFILL)
            first = replace(asked, prompt=tokens, context=tokens)  # into an empty cache: later pieces read more
            found.append(_roof("prefill", "token", tokens, graph, first, bundle, peaks))
            found.append(_roof("decode", "token", 1, graph, replace(asked, prompt=1), bundle, peaks))
        else:
            batch = graph.sizes(asked, bundle.usual).get("batch", 1)  # of one run: more images take several
            unit = "step" if graph.name == "denoiser" else "image" if _makes_images(graph) else "run"
            found.append(_roof(graph.name, unit, 1 if unit == "run" else batch, graph, asked, bundle, peaks))
    return found


def _makes_images(graph: PlannedGraph) -> bool:
    return any(len(spec.axes) == 4 and spec.name.startswith("image") for spec in graph.variant.outputs)


def _roof(name: str, unit: str, count: int, graph: PlannedGraph, ask: Ask, bundle: PlannedBundle, peaks: Peaks) -> Roof:
    work = work_of(graph, graph.sizes(ask, bundle.usual))
    arithmetic_s = work.least_ops / peaks.flops + work.least_int8_ops / peaks.int8_ops
    from_memory = max(work.weights_bytes + work.state_bytes - peaks.cache_bytes, 0)
    return Roof(name, unit, count, work, arithmetic_s, from_memory / peaks.bandwidth_bytes_s)


def work_of(graph: PlannedGraph, sizes: Mapping[str, int]) -> Work:
    """Count what one run of a graph needs."""
    forms = graph.shapes(sizes).forms
    nodes, made = folded(graph.file.nodes, forms, graph.file.constants)
    constants = graph.file.constants | {name: Constant(form.dtype, form.shape) for name, form in made.items()}
    integer = {name for node in graph.file.nodes if node.operator == b"DequantizeLinear" for name in node.outputs}
    integer |= {
        name
        for node in graph.file.nodes
        if node.operator == b"Transpose" and node.inputs[0] in integer
        for name in node.outputs
    }
    ops = least = least_int8 = 0.0
    for node in nodes:
        whole, few = ops_of(node, forms)
        ops += whole
        if node.operator == b"MatMulNBits" or integer & {*node.inputs[:2]}:
            least_int8 += few
        else:
            least += few
    state = {pair.input.encode() for pair in graph.variant.state}
    inputs = input_forms(graph.variant, sizes)
    read_bytes = sum(form.size_bytes for name, form in inputs.items() if name in state)
    return Work(ops, least, least_int8, _weights_bytes(nodes, constants), read_bytes)


def _weights_bytes(nodes: Sequence[Node], constants: Mapping[bytes, Constant]) -> int:
    """The weights that a run reads: whole, but for tables, of which it reads a row for each token."""
    sizes: dict[bytes, int] = {}
    for node in nodes:
        for place, name in enumerate(node.inputs):
            if name not in constants or place in _TABLES.get(node.operator, ()):
                continue
            size = held.file_bytes(constants[name])
            if node.operator == b"MatMulNBits" and place == _SCALES:
                size //= 2  # edgegen's kernels keep them in 16 bits
            sizes[name] = max(size, sizes.get(name, 0))
    return sum(sizes.values())


def ops_of(node: Node, forms: Mapping[bytes, Form]) -> tuple[float, float]:
    """The operations of a node, and the fewest that anybody needs for the same; (0, 0) where they are few beside products'.

    A node whose shapes are not known counts nothing: the bound stays one.
    """
    count = _OPS.get(node.operator)
    try:
        return count(node, forms) if count is not None else (0.0, 0.0)
    except (KeyError, IndexError):
        return 0.0, 0.0


def _product(node: Node, forms: Mapping[bytes, Form]) -> tuple[float, float]:
    one, result = forms[node.inputs[0]].shape, forms[node.outputs[0]].shape
    inner = one[-2] if node.attributes.get(b"transA") else one[-1]
    ops = 2.0 * math.prod(result) * inner
    return ops, ops


def _convolution(node: Node, forms: Mapping[bytes, Form]) -> tuple[float, float]:
    weights, result = forms[node.inputs[1]].shape, forms[node.outputs[0]].shape
    ops = 2.0 * math.prod(result) * math.prod(weights[1:])
    strides, dilations = (node.attributes.get(name, (1, 1)) for name in (b"strides", b"dilations"))
    is_minimal = weights[2:] == (3, 3) and (strides, dilations) == ((1, 1), (1, 1)) and node.attributes.get(b"group", 1) == 1
    return ops, ops * _MINIMAL_3X3 if is_minimal else ops


def _transposed(node: Node, forms: Mapping[bytes, Form]) -> tuple[float, float]:
    image, weights, result = (forms[name].shape for name in (*node.inputs[:2], node.outputs[0]))
    ops = 2.0 * math.prod(image) * math.prod(weights[1:])
    is_minimal = weights[2:] == (4, 4) and node.attributes.get(b"strides") == (2, 2)
    kept = min(math.prod(result[2:]) / max(math.prod(image[2:]) * 4, 1), 1.0)  # what padding cuts off need not be computed
    return ops, ops * (_MINIMAL_4X4 if is_minimal else 1.0) * kept if weights[2:] != (1, 1) else ops


def _attention(node: Node, forms: Mapping[bytes, Form]) -> tuple[float, float]:
    query, key, value = (forms[name].shape for name in node.inputs[:3])
    heads = node.attributes.get(b"q_num_heads")
    count, size = (heads, query[-1] // heads) if isinstance(heads, int) and len(query) == 3 else (query[1], query[-1])
    scores = float(query[0] * count * query[-2] * key[-2])
    ops = 2.0 * scores * (size + (value[-1] if len(value) == 4 else size))
    is_masked = (len(node.inputs) > 3 and bool(node.inputs[3])) or bool(node.attributes.get(b"is_causal"))
    return ops, ops * _seen(query[-2], key[-2]) if is_masked else ops


def _grouped(node: Node, forms: Mapping[bytes, Form]) -> tuple[float, float]:
    query, key, heads = forms[node.outputs[0]].shape, forms[node.inputs[3]].shape, node.attributes[b"num_heads"]
    if not isinstance(heads, int):
        return 0.0, 0.0
    ops = 4.0 * query[0] * query[1] * key[-2] * query[-1]
    return ops, ops * _seen(query[1], key[-2])


def _seen(queries: int, keys: int) -> float:
    """The share of the scores that a causal mask leaves, for the last of the keys; at least a half."""
    return max(1 - (queries - 1) / (2 * keys), 0.5) if keys else 0.0


_OPS: Mapping[bytes, Callable[[Node, Mapping[bytes, Form]], tuple[float, float]]] = {
    **dict.fromkeys((b"MatMul", b"FusedMatMul", b"Gemm", b"MatMulNBits"), _product),
    **dict.fromkeys((b"Conv", b"FusedConv"), _convolution),
    b"ConvTranspose": _transposed,
    b"Attention": _attention,
    b"GroupQueryAttention": _grouped,
}
