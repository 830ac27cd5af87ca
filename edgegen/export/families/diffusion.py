"""The export half of diffusion models: a denoiser of one's own, or a directory of the diffusers library."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch

from edgegen.errors import ExportError, InputError
from edgegen.export.assemble import export_model
from edgegen.export.parts import Graphed, Model, Modules, Part, check_last_id
from edgegen.export.report import Progress, TensorExportReport
from edgegen.export.request import Request
from edgegen.export.torch_session import TorchSession
from edgegen.pipelines.diffusion import Diffusion
from edgegen.pipelines.diffusion_settings import DiffusionSettings
from edgegen.pipelines.images import normal
from edgegen.schedules import trajectory
from edgegen.tensors import Axis, Tensor, Tensors, TensorSpec
from edgegen.tokenizers import Tokenizer

PROOF_STEPS = 4  # enough for every stepper to reach its steady form; each is proven
_PROOF_SEED = 20
_GRAPHS = ("denoiser", "vae_decoder", "vae_encoder")
_EXPECTED = 'say them in `inputs`, for example "sample float32[batch, 3, 32, 32]", "timestep float32[batch]"'


def export(request: Request, progress: Progress) -> TensorExportReport:
    """Export a diffusion model to a bundle: see `edgegen.export.assemble.export_model`."""
    from edgegen.export.families.diffusers_model import build as build_pipeline
    from edgegen.export.families.diffusers_unet import build as build_unet
    from edgegen.export.sources.diffusers import DiffusersDirectory
    from edgegen.export.sources.diffusers_single import UnetModules

    if isinstance(request.source, UnetModules):
        return export_model(request, build_unet(request.source), progress)
    if isinstance(request.source, Modules):
        return export_model(request, build(request.source), progress)
    if not isinstance(request.source, DiffusersDirectory):
        raise ExportError(f"{request.name} is no diffusion model; give a recipe with a denoiser, or a diffusers directory")
    progress("load", 0.0)
    return export_model(request, build_pipeline(request.source), progress)


def build(source: Modules) -> Model:
    """The model of a user's own modules.

    The source has the module `denoiser` (sample, timestep (, class_ids) -> prediction), and for a latent model `vae_decoder`
    (latent -> image) and perhaps `vae_encoder` (image -> mean, log_variance). `settings` are those of `DiffusionSettings`.

    Raises ExportError where it lacks what a diffusion model needs.
    """
    modules = {name or "denoiser": module for name, module in source.modules.items()}
    if "denoiser" not in modules or not modules.keys() <= set(_GRAPHS):
        raise ExportError(
            f"a diffusion model has the graph denoiser, perhaps vae_decoder and vae_encoder; here: {sorted(modules)}"
        )
    axes = {"batch": Axis(1, 1, 16)} | dict(source.axes)
    parts = {}
    for name, module in modules.items():
        inputs = source.inputs.get(name) or (source.inputs.get("", ()) if name == "denoiser" else ())
        outputs = source.outputs.get(name) or (source.outputs.get("", ()) if name == "denoiser" else ())
        parts[name] = Part(module, inputs, outputs or _usual_outputs(name, inputs), source.steps)
    _check(parts)
    settings = _settings(source.settings, parts["denoiser"], axes)
    if settings.latent is None and len(parts) > 1:
        raise ExportError(
            "there is a VAE, and the settings do not say how the denoiser sees its latents; give "
            """--setting 'latent={"channels": 4, "factor": 8, "scale": 0.18215}' (sample = latent * scale)"""
        )
    check_last_id("denoiser", parts["denoiser"], axes, "class_ids", settings.classes, "classes")
    if settings.null_class is not None:
        check_last_id("denoiser", parts["denoiser"], axes, "class_ids", settings.null_class + 1, "null_class")
    parts["denoiser"] = _with_float_time(parts["denoiser"])
    pipeline_on_torch(parts, settings, axes)  # it refuses what does not go together

    def reference() -> tuple[Tensors, Tensors]:
        inputs = recorded_inputs(parts, settings, axes)
        return inputs, dict(pipeline_on_torch(parts, settings, axes).replay(inputs))

    return Model("diffusion", parts, axes, settings, reference)


class _WholeTime(torch.nn.Module):
    """A denoiser that looks its time up, and so takes int64: here float32, as every stepper gives it, rounded."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, *others: torch.Tensor) -> Any:
        return self.module(sample, timestep.round().long(), *others)


def _with_float_time(denoiser: Part) -> Part:
    sample, time, *others = denoiser.inputs
    if time.dtype == "float32":
        return denoiser
    if time.dtype != "int64" or isinstance(denoiser.module, Graphed):
        raise ExportError(f"denoiser: {time} must be float32, since steppers also stop between two steps; cast it inside")
    inputs = (sample, msgspec.structs.replace(time, dtype="float32"), *others)
    return replace(denoiser, module=_WholeTime(denoiser.module), inputs=inputs)


