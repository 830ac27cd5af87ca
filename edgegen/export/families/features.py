"""The export half of networks that describe images in numbers."""

import msgspec
import torch

from edgegen.errors import ExportError
from edgegen.export.assemble import export_model
from edgegen.export.parts import Model, Modules, Part, example
from edgegen.export.report import Progress, TensorExportReport
from edgegen.export.request import Request
from edgegen.pipelines.features import FeaturesSettings
from edgegen.tensors import Axis, Tensors, TensorSpec


def export(request: Request, progress: Progress) -> TensorExportReport:
    """Export a network of features to a bundle: see `edgegen.export.assemble.export_model`."""
    return export_model(request, build(request.source), progress)


def build(source: Modules) -> Model:
    """The model of a source: one module, image -> features. ExportError where it is another."""
    modules = {name or "features": module for name, module in source.modules.items()}
    inputs = source.inputs.get("features") or source.inputs.get("", ())
    if set(modules) != {"features"} or [spec.name for spec in inputs] != ["image"]:
        said = f"graphs {sorted(modules)}, inputs {[spec.name for spec in inputs]}"
        raise ExportError(f'a network of features is one module of "image float32[batch, 3, 64, 64]"; this source has {said}')
    axes = {"batch": Axis(1, 1, 64)} | dict(source.axes)
    module, image = modules["features"], example(inputs[0], axes)
    with torch.no_grad():
        made = module(image)
    if not isinstance(made, torch.Tensor) or made.ndim != 2 or len(made) != len(image):
        raise ExportError(f"the module must give features [batch, feature], not {getattr(made, 'shape', type(made).__name__)}")
    output = TensorSpec("features", "float32", (inputs[0].axes[0], int(made.shape[1])))
    promised = source.outputs.get("features") or source.outputs.get("", ())
    if promised and promised != (output,):
        raise ExportError(f"the module gives {_said(output)}; promised is {', '.join(map(_said, promised))}")
    try:
        settings = msgspec.convert(source.settings, FeaturesSettings)
    except (msgspec.ValidationError, ValueError) as error:
        raise ExportError(f"the settings are not those of a network of features: {error}") from error

    def reference() -> tuple[Tensors, Tensors]:
        with torch.no_grad():
            return {"image": image.numpy()}, {"features": module(image).numpy()}

    return Model("features", {"features": Part(module, inputs, (output,))}, axes, settings, reference)


def _said(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}[{', '.join(map(str, spec.axes))}]"
