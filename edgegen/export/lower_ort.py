"""The variant for onnxruntime: its quantized kernels, and attention that reads only the filled part of the cache.

Activations stay float32: the CPU has no faster arithmetic, and onnxruntime would insert casts around every float16 operator.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.export.lower import LINEAR_OP, finish, lower_weights, with_bias
from edgegen.export.passes import initializer, insert_before, remove_dead, replace
from edgegen.export.quantize.weight_only import Quantized
from edgegen.export.weights import WeightTable

_MS = "com.microsoft"
_OPSET = 23  # all that is left of it: onnxruntime 1.23, the last one for Python 3.10, knows no 24


def to_onnxruntime(model: ir.Model, table: WeightTable, windows: Sequence[int | None]) -> None:
    """Rewrite the captured graph in place for onnxruntime's fused kernels; activations stay float32."""
    fuse_for_ort(model.graph, windows)
    merge_projections(model.graph)
    lower_weights(model.graph, table, ort_linear, ort_gather)
    finish(model, table, {"": _OPSET, _MS: 1})


def ort_linear(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:
    """MatMulNBits for a quantized matrix; FusedMatMul, which needs no transposed copy, for a dense one."""
    if isinstance(matrix, Quantized):
        return matmul_nbits(graph, node, name, matrix)
    attributes: dict[str, object] = {"transA": 0, "transB": 1, "alpha": 1.0}
    product = insert_before(
        node, "FusedMatMul", [node.inputs[0], _ort_dense(graph, node, name, matrix)], attributes, domain=_MS
    )
    return with_bias(node, product.outputs[0])


def matmul_nbits(graph: ir.Graph, node: ir.Node, name: str, matrix: Quantized) -> ir.Value:
    """Codes as unsigned with the middle as zero, two per byte for 4 bits: uint8 [out, blocks, bytes]; scales [out * blocks]."""
    rows, columns = matrix.codes.shape
    inputs = [node.inputs[0], _ort_codes(graph, name, matrix), _ort_scales(graph, name, matrix)]
    if len(node.inputs) > 2:
        inputs += [None, None, node.inputs[2]]
    attributes: dict[str, object] = {
        "K": columns, "N": rows, "bits": matrix.bits, "block_size": matrix.block_size, "accuracy_level": 4,
    }  # fmt: skip
    return insert_before(node, "MatMulNBits", inputs, attributes, domain=_MS).outputs[0]


def ort_gather(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:
    """Rows of a table; a quantized one shares its bytes with the output head where the two are tied."""
    if not isinstance(matrix, Quantized):
        return insert_before(node, "Gather", [_ort_dense(graph, node, name, matrix), node.inputs[1]], {"axis": 0}).outputs[0]
    codes = _packed(matrix)
    table = initializer(graph, f"{name}::rows", codes.reshape(codes.shape[0], -1))
    scales = initializer(graph, f"{name}::row_scales", matrix.scales.astype(np.float32))
    attributes: dict[str, object] = {"bits": matrix.bits, "block_size": matrix.block_size, "gather_axis": 0, "quantize_axis": 1}
    return insert_before(node, "GatherBlockQuantized", [table, node.inputs[1], scales], attributes, domain=_MS).outputs[0]


def _ort_dense(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray) -> ir.Value:
    value = initializer(graph, f"{name}::dense", matrix)
    if matrix.dtype == np.float16:  # kept as float16 on disk; the CPU computes in float32, the cast is folded at load
        return insert_before(node, "Cast", [value], {"to": ir.DataType.FLOAT}).outputs[0]
    return value


def _ort_codes(graph: ir.Graph, name: str, matrix: Quantized) -> ir.Value:
    return initializer(graph, f"{name}::codes", _packed(matrix))


def _ort_scales(graph: ir.Graph, name: str, matrix: Quantized) -> ir.Value:
    return initializer(graph, f"{name}::scales", matrix.scales.astype(np.float32))


def _packed(matrix: Quantized) -> np.ndarray:
    """uint8 [out, blocks, block_size * bits / 8]; the first code of a pair is in the low half of its byte."""
    rows, columns = matrix.codes.shape
    middle = 1 << (matrix.bits - 1)
    codes = np.pad(matrix.codes, ((0, 0), (0, -columns % matrix.block_size)))
    unsigned = (codes.astype(np.int16) + middle).astype(np.uint8)
    if matrix.bits == 4:
        unsigned = np.bitwise_or(unsigned[:, 0::2], unsigned[:, 1::2] << 4, dtype=np.uint8)
    return unsigned.reshape(rows, matrix.scales.shape[1], -1)


def fuse_for_ort(graph: ir.Graph, windows: Sequence[int | None]) -> None:
    """Rewrite the structure: attention over the filled part of a shared cache, and residual + norm in one kernel."""
    attentions = [node for node in graph if node.op_type == "Attention"]
    if len(attentions) != len(windows):
        raise ExportError(f"{len(attentions)} Attention nodes for {len(windows)} attention layers; this is a bug in edgegen")
    lengths = _lengths(graph)
    for node, window in zip(attentions, windows, strict=True):
        _group_query_attention(graph, node, window, lengths)
    _drop_input(graph, "write_indices")
    _derive_position_ids(graph)
    _skip_norms(graph)
    remove_dead(graph)


def _lengths(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """seqlens_k int32 [batch] (valid length - 1) and total_sequence_length int32 [], from attention_mask [batch, total]."""
    mask = ir.Value(name="attention_mask", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "total"]))
    graph.inputs.insert(1, mask)
    first = graph[0]
    one = initializer(graph, "const.one", np.array([1], dtype=np.int64))
    axis = initializer(graph, "const.axis1", np.array([1], dtype=np.int64))
    total = insert_before(first, "ReduceSum", [mask, axis], {"keepdims": 0}).outputs[0]
    valid = insert_before(first, "Sub", [total, one]).outputs[0]
    seqlens = insert_before(first, "Cast", [valid], {"to": ir.DataType.INT32}).outputs[0]
    shape = insert_before(first, "Shape", [mask], {"start": 1, "end": 2}).outputs[0]
    scalar = insert_before(first, "Squeeze", [shape]).outputs[0]
    length = insert_before(first, "Cast", [scalar], {"to": ir.DataType.INT32}).outputs[0]
    return seqlens, length


def _group_query_attention(graph: ir.Graph, node: ir.Node, window: int | None, lengths: tuple[ir.Value, ir.Value]) -> None:
    """Scatter(K), Scatter(V), Attention(Q, K, V, mask) -> GroupQueryAttention on the shared cache, rotary included."""
    q, present_k, present_v = node.inputs[0], node.inputs[1], node.inputs[2]
    assert q is not None
    assert present_k is not None
    assert present_v is not None
    scatter_k, scatter_v = _producer(present_k, "TensorScatter"), _producer(present_v, "TensorScatter")
    past_k, past_v, k, v = scatter_k.inputs[0], scatter_v.inputs[0], scatter_k.inputs[1], scatter_v.inputs[1]
    rotary = _shared_rotary(q, k)
    heads, kv_heads, dim = _heads(q, past_k)
    if rotary is not None:
        q, k = rotary[0].inputs[0], rotary[1].inputs[0]
    flat = [_flat(graph, node, value, n * dim) for value, n in ((q, heads), (k, kv_heads), (v, kv_heads))]
    tables = [rotary[0].inputs[1], rotary[0].inputs[2]] if rotary is not None else []
    attributes: dict[str, object] = {
        "num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": int(bool(tables)), "rotary_interleaved": 0,
    }  # fmt: skip
    if (scale := node.attributes.get("scale")) is not None:
        attributes["scale"] = scale.as_float()
    if (softcap := node.attributes.get("softcap")) is not None and softcap.as_float():
        attributes["softcap"] = softcap.as_float()
    if window is not None:
        attributes["local_window_size"] = window
    gqa = insert_before(
        node, "GroupQueryAttention", [*flat, past_k, past_v, *lengths, *tables], attributes, domain=_MS, outputs=3
    )
    for old, new in ((present_k, gqa.outputs[1]), (present_v, gqa.outputs[2])):
        replace(old, new)
    _replace_unflattened(graph, node, gqa.outputs[0], heads, dim)


def merge_projections(graph: ir.Graph) -> None:
    """Query, key and value projections that read the same input become one matrix product with a packed result."""
    for node in [n for n in graph if n.op_type == "GroupQueryAttention"]:
        linears = [value.producer() if value is not None else None for value in node.inputs[:3]]
        if not all(linear is not None and linear.op_type == LINEAR_OP and len(linear.inputs) == 2 for linear in linears):
            continue  # a norm or a bias in between
        first = linears[0]
        assert first is not None
        if any(linear.inputs[0] is not first.inputs[0] for linear in linears if linear is not None):
            continue
        names = [linear.inputs[1].name for linear in linears if linear is not None and linear.inputs[1] is not None]
        name = "|".join(str(n).removeprefix("model.") for n in names)
        weight = ir.Value(name=f"model.{name}", type=ir.TensorType(ir.DataType.FLOAT))
        # A stand-in without data: the table holds the data.
        weight.const_value = ir.tensor(np.zeros(0, dtype=np.float32), name=weight.name)
        graph.register_initializer(weight)
        packed = insert_before(first, LINEAR_OP, [first.inputs[0], weight], {"transposed": 0}, domain="edgegen")
        node.replace_input_with(0, packed.outputs[0])
        node.replace_input_with(1, None)
        node.replace_input_with(2, None)
    remove_dead(graph)


def _producer(value: ir.Value, op: str) -> ir.Node:
    node = value.producer()
    if node is None or node.op_type != op:
        raise ExportError(f"{value.name!r} should come from {op}, not from {node.op_type if node else 'an input'}")
    return node


def _shared_rotary(q: ir.Value, k: ir.Value | None) -> tuple[ir.Node, ir.Node] | None:
    """The two RotaryEmbedding nodes, where q and k are turned by the same full-width tables."""
    nodes = (q.producer(), k.producer() if k is not None else None)
    for node in nodes:
        if node is None or node.op_type != "RotaryEmbedding" or "rotary_embedding_dim" in node.attributes:
            return None
    first, second = nodes
    assert first is not None
    assert second is not None
    return (first, second) if list(first.inputs[1:]) == list(second.inputs[1:]) else None


def _heads(q: ir.Value, past: ir.Value | None) -> tuple[int, int, int]:
    assert q.shape is not None
    assert past is not None
    assert past.shape is not None
    return int(q.shape[1]), int(past.shape[1]), int(past.shape[3])  # type: ignore[arg-type]


def _flat(graph: ir.Graph, node: ir.Node, value: ir.Value | None, width: int) -> ir.Value:
    """[batch, heads, sequence, dim] -> [batch, sequence, heads * dim]; undoes the model's own reshape where it can."""
    assert value is not None
    transpose = value.producer()
    if (
        transpose is not None
        and transpose.op_type == "Transpose"
        and list(transpose.attributes["perm"].as_ints()) == [0, 2, 1, 3]
    ):
        inner = transpose.inputs[0]
    else:
        inner = insert_before(node, "Transpose", [value], {"perm": [0, 2, 1, 3]}).outputs[0]
    assert inner is not None
    reshape = inner.producer()
    if reshape is not None and reshape.op_type == "Reshape":
        source = reshape.inputs[0]
        if source is not None and source.shape is not None and len(source.shape) == 3 and source.shape[2] == width:
            return source
    shape = initializer(graph, f"const.flat{width}", np.array([1, -1, width], dtype=np.int64))
    return insert_before(node, "Reshape", [inner, shape], {"allowzero": 0}).outputs[0]


def _replace_unflattened(graph: ir.Graph, node: ir.Node, flat: ir.Value, heads: int, dim: int) -> None:
    """The reader is Transpose -> Reshape to [batch, sequence, heads * dim]; anything else gets the 4-D form back."""
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Transpose":
        inner = [use.node for use in users[0].outputs[0].uses()]
        if (
            len(inner) == 1
            and inner[0].op_type == "Reshape"
            and inner[0].outputs[0].shape is not None
            and len(inner[0].outputs[0].shape) == 3
        ):
            replace(inner[0].outputs[0], flat)
            return
    shape = initializer(graph, f"const.heads{heads}x{dim}", np.array([1, -1, heads, dim], dtype=np.int64))
    split = insert_before(node, "Reshape", [flat, shape]).outputs[0]
    replace(node.outputs[0], insert_before(node, "Transpose", [split], {"perm": [0, 2, 1, 3]}).outputs[0])


def _drop_input(graph: ir.Graph, name: str) -> None:
    remove_dead(graph)
    value = next(v for v in graph.inputs if v.name == name)
    if value.uses():
        raise ExportError(f"the onnxruntime variant still reads {name!r}; this is a bug in edgegen")
    graph.inputs.remove(value)


def _derive_position_ids(graph: ir.Graph) -> None:
    """Positions are valid - sequence .. valid - 1: no input is needed. Models whose rotary is all in attention never ask.

    `valid` counts the mask's ones: the mask may be as long as the cache, so that its shape does not change between steps.
    """
    remove_dead(graph)
    positions = next(v for v in graph.inputs if v.name == "position_ids")
    graph.inputs.remove(positions)
    if not positions.uses():
        return
    first = graph[0]
    inputs = {v.name: v for v in graph.inputs}
    valid = insert_before(first, "ReduceSum", [inputs["attention_mask"]], {"keepdims": 0}).outputs[0]
    shape = insert_before(first, "Shape", [inputs["input_ids"]], {"start": 1, "end": 2}).outputs[0]
    start = insert_before(first, "Sub", [valid, insert_before(first, "Squeeze", [shape]).outputs[0]]).outputs[0]
    one = initializer(graph, "const.scalar_one", np.array(1, dtype=np.int64))
    span = insert_before(first, "Range", [start, valid, one]).outputs[0]
    axis = initializer(graph, "const.axis0", np.array([0], dtype=np.int64))
    ids = insert_before(first, "Unsqueeze", [span, axis]).outputs[0]
    ids.type = ir.TensorType(ir.DataType.INT64)
    ir.convenience.replace_all_uses_with(positions, ids)


def _skip_norms(graph: ir.Graph) -> None:
    """Add(a, b) -> RMSNormalization(sum) becomes one kernel that gives both the norm and the sum."""
    for node in [n for n in graph if n.op_type == "RMSNormalization"]:
        total = node.inputs[0]
        add = total.producer() if total is not None else None
        if add is None or add.op_type != "Add" or total is None:
            continue
        if any(value is None or value.is_initializer() or value.const_value is not None for value in add.inputs):
            continue
        attributes: dict[str, object] = {"epsilon": node.attributes["epsilon"].as_float()}
        fused = insert_before(
            node, "SkipSimplifiedLayerNormalization", [*add.inputs, node.inputs[1]], attributes, domain=_MS, outputs=4
        )
        if any(_comes_before(graph, use.node, fused) for use in total.uses()):
            graph.remove(fused, safe=True)
            continue
        replace(node.outputs[0], fused.outputs[0])
        replace(total, fused.outputs[3])
        graph.remove(node, safe=True)


def _comes_before(graph: ir.Graph, node: ir.Node, other: ir.Node) -> bool:
    for candidate in graph:
        if candidate is other:
            return False
        if candidate is node:
            return True
    return False
