"""From the captured graph to what is shipped: the canonical graph, and the variant for onnxruntime.

`canonical` expands the placeholders of linear layers to standard operators; `onnxruntime` expands them to that library's
quantized kernels and replaces scatter + attention by `GroupQueryAttention`, which reads only the part of the cache that is filled.
Both take their weights from one table, and both are counted against it afterwards.
"""

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.export import passes
from edgegen.export.capture import OPSET
from edgegen.export.passes import initializer, insert_before, parameter_name, remove_dead, replace
from edgegen.export.patches import LINEAR
from edgegen.export.quantize.weight_only import Quantized
from edgegen.export.weights import WeightTable

_MS = "com.microsoft"
_LINEAR_OP = LINEAR.split("::")[1]


def to_canonical(model: ir.Model, table: WeightTable) -> None:
    """Expand the captured graph in place to standard operators; below fp32 its activations become float16."""
    lower_weights(model.graph, table, canonical_linear, canonical_gather)
    if table.precision != "fp32":
        passes.to_half(model.graph)
    _finish(model, table, {"": OPSET})


def to_onnxruntime(model: ir.Model, table: WeightTable, windows: Sequence[int | None]) -> None:
    """Rewrite the captured graph in place for onnxruntime's fused kernels; activations stay float32, which a CPU computes fastest."""
    fuse_for_ort(model.graph, windows)
    merge_projections(model.graph)
    lower_weights(model.graph, table, ort_linear, ort_gather)
    _finish(model, table, {"": OPSET, _MS: 1})


def _finish(model: ir.Model, table: WeightTable, opsets: dict[str, int]) -> None:
    passes.name_axes(model.graph)
    passes.strip_metadata(model)
    model.opset_imports.clear()
    model.opset_imports.update(opsets)
    if (found := count_quantized(model.graph)) != table.quantized:
        missing = sorted(table.quantized - found)
        raise ExportError(
            f"{len(found)} matrices are quantized in the graph, {len(table.quantized)} were to be; missing: {missing[:3]}"
        )


def lower_weights(
    graph: ir.Graph, table: WeightTable, linear: Callable[..., ir.Value], gather: Callable[..., ir.Value]
) -> None:
    """Expand every linear placeholder and every gather from a matrix of the table; check that none was missed."""
    used: set[str] = set()
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == _LINEAR_OP and node.domain == "edgegen" else None
        expand = linear
        if node.op_type == "Gather" and node.inputs[0] is not None and table.names(parameter_name(node.inputs[0])):
            weight, expand = node.inputs[0], gather
        if weight is None:
            continue
        parts = table.names(parameter_name(weight))
        if not parts:
            raise ExportError(f"the graph reads {weight.name!r}, which the model does not name as a matrix")
        used.update(parts)
        replace(node.outputs[0], expand(graph, node, "|".join(parts), joined([table.matrices[part] for part in parts])))
        graph.remove(node, safe=True)
    missed = table.matrices.keys() - used
    if missed:
        raise ExportError(f"{len(missed)} of {len(table.matrices)} matrices did not reach the graph: {sorted(missed)[:3]}")
    remove_dead(graph)


def joined(parts: Sequence[np.ndarray | Quantized]) -> np.ndarray | Quantized:  # type: ignore[type-arg]
    """Matrices that read the same input, one above the other."""
    if len(parts) == 1:
        return parts[0]
    blocks = [part for part in parts if isinstance(part, Quantized)]
    if not blocks:
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
    codes, scales = np.concatenate([part.codes for part in blocks]), np.concatenate([part.scales for part in blocks])
    return Quantized(codes, scales, blocks[0].bits, blocks[0].block_size)


def count_quantized(graph: ir.Graph) -> set[str]:
    """The names of the matrices that a finished graph reads in quantized form."""
    readers = {"DequantizeLinear": 0, "MatMulNBits": 1, "GatherBlockQuantized": 0}
    values = (node.inputs[readers[node.op_type]] for node in graph if node.op_type in readers)
    names = {(value.name or "").split("::")[0] for value in values if value is not None}
    return {name for merged in names for name in merged.split("|")}


# ------------------------------------------------------------------------------------------------ canonical


