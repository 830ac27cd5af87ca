"""Weights as float16: computed with as they are, or widened when they are loaded.

What computes in float16 follows the rule of PyTorch's autocast: products of matrices do; sums, powers and angles stay
in float32 (a timestep of 999 in float16 is an angle rounded to half a radian), and so does what reads them, up to the next
product.
"""

from collections.abc import Collection, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.export.capture import OPSET
from edgegen.export.passes import insert_before, replace

_SMALL = 64  # elements: below, a cast costs more than it saves
_HALF, _WIDE = ir.DataType.FLOAT16, ir.DataType.FLOAT
_FLOATS = (_HALF, _WIDE)
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention", "LSTM", "GRU", "RNN"})
# Their results overflow (65,504 is the largest float16), underflow, or lose the angle.
_PRECISE = frozenset({
    "Pow", "Exp", "Log", "Sin", "Cos", "Tan", "Sqrt", "Reciprocal", "CumSum", "ReduceMean", "ReduceSum", "ReduceSumSquare",
    "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp",
})  # fmt: skip


def compute_in_half(graph: ir.Graph, wide: Collection[str]) -> None:
    """Matrix products and what follows them become float16, in place: for GPUs.

    Inputs and outputs in `wide` keep float32. Where an operator takes or gives float32 alone by ONNX's own schemas (`scales` of
    Resize, Range), its constants keep float32 and its other tensors are cast. Norms keep float32 inside (`stash_type`).

    Raises ExportError where the graph has subgraphs: what an If or a Loop computes with cannot be told from outside.
    """
    for value in graph.inputs:
        if value.dtype == _WIDE and value.name not in wide:
            value.type = ir.TensorType(_HALF)
    _inline_constants(graph)
    _transpose_after_products(graph)
    casts: dict[tuple[int, ir.DataType], ir.Value] = {}
    for node in list(graph):
        if any(isinstance(attribute.value, ir.Graph) for attribute in node.attributes.values()):
            raise ExportError(f"the graph has {node.op_type} {node.name}, whose subgraph stays float32; export it as fp32")
        chosen = _HALF if _computes_in_half(node) else _WIDE
        for index, read in enumerate(node.inputs):
            if read is not None and read.dtype in _FLOATS:
                needed = chosen if _allows(node, index, chosen) else _WIDE
                node.replace_input_with(index, _as(node, read, needed, casts))
        _type_outputs(node, chosen)
    for place, value in enumerate(graph.outputs):
        _type_output(graph, place, value, _WIDE if value.name in wide else _HALF)
    for name in [name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()]:
        del graph.initializers[name]


def store_in_half(graph: ir.Graph) -> None:
    """Weights that float16 holds exactly are stored so and cast to float32 where they are used: folded once, at load, on a CPU.

    Others (tables of frequencies, statistics) keep float32: `round_weights` has rounded what may be rounded.
    """
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if value.dtype != _WIDE or tensor is None or tensor.size < _SMALL or not value.uses() or not _is_exact(tensor):
            continue
        half = ir.Value(name=f"{name}::half", type=ir.TensorType(_HALF), shape=value.shape)
        half.const_value = ir.tensor(_halved(tensor.numpy()), name=half.name)
        graph.register_initializer(half)
        cast = insert_before(graph[0], "Cast", [half], {"to": _WIDE}).outputs[0]
        cast.type, cast.shape = ir.TensorType(_WIDE), value.shape
        ir.convenience.replace_all_uses_with(value, cast, replace_graph_outputs=True)
        del graph.initializers[name]


def _inline_constants(graph: ir.Graph) -> None:
    """Constants become initializers, so that there is one kind of them."""
    for node in list(graph):
        constant = node.attributes.get("value") if node.op_type == "Constant" else None
        if constant is None or node.outputs[0].is_graph_output():
            continue
        tensor = constant.as_tensor()
        value = ir.Value(name=node.outputs[0].name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
        value.const_value = tensor
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)


def _transpose_after_products(graph: ir.Graph) -> None:
    """Move a transposition that keeps the last axis behind the product with a matrix.

    Nothing changes but that onnxruntime 1.32 survives it: it fuses the two in float16 and crashes (perm 1, 0, 2).
    """
    for node in list(graph):
        flip = node.inputs[0].producer() if node.op_type == "MatMul" and node.inputs[0] is not None else None
        matrix = node.inputs[1] if flip is not None and flip.op_type == "Transpose" else None
        if flip is None or matrix is None or matrix.shape is None or len(matrix.shape) != 2:
            continue
        perm = flip.attributes["perm"].as_ints() if "perm" in flip.attributes else []
        if not perm or perm[-1] != len(perm) - 1:
            continue
        product = insert_before(node, "MatMul", [flip.inputs[0], matrix]).outputs[0]
        product.type = node.outputs[0].type
        moved = insert_before(node, "Transpose", [product], {"perm": list(perm)}).outputs[0]
        replace(node.outputs[0], moved)
        graph.remove(node, safe=True)
        if not flip.outputs[0].uses() and not flip.outputs[0].is_graph_output():
            graph.remove(flip, safe=True)


