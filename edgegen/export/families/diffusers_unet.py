"""An unconditional U-Net of the diffusers library becomes the model of a bundle, held to the loop of its own scheduler."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import torch

from edgegen.errors import ExportError
from edgegen.export.families.diffusers_scheduler import schedule_of
from edgegen.export.families.diffusion import PROOF_STEPS, recorded_inputs
from edgegen.export.families.diffusion import build as build_modules
from edgegen.export.parts import Model, Part, check_steps, with_numbers
from edgegen.export.sources.diffusers_single import UnetModules
from edgegen.pipelines.diffusion_settings import DiffusionSettings
from edgegen.tensors import Tensor, Tensors

_STEPS: Mapping[str, int] = {"ddpm": 1000}  # of DDPMPipeline; the other pipelines of the library take 50
_USUAL_STEPS = 50
_SEED = 23
# With these of the user's own the scheduler's loop is another one.
_OTHERWISE = frozenset({"schedule", "stepper", "guidance", "null_class"})


def build(source: UnetModules) -> Model:
    """The model of a U-Net. ExportError where its scheduler has no counterpart, or there is none, nor settings instead."""
    source = with_numbers(source, ("height", "width"))
    check_steps(source.axes, source.steps)
    said = dict(source.settings)
    if source.scheduler is None and not {"schedule", "stepper"} <= said.keys():
        raise ExportError(
            f"{source.name} has no scheduler_config.json, in it or in ../scheduler; put it there, or say the schedule: "
            '--setting schedule=\'{"kind": "linear", "prediction": "noise"}\' --setting stepper=\'"ddpm"\''
        )
    if source.scheduler is not None:
        said = _of_scheduler(source.scheduler) | said
    model = build_modules(replace(source, settings=said))
    if source.scheduler is None or _OTHERWISE & source.settings.keys():
        return model
    settings = msgspec.convert(msgspec.to_builtins(model.settings), DiffusionSettings)
    return replace(model, reference=lambda: _reference(model, settings, source.scheduler))


def _of_scheduler(scheduler: Any) -> dict[str, Any]:
    schedule, stepper = schedule_of(scheduler)
    steps = min(_STEPS.get(stepper, _USUAL_STEPS), schedule.lcm_steps if stepper == "lcm" else schedule.train_steps)
    return {"schedule": msgspec.to_builtins(schedule), "stepper": stepper, "steps": steps}


def _reference(model: Model, settings: DiffusionSettings, scheduler: Any) -> tuple[Tensors, Tensors]:
    """What the library gives: its scheduler around its network, as its unconditional pipelines go about it."""
    inputs = recorded_inputs(model.parts, settings, model.axes)
    latents = torch.from_numpy(inputs["latents"])
    draws = torch.Generator().manual_seed(_SEED)
    for name in sorted((name for name in inputs if name.startswith("noise.")), key=lambda name: int(name.partition(".")[2])):
        inputs[name] = torch.randn(latents.shape, generator=draws).numpy()  # as the scheduler will draw it
    conditions = [torch.from_numpy(inputs["class_ids"])] if "class_ids" in inputs else []
    return inputs, _walk(model.parts["denoiser"], scheduler, latents, conditions, min(PROOF_STEPS, settings.steps))


def _walk(part: Part, scheduler: Any, sample: torch.Tensor, conditions: list[torch.Tensor], steps: int) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    draws = {"generator": torch.Generator().manual_seed(_SEED)} if _draws(scheduler) else {}
    scheduler.set_timesteps(steps)
    sample = sample * scheduler.init_noise_sigma
    with torch.no_grad():
        for index, time in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(sample, time)
            prediction = part.module(scaled, time.float().expand(len(sample)), *conditions)
            sample = scheduler.step(prediction, time, sample, **draws).prev_sample
            made[f"step.{index}"] = sample.numpy().copy()
    made["image"] = sample.numpy().copy()
    return made


def _draws(scheduler: Any) -> bool:
    import inspect

    return "generator" in inspect.signature(scheduler.step).parameters