def _usual_outputs(graph: str, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    if graph != "denoiser" or not inputs:
        return ()
    return (TensorSpec("prediction", "float32", inputs[0].axes),)


def _check(parts: Mapping[str, Part]) -> None:
    names = [spec.name for spec in parts["denoiser"].inputs]
    if names not in (["sample", "timestep"], ["sample", "timestep", "class_ids"]):
        raise ExportError(f'denoiser: its inputs are {names}; {_EXPECTED}, and "class_ids int64[batch]" with classes')
    wanted = {"vae_decoder": (["latent"], ["image"]), "vae_encoder": (["image"], ["mean", "log_variance"])}
    for graph, (inputs, outputs) in wanted.items():
        if graph not in parts:
            continue
        found = [[spec.name for spec in specs] for specs in (parts[graph].inputs, parts[graph].outputs)]
        if found != [inputs, outputs]:
            raise ExportError(
                f"{graph}: it takes {inputs} and gives {outputs}, not {found[0]} and {found[1]}; say them with shapes, with "
                f'--input and --returns, as "{graph}: {outputs[0]} float32[batch, 3, 64, 64]", or in the recipe'
            )


def _settings(given: Mapping[str, Any], denoiser: Part, axes: Mapping[str, Axis]) -> DiffusionSettings:
    """The user's, completed: the size of the images is the graph's."""
    try:
        settings = msgspec.convert(msgspec.to_builtins(dict(given)), DiffusionSettings)
        trajectory(settings.schedule, settings.stepper, settings.steps, tokens=256)
    except (msgspec.ValidationError, InputError, ValueError, TypeError) as error:
        raise ExportError(f"the settings are not those of a diffusion model: {error}") from error
    factor = settings.latent.factor if settings.latent else 1
    height, width = (size * factor for size in usual_sizes(denoiser.inputs[0], axes)[2:])
    return msgspec.structs.replace(settings, height=settings.height or height, width=settings.width or width)


def usual_sizes(spec: TensorSpec, axes: Mapping[str, Axis]) -> list[int]:
    """The `opt` size of every axis. InputError where one has no bounds."""
    missing = [axis for axis in spec.axes if isinstance(axis, str) and axis not in axes]
    if missing:
        raise InputError(f"{spec}: the axis {missing[0]} has no bounds; give them in `axes`")
    return [axis if isinstance(axis, int) else axes[axis].opt for axis in spec.axes]


def pipeline_on_torch(
    parts: Mapping[str, Part], settings: DiffusionSettings, axes: Mapping[str, Axis], files: Mapping[str, bytes] | None = None
) -> Diffusion:
    """The pipeline of the device, on PyTorch's modules; `files` are the bundle's, for its tokenizers."""
    encoders = settings.text.encoders if settings.text else ()
    tokenizers = {encoder.graph: Tokenizer.from_bytes((files or {})[encoder.tokenizer]) for encoder in encoders}
    sessions = {name: TorchSession(part, axes) for name, part in parts.items()}
    return Diffusion(sessions, settings, dict.fromkeys(parts, axes), tokenizers)


def recorded_inputs(parts: Mapping[str, Part], settings: DiffusionSettings, axes: Mapping[str, Axis]) -> dict[str, Tensor]:
    """What the proof replays: noise, conditions and pixels, for the usual sizes."""
    spec = parts["denoiser"].inputs[0]
    count = min(2, axes["batch"].max) if "batch" in axes else 1
    shape = usual_sizes(spec, axes)[1:]
    if settings.latent:
        shape[0] = settings.latent.channels
    steps = min(PROOF_STEPS, settings.steps)
    inputs: dict[str, Tensor] = {"latents": normal(range(_PROOF_SEED, _PROOF_SEED + count), shape)}
    guidance = settings.guidance if settings.guidance != 1 or settings.null_class is None else 2.0  # so that it is proven, too
    inputs |= {"steps": np.array(steps), "guidance": np.array(guidance, np.float32)}
    if settings.classes:
        inputs["class_ids"] = np.arange(count) % settings.classes
    way = trajectory(settings.schedule, settings.stepper, steps, tokens=256)
    for index, step in enumerate(way.steps):
        if step.needs_noise:
            inputs[f"noise.{index}"] = normal([_PROOF_SEED] * count, shape, stream=index + 1)
    if "vae_encoder" in parts:
        pixels = normal([_PROOF_SEED], usual_sizes(parts["vae_encoder"].inputs[0], axes)[1:])
        inputs["pixels"] = np.clip(
            pixels, min(settings.pixels.black, settings.pixels.white), max(settings.pixels.black, settings.pixels.white)
        )
    return inputs