def _computes_in_half(node: ir.Node) -> bool:
    """Whether a node's numbers are float16: products of matrices are, others where what they read is."""
    if node.op_type in _PRECISE or node.op_type in {"Cast", "Constant", "ConstantOfShape"} or "dtype" in node.attributes:
        return False
    read = [value for value in node.inputs if value is not None and value.dtype in _FLOATS]
    if node.op_type in _PRODUCTS and not _is_outer_product(node):
        return True
    moving = [value for value in read if not value.is_initializer()]
    return all(value.dtype == _HALF for value in moving) and bool(read)


def _is_outer_product(node: ir.Node) -> bool:
    """Angles are often written as positions [.., 1] times frequencies [1, n]: no sum, and float32 is needed."""
    first = node.inputs[0]
    return node.op_type == "MatMul" and first is not None and first.shape is not None and first.shape[-1] == 1


def _types(node: ir.Node, *, outputs: bool) -> Sequence[Collection[str]]:
    """The types that ONNX allows at each input or output; the last one holds for all further ones. Empty: not ONNX's own."""
    if not onnx.defs.has(node.op_type, domain=node.domain):
        return ()
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    return [parameter.types for parameter in (schema.outputs if outputs else schema.inputs)]


def _allows(node: ir.Node, index: int, dtype: ir.DataType, *, outputs: bool = False) -> bool:
    types = _types(node, outputs=outputs)
    name = "tensor(float16)" if dtype == _HALF else "tensor(float)"
    return not types or name in types[min(index, len(types) - 1)]


def _as(node: ir.Node, value: ir.Value, dtype: ir.DataType, casts: dict[tuple[int, ir.DataType], ir.Value]) -> ir.Value:
    """`value` as `dtype` for `node`: another constant, or a cast, each made once."""
    if value.dtype == dtype:
        return value
    key = id(value), dtype
    if key not in casts:
        casts[key] = _constant_as(node, value, dtype) if value.is_initializer() else _cast(node, value, dtype)
    return casts[key]


def _constant_as(node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    assert value.const_value is not None
    assert node.graph is not None
    array = value.const_value.numpy()
    name = f"{value.name}::{'half' if dtype == _HALF else 'wide'}"
    tensor = ir.tensor(_halved(array) if dtype == _HALF else array.astype(np.float32), name=name)
    made = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)
    node.graph.register_initializer(made)
    return made


def _cast(node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    made = insert_before(node, "Cast", [value], {"to": dtype}).outputs[0]
    made.type, made.shape = ir.TensorType(dtype), value.shape
    return made


def _type_outputs(node: ir.Node, chosen: ir.DataType) -> None:
    for index, value in enumerate(node.outputs):
        first = next((read for read in node.inputs if read is not None), None)
        if value.dtype is None and first is not None and node.op_type in {"Neg", "Reshape", "Transpose"}:
            value.type = first.type  # nodes that were added after the capture
        if value.dtype in _FLOATS:
            value.type = ir.TensorType(chosen if _allows(node, index, chosen, outputs=True) else _WIDE)
    if node.op_type == "Cast" and node.outputs[0].dtype in _FLOATS:
        node.attributes["to"] = ir.AttrInt64("to", node.outputs[0].dtype)


def _type_output(graph: ir.Graph, place: int, value: ir.Value, dtype: ir.DataType) -> None:
    """Give the graph's output `value` the type `dtype`; its name stays."""
    producer = value.producer()
    if value.dtype == dtype or value.dtype not in _FLOATS or producer is None:
        return
    cast = ir.node("Cast", [value], {"to": dtype})
    graph.insert_after(producer, cast)
    out, name = cast.outputs[0], value.name
    value.name = f"{name}_inside"
    out.name, out.type, out.shape = name, ir.TensorType(dtype), value.shape
    graph.outputs[place] = out


def _is_exact(tensor: ir.TensorProtocol) -> bool:
    array = tensor.numpy()
    return bool(np.array_equal(_halved(array).astype(np.float32), array))


def _halved(array: np.ndarray) -> np.ndarray:
    limit = float(np.finfo(np.float16).max)  # a mask value of -3e38 must stay the smallest number, not become -inf
    halved: np.ndarray = np.clip(array, -limit, limit).astype(np.float16)
    return halved
