"""The variant for onnxruntime's CUDA provider: the fused kernels of `lower_ort`, in float16.

Two things make a decode step faster there than the canonical graph's: quantized weights are read as they are (the canonical
graph's are expanded to float16 when it is loaded), and attention reads the filled part of the cache alone. CUDA has
GroupQueryAttention in float16 only, so there is no such variant in float32. It shares its codes with the other variants.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.export.lower_ort import to_onnxruntime
from edgegen.export.passes import insert_before
from edgegen.export.request import CUDA
from edgegen.export.weights import WeightTable

_HALF, _WIDE = ir.DataType.FLOAT16, ir.DataType.FLOAT
_ANGLES = frozenset({"Cos", "Sin", "Pow", "Exp", "Log"})  # float16 loses them


def to_onnxruntime_cuda(model: ir.Model, table: WeightTable, windows: Sequence[int | None]) -> None:
    """Rewrite the captured graph in place; logits stay float32.

    Raises:
        ExportError: the weights are float32, or the graph computes what float16 loses.
    """
    if table.precision == "fp32":
        raise ExportError(f"there is no variant {CUDA} in fp32, for CUDA's attention kernel has float16 alone; take fp16")
    to_onnxruntime(model, table, windows)
    halve(model.graph)


def halve(graph: ir.Graph, wide: Sequence[str] = ("logits",)) -> None:
    """All that is float32 in a graph for onnxruntime becomes float16, but for the outputs in `wide`.

    Raises:
        ExportError: it computes angles or powers, or has a number that float16 cannot hold.
    """
    lost = sorted({node.op_type for node in graph if node.op_type in _ANGLES})
    if lost:
        raise ExportError(f"this model computes {', '.join(lost)} in its graph, which float16 loses; leave out {CUDA}")
    for value in graph.initializers.values():
        _halve_initializer(value)
    for value in graph.inputs:
        _halve_type(value)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _WIDE:
            node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)  # 4 rounds activations to 8 bits on a CPU
        for output in node.outputs:
            _halve_type(output)
    for place, value in enumerate(graph.outputs):
        if value.name in wide:
            _widen_output(graph, place, value)


def _halve_type(value: ir.Value) -> None:
    if value.dtype == _WIDE:
        value.type = ir.TensorType(_HALF)


def _halve_initializer(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None or tensor.dtype != _WIDE:
        return
    with np.errstate(over="ignore"):  # told below
        half = tensor.numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(f"{value.name} does not fit in float16; leave out {CUDA}")
    value.const_value = ir.tensor(half, name=value.name)
    value.type = ir.TensorType(_HALF)


def _widen_output(graph: ir.Graph, place: int, value: ir.Value) -> None:
    """The output keeps its name and is float32; what computes it is float16."""
    cast = insert_before(graph[len(graph) - 1], "Cast", [value], {"to": _WIDE})
    graph.remove(cast)
    graph.append(cast)  # behind what it reads
    wide = cast.outputs[0]
    wide.type, wide.shape = ir.TensorType(_WIDE), value.shape
    name, value.name = value.name, f"{value.name}::half"
    wide.name = name
    graph.outputs[place] = wide
