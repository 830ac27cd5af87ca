"""The export half of GANs."""

import msgspec
import torch

from edgegen.errors import ExportError
from edgegen.export.assemble import export_model
from edgegen.export.parts import Model, Modules, Part, example
from edgegen.export.report import Progress, TensorExportReport
from edgegen.export.request import Request
from edgegen.pipelines.gan import GanSettings
from edgegen.tensors import Tensors


def export(request: Request, progress: Progress) -> TensorExportReport:
    """Export a generator to a bundle: see `edgegen.export.assemble.export_model`."""
    return export_model(request, build(request.source), progress)


def build(source: Modules) -> Model:
    """The model of a source. ExportError where it lacks what a GAN needs."""
    modules = {name or "generator": module for name, module in source.modules.items()}
    if set(modules) != {"generator"}:
        raise ExportError(f"a GAN has the graph generator; this source has {sorted(modules)}")
    inputs = source.inputs.get("generator") or source.inputs.get("", ())
    outputs = source.outputs.get("generator") or source.outputs.get("", ())
    part = Part(modules["generator"], inputs, outputs)
    settings = msgspec.convert(source.settings, GanSettings)

    def reference() -> tuple[Tensors, Tensors]:
        z = example(inputs[0], source.axes)
        with torch.no_grad():
            image = part.module(z)
        return {"z": z.numpy()}, {"image": image.numpy()}

    return Model("gan", {"generator": part}, source.axes, settings, reference)
