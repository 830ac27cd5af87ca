"""From the captured graph to what is shipped: what every lowering does with weights, and the canonical graph.

The placeholders of linear layers are expanded to standard operators here, to a library's own in `lower_<library>.py`. All take
their weights from one table, and all are counted against it afterwards.
"""

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.export import passes
from edgegen.export.capture import OPSET
from edgegen.export.halves import compute_in_half
from edgegen.export.passes import initializer, insert_before, parameter_name, remove_dead, replace
from edgegen.export.patches import LINEAR
from edgegen.export.quantize.weight_only import Quantized
from edgegen.export.weights import WeightTable

LINEAR_OP = LINEAR.split("::")[1]


def to_canonical(model: ir.Model, table: WeightTable) -> None:
    """Expand the captured graph in place to standard operators; below fp32 its activations become float16."""
    lower_weights(model.graph, table, canonical_linear, canonical_gather)
    if table.precision != "fp32":
        compute_in_half(model.graph, wide=("logits",))
    finish(model, table, {"": OPSET})


def finish(model: ir.Model, table: WeightTable, opsets: dict[str, int]) -> None:
    """Name the axes, drop the exporter's notes, declare the operator sets, and count what is quantized."""
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
        weight = node.inputs[1] if node.op_type == LINEAR_OP and node.domain == "edgegen" else None
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


def joined(parts: Sequence[np.ndarray | Quantized]) -> np.ndarray | Quantized:
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


def canonical_linear(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:
    """X [.., in] . W [out, in] -> MatMul(x, Transpose(W)) + bias."""
    transposed = insert_before(node, "Transpose", [_canonical_matrix(graph, node, name, matrix)], {"perm": [1, 0]})
    product = insert_before(node, "MatMul", [node.inputs[0], transposed.outputs[0]]).outputs[0]
    product.type = ir.TensorType(ir.DataType.FLOAT)
    return with_bias(node, product)


def with_bias(node: ir.Node, product: ir.Value) -> ir.Value:
    """Add the bias of a linear placeholder, where it has one."""
    if len(node.inputs) < 3:
        return product
    total = insert_before(node, "Add", [product, node.inputs[2]]).outputs[0]
    total.type = ir.TensorType(ir.DataType.FLOAT)
    return total


def canonical_gather(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:
    """Rows of W [vocab, hidden]."""
    rows = insert_before(node, "Gather", [_canonical_matrix(graph, node, name, matrix), node.inputs[1]], {"axis": 0}).outputs[0]
    rows.type = ir.TensorType(ir.DataType.FLOAT)
    return rows


def _canonical_matrix(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray | Quantized) -> ir.Value:
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
