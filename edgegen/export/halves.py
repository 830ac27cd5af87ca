"""Weights as float16: computed with as they are, or widened when they are loaded."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgegen.export.passes import insert_before

_SMALL = 64  # elements: below, a cast costs more than it saves


def compute_in_half(graph: ir.Graph, wide: Collection[str]) -> None:
    """Every float32 tensor becomes float16, in place, except the inputs and outputs in `wide`, which are cast: for GPUs.

    Norms keep float32 inside (`stash_type` of RMSNormalization and LayerNormalization).
    """
    outside = [value for value in graph.inputs if value.name in wide and value.dtype == ir.DataType.FLOAT]
    _narrow_constants(graph)
    for node in graph:
        for value in node.outputs:
            _retype(value)
    for value in graph.inputs:
        if value in outside:
            _narrow_input(graph, value)
        else:
            _retype(value)
    for place, value in enumerate(graph.outputs):
        if value.name in wide and value.dtype == ir.DataType.FLOAT16:
            _widen_output(graph, place, value)


def _narrow_constants(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            tensor = ir.tensor(_halved(value.const_value.numpy()), name=value.name)
            value.const_value, value.type = tensor, ir.TensorType(ir.DataType.FLOAT16)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
        constant = node.attributes.get("value") if node.op_type == "Constant" else None
        if constant is not None and constant.as_tensor().dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_halved(constant.as_tensor().numpy())))


def store_in_half(graph: ir.Graph) -> None:
    """Weights are stored as float16 and cast to float32 where they are used, in place: folded once, at load, on a CPU."""
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if value.dtype != ir.DataType.FLOAT or tensor is None or tensor.size < _SMALL or not value.uses():
            continue
        half = ir.Value(name=f"{name}::half", type=ir.TensorType(ir.DataType.FLOAT16), shape=value.shape)
        half.const_value = ir.tensor(_halved(tensor.numpy()), name=half.name)
        graph.register_initializer(half)
        cast = insert_before(graph[0], "Cast", [half], {"to": ir.DataType.FLOAT}).outputs[0]
        cast.type, cast.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        ir.convenience.replace_all_uses_with(value, cast)
        del graph.initializers[name]


def _narrow_input(graph: ir.Graph, value: ir.Value) -> None:
    users = list(value.uses())
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16})
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT16), value.shape
    graph.insert_before(graph[0], cast)
    for use in users:
        use.node.replace_input_with(use.idx, cast.outputs[0])


def _widen_output(graph: ir.Graph, place: int, value: ir.Value) -> None:
    producer = value.producer()
    assert producer is not None
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    graph.insert_after(producer, cast)
    out, name = cast.outputs[0], value.name
    value.name = f"{name}_half"
    out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.outputs[place] = out


def _retype(value: ir.Value) -> None:
    if value.dtype == ir.DataType.FLOAT:
        value.type = ir.TensorType(ir.DataType.FLOAT16)


def _halved(array: np.ndarray) -> np.ndarray:
    limit = float(np.finfo(np.float16).max)  # a mask value of -3e38 must stay the smallest number, not become -inf
    halved: np.ndarray = np.clip(array, -limit, limit).astype(np.float16)
    return halved
