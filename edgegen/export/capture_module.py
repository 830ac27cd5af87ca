"""Any PyTorch module becomes one standard ONNX graph (opset 24) with named inputs, outputs and axes."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch

from edgegen.errors import CaptureError
from edgegen.export import passes
from edgegen.export.capture import OPSET
from edgegen.export.parts import Part, example
from edgegen.tensors import Axis, TensorSpec


def capture_part(name: str, part: Part, axes: Mapping[str, Axis]) -> ir.Model:
    """Capture `part` as the graph `name`; float32 inside and out.

    Raises:
        CaptureError: it cannot be captured; says which module and operator, and what to do.
    """
    used = {axis for spec in part.inputs for axis in spec.axes if isinstance(axis, str)}
    dims = {axis: torch.export.Dim(axis, min=axes[axis].min, max=axes[axis].max) for axis in used if _moves(axes[axis])}
    shapes = [{i: dims[axis] for i, axis in enumerate(spec.axes) if axis in dims} for spec in part.inputs]
    arguments = tuple(example(spec, axes, seed) for seed, spec in enumerate(part.inputs))
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                part.module,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(shapes) if any(shapes) else None,
                input_names=[spec.name for spec in part.inputs],
                output_names=[spec.name for spec in part.outputs],
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise CaptureError(f"{name}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
    assert program is not None
    model = program.model
    passes.remove_dead(model.graph)
    passes.strip_metadata(model)
    _name(model.graph, name, part)
    model.opset_imports.clear()
    model.opset_imports.update({"": OPSET})
    return model


def _moves(axis: Axis) -> bool:
    return axis.min != axis.max


def _name(graph: ir.Graph, name: str, part: Part) -> None:
    """Give inputs and outputs the names and axes that were asked for; CaptureError where there are other numbers of them."""
    for kind, values, specs in (("inputs", graph.inputs, part.inputs), ("outputs", graph.outputs, part.outputs)):
        if [value.name for value in values] != [spec.name for spec in specs]:
            raise CaptureError(f"{name} has the {kind} {[v.name for v in values]}; asked for were {[s.name for s in specs]}")
        for value, spec in zip(values, specs, strict=True):
            value.shape = ir.Shape(spec.axes)


def specs_of(part: Part) -> dict[str, TensorSpec]:
    """Inputs and outputs by name."""
    return {spec.name: spec for spec in (*part.inputs, *part.outputs)}


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """The exporter's progress and advice is for its own developers."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