def canonical_linear(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:  # type: ignore[type-arg]
    """X [.., in] . W [out, in] -> MatMul(x, Transpose(W)) + bias."""
    transposed = insert_before(node, "Transpose", [_canonical_matrix(graph, node, name, matrix)], {"perm": [1, 0]})
    product = insert_before(node, "MatMul", [node.inputs[0], transposed.outputs[0]]).outputs[0]
    product.type = ir.TensorType(ir.DataType.FLOAT)
    return _with_bias(node, product)


def _with_bias(node: ir.Node, product: ir.Value) -> ir.Value:
    if len(node.inputs) < 3:
        return product
    total = insert_before(node, "Add", [product, node.inputs[2]]).outputs[0]
    total.type = ir.TensorType(ir.DataType.FLOAT)
    return total


def canonical_gather(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:  # type: ignore[type-arg]
    """Rows of W [vocab, hidden]."""
    rows = insert_before(node, "Gather", [_canonical_matrix(graph, node, name, matrix), node.inputs[1]], {"axis": 0}).outputs[0]
    rows.type = ir.TensorType(ir.DataType.FLOAT)
    return rows


def _canonical_matrix(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:  # type: ignore[type-arg]
    if not isinstance(matrix, Quantized):
        value = initializer(graph, f"{name}::dense", matrix.astype(np.float32, copy=False))
        value.type = ir.TensorType(ir.DataType.FLOAT)
        return value
    codes = matrix.codes if matrix.bits == 8 else matrix.codes.astype(ml_dtypes.int4)
    inputs = [
        initializer(graph, f"{name}::codes", codes),
        initializer(graph, f"{name}::scales", matrix.scales.astype(np.float32)),
    ]
    whole = insert_before(node, "DequantizeLinear", inputs, {"axis": 1, "block_size": matrix.block_size}).outputs[0]
    whole.type = ir.TensorType(ir.DataType.FLOAT)
    return whole


# ------------------------------------------------------------------------------------------------ onnxruntime


def ort_linear(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:  # type: ignore[type-arg]
    """MatMulNBits for a quantized matrix; FusedMatMul, which needs no transposed copy, for a dense one."""
    if isinstance(matrix, Quantized):
        return matmul_nbits(graph, node, name, matrix)
    attributes = {"transA": 0, "transB": 1, "alpha": 1.0}
    product = insert_before(
        node, "FusedMatMul", [node.inputs[0], _ort_dense(graph, node, name, matrix)], attributes, domain=_MS
    )
    return _with_bias(node, product.outputs[0])


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


def ort_gather(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:  # type: ignore[type-arg]
    """Rows of a table; a quantized one shares its bytes with the output head where the two are tied."""
    if not isinstance(matrix, Quantized):
        return insert_before(node, "Gather", [_ort_dense(graph, node, name, matrix), node.inputs[1]], {"axis": 0}).outputs[0]
    codes = _packed(matrix)
    table = initializer(graph, f"{name}::rows", codes.reshape(codes.shape[0], -1))
    scales = initializer(graph, f"{name}::row_scales", matrix.scales.astype(np.float32))
    attributes: dict[str, object] = {"bits": matrix.bits, "block_size": matrix.block_size, "gather_axis": 0, "quantize_axis": 1}
    return insert_before(node, "GatherBlockQuantized", [table, node.inputs[1], scales], attributes, domain=_MS).outputs[0]


def _ort_dense(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray) -> ir.Value:  # type: ignore[type-arg]
    value = initializer(graph, f"{name}::dense", matrix)
    if matrix.dtype == np.float16:  # kept as float16 on disk; the CPU computes in float32, the cast is folded at load
        return insert_before(node, "Cast", [value], {"to": ir.DataType.FLOAT}).outputs[0]
    return value


def _ort_codes(graph: ir.Graph, name: str, matrix: Quantized) -> ir.Value:
    return initializer(graph, f"{name}::codes", _packed(matrix))


def _ort_scales(graph: ir.Graph, name: str, matrix: Quantized) -> ir.Value:
    return initializer(graph, f"{name}::scales", matrix.scales.astype(np.float32))


def _packed(matrix: Quantized) -> np.ndarray:  # type: ignore[type-arg]
    """uint8 [out, blocks, block_size * bits / 8]; the first code of a pair is in the low half of its byte."""
    rows, columns = matrix.codes.shape
    middle = 1 << (matrix.bits - 1)
    codes = np.pad(matrix.codes, ((0, 0), (0, -columns % matrix.block_size)))
    unsigned = (codes.astype(np.int16) + middle).astype(np.uint8)
    if matrix.bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
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


def merge_projections(graph: ir.Graph) -> int:
    """Query, key and value projections that read the same input become one matrix product with a packed result."""
    count = 0
    for node in [n for n in graph if n.op_type == "GroupQueryAttention"]:
        linears = [value.producer() if value is not None else None for value in node.inputs[:3]]
        if not all(linear is not None and linear.op_type == _LINEAR_OP and len(linear.inputs) == 2 for linear in linears):
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
        packed = insert_before(first, _LINEAR_OP, [first.inputs[0], weight], {"transposed": 0}, domain="edgegen")
        node.replace_input_with(0, packed.outputs[0])
        node.replace_input_with(1, None)
        node.replace_input_with(2, None)
        count += 1
    remove_dead(graph)
    return count


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
    """Positions are total - sequence .. total - 1: no input is needed. Models whose rotary is all in attention never ask."""
    remove_dead(graph)
    positions = next(v for v in graph.inputs if v.name == "position_ids")
    graph.inputs.remove(positions)
    if not positions.uses():
        return
    first = graph[0]
    inputs = {v.name: v for v in graph.inputs}
    ends = [
        insert_before(
            first, "Squeeze", [insert_before(first, "Shape", [inputs[n]], {"start": 1, "end": 2}).outputs[0]]
        ).outputs[0]
        for n in ("attention_mask", "input_ids")
    ]
    start = insert_before(first, "Sub", ends).outputs[0]
    one = initializer(graph, "const.scalar_one", np.array(1, dtype=np.int64))
    span = insert_before(first, "Range", [start, ends[0], one]).outputs[0]
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
