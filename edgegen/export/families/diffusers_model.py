"""A diffusers pipeline becomes the model of a bundle; its own run, step by step, is what the bundle is held to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from edgegen.errors import ExportError
from edgegen.export.families.diffusers_graphs import (
    ClipText,
    FluxTransformer,
    Sd3Transformer,
    T5Text,
    Unet,
    VaeDecoder,
    VaeEncoder,
)
from edgegen.export.families.diffusers_scheduler import schedule_of
from edgegen.export.families.diffusion import PROOF_STEPS
from edgegen.export.parts import Model, Part, check_steps
from edgegen.export.sources.diffusers import DiffusersDirectory
from edgegen.export.sources.diffusers_files import quiet_diffusers
from edgegen.pipelines.diffusion_settings import DiffusionSettings, Latent, Text, TextEncoder
from edgegen.pipelines.images import normal
from edgegen.pipelines.text_conditioning import TextConditioner
from edgegen.schedules import trajectory
from edgegen.tensors import Axis, Tensor, Tensors, TensorSpec
from edgegen.tokenizers import Tokenizer

AXES: Mapping[str, Axis] = {"batch": Axis(1, 2, 8)}
_PROMPT, _NEGATIVE = "a red house by a lake", "blurry"
_SEED = 11
_SIDES = ("height", "width")


@dataclass(frozen=True)
class Encoder:
    """A text encoder of a pipeline: its component's name, that of its tokenizer, and how it is read."""

    graph: str
    tokenizer: str
    module: torch.nn.Module
    settings: TextEncoder


@dataclass(frozen=True)
class Anatomy:
    """What differs between the pipelines.

    Attributes:
        denoiser: the adapter.
        channels, side: of the latents.
        encoders: of texts, in the order of joining.
        text: the rest of the settings of texts.
        pooled, time_ids, guidance_input: further inputs of the denoiser; `pooled` is a width, 0 for none.
        guidance, steps: the defaults of the pipeline's class.
        patch, flow_grid: see `schedule_of`.
        step: the denoiser takes sides in multiples of it.
    """

    denoiser: torch.nn.Module
    channels: int
    side: tuple[int, int]
    encoders: tuple[Encoder, ...]
    text: Text
    pooled: int = 0
    time_ids: bool = False
    guidance_input: bool = False
    guidance: float = 7.5
    steps: int = 50
    patch: int = 2
    flow_grid: str = "table"
    step: int = 1


def build(source: DiffusersDirectory) -> Model:
    """The model of a directory. ExportError where its scheduler or a component has no counterpart."""
    pipeline = source.load()
    anatomy = _ANATOMIES[source.pipeline](pipeline)
    factor = int(pipeline.vae_scale_factor)
    check_steps(source.axes, dict.fromkeys(_SIDES, anatomy.step * factor), least=factor)
    height, width = (source.axes[name].opt // factor if name in source.axes else None for name in _SIDES)
    anatomy = replace(anatomy, side=(height or anatomy.side[0], width or anatomy.side[1]))
    settings = _settings(pipeline, anatomy)
    files = {encoder.settings.tokenizer: _tokenizer(getattr(pipeline, encoder.tokenizer)) for encoder in anatomy.encoders}
    axes = _axes(source.axes, factor)
    parts = _parts(pipeline, anatomy, settings, axes)
    return Model("diffusion", parts, axes, settings, lambda: _reference(pipeline, parts, settings, files), files)


def _axes(given: Mapping[str, Axis], factor: int) -> dict[str, Axis]:
    """The bounds of all axes that are named: those of the images' sides as they are, and for the latents."""
    axes = dict(AXES)
    for name, axis in given.items():
        if name == "batch":
            axes[name] = axis
        elif axis.min != axis.max:
            axes[name] = axis
            axes[f"latent_{name}"] = Axis(axis.min // factor, axis.opt // factor, axis.max // factor)
    return axes


def _settings(pipeline: Any, anatomy: Anatomy) -> DiffusionSettings:
    vae = pipeline.vae.config
    if getattr(vae, "latents_mean", None) is not None:
        raise ExportError("the VAE has a mean for each latent channel (latents_mean), which edgegen does not support")
    factor = int(pipeline.vae_scale_factor)
    schedule, stepper = schedule_of(pipeline.scheduler, patch=anatomy.patch, flow_grid=anatomy.flow_grid)
    return DiffusionSettings(
        schedule,
        stepper=stepper,
        steps=min(anatomy.steps, schedule.lcm_steps if stepper == "lcm" else anatomy.steps),
        guidance=anatomy.guidance,
        height=anatomy.side[0] * factor,
        width=anatomy.side[1] * factor,
        latent=Latent(anatomy.channels, factor, float(vae.scaling_factor), float(getattr(vae, "shift_factor", None) or 0.0)),
        text=anatomy.text,
    )


def _tokenizer(tokenizer: Any) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{type(tokenizer).__name__} cannot be converted to a tokenizer.json; save it as a fast tokenizer")
    return str(backend.to_str()).encode()


def _parts(pipeline: Any, anatomy: Anatomy, settings: DiffusionSettings, axes: Mapping[str, Axis]) -> dict[str, Part]:
    parts = {encoder.graph: _text_part(encoder) for encoder in anatomy.encoders}
    latent_sides, sides = [f"latent_{name}" for name in _SIDES], (settings.height, settings.width)
    sample = (
        "batch",
        anatomy.channels,
        *(name if name in axes else n for name, n in zip(latent_sides, anatomy.side, strict=True)),
    )
    inputs = [TensorSpec("sample", "float32", sample), TensorSpec("timestep", "float32", ("batch",))]
    tokens, width = _hidden_size(anatomy, parts)
    inputs.append(TensorSpec("encoder_hidden_states", "float32", ("batch", tokens, width)))
    if anatomy.pooled:
        inputs.append(TensorSpec("pooled", "float32", ("batch", anatomy.pooled)))
    if anatomy.time_ids:
        inputs.append(TensorSpec("time_ids", "float32", ("batch", 6)))
    if anatomy.guidance_input:
        inputs.append(TensorSpec("guidance", "float32", ("batch",)))
    steps = dict.fromkeys(latent_sides, anatomy.step)
    parts["denoiser"] = Part(anatomy.denoiser, tuple(inputs), (TensorSpec("prediction", "float32", sample),), steps)
    pixels = [name if name in axes else size for name, size in zip(_SIDES, sides, strict=True)]
    image = TensorSpec("image", "float32", ("batch", int(pipeline.vae.config.out_channels), *pixels))
    found = tuple(TensorSpec(name, "float32", sample) for name in ("mean", "log_variance"))
    parts["vae_decoder"] = Part(VaeDecoder(pipeline.vae), (TensorSpec("latent", "float32", sample),), (image,))
    factors = dict.fromkeys(_SIDES, int(pipeline.vae_scale_factor))
    parts["vae_encoder"] = Part(VaeEncoder(pipeline.vae), (image,), found, factors)
    return parts


def _text_part(encoder: Encoder) -> Part:
    """Widths are those of what the module gives."""
    length, outputs = encoder.settings.length, []
    with torch.no_grad():
        made = encoder.module(torch.zeros(1, length, dtype=torch.int64))
    for tensor in made if isinstance(made, tuple) else (made,):
        shape = ("batch", *tensor.shape[1:])
        outputs.append(TensorSpec("hidden" if tensor.ndim == 3 else "pooled", "float32", shape))
    return Part(encoder.module, (TensorSpec("token_ids", "int64", ("batch", length)),), tuple(outputs))


def _hidden_size(anatomy: Anatomy, parts: Mapping[str, Part]) -> tuple[int, int]:
    """Tokens and width of the joined hidden states."""
    shapes = [(e.settings, spec.axes) for e in anatomy.encoders for spec in parts[e.graph].outputs if spec.name == "hidden"]
    sides = [(int(axes[1]), int(axes[2])) for settings, axes in shapes if settings.hidden == "side"]
    rows = [(int(axes[1]), int(axes[2])) for settings, axes in shapes if settings.hidden == "rows"]
    tokens = sum(length for length, _ in rows) + (sides[0][0] if sides else 0) + anatomy.text.zero_rows
    return tokens, max(anatomy.text.width, sum(width for _, width in sides), *(width for _, width in rows), 0)


def _clip(pipeline: Any, number: str, layer: int, hidden: Any, *, pooled: bool, length: int = 0) -> Encoder:
    tokenizer = getattr(pipeline, f"tokenizer{number}")
    module = ClipText(getattr(pipeline, f"text_encoder{number}"), layer, hidden=hidden != "no", pooled=pooled)
    length = length or int(tokenizer.model_max_length)
    path = f"tokenizer{number}/tokenizer.json"
    settings = TextEncoder(f"text_encoder{number}", path, length, int(tokenizer.pad_token_id), hidden, pooled)
    return Encoder(settings.graph, f"tokenizer{number}", module, settings)


def _t5(pipeline: Any, number: str, length: int) -> Encoder:
    pad_id = int(getattr(pipeline, f"tokenizer{number}").pad_token_id)
    settings = TextEncoder(f"text_encoder{number}", f"tokenizer{number}/tokenizer.json", length, pad_id, "rows")
    return Encoder(settings.graph, f"tokenizer{number}", T5Text(getattr(pipeline, f"text_encoder{number}")), settings)


def _side(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _stable_diffusion(pipeline: Any) -> Anatomy:
    """Stable Diffusion 1 and 2 (Rombach et al. 2022)."""
    config = pipeline.unet.config
    if config.in_channels != pipeline.vae.config.latent_channels or config.time_cond_proj_dim is not None:
        raise ExportError(
            "this U-Net takes more than latents and text (inpainting, or embedded guidance), which is not supported"
        )
    encoder = _clip(pipeline, "", -1, "side", pooled=False)
    side, text = _side(config.sample_size), Text((encoder.settings,))
    return Anatomy(Unet(pipeline.unet), config.in_channels, side, (encoder,), text, step=2**pipeline.unet.num_upsamplers)


def _stable_diffusion_xl(pipeline: Any) -> Anatomy:
    """Stable Diffusion XL (Podell et al. 2023)."""
    config = pipeline.unet.config
    if config.time_cond_proj_dim is not None or pipeline.text_encoder is None:
        raise ExportError("this Stable Diffusion XL is a refiner, or has embedded guidance, which is not supported")
    encoders = (_clip(pipeline, "", -2, "side", pooled=False), _clip(pipeline, "_2", -2, "side", pooled=True))
    text = Text(tuple(e.settings for e in encoders), zero_negative=bool(pipeline.config.force_zeros_for_empty_prompt))
    width = int(pipeline.text_encoder_2.config.projection_dim)
    anatomy = Anatomy(Unet(pipeline.unet), config.in_channels, _side(config.sample_size), encoders, text, width, time_ids=True)
    return replace(anatomy, guidance=5.0, step=2**pipeline.unet.num_upsamplers)


def _stable_diffusion_3(pipeline: Any) -> Anatomy:
    """Stable Diffusion 3 (Esser et al. 2024); its T5 encoder may be left out."""
    config, length = pipeline.transformer.config, int(pipeline.tokenizer_max_length)
    encoders = [_clip(pipeline, number, -2, "side", pooled=True, length=length) for number in ("", "_2")]
    if pipeline.text_encoder_3 is not None:
        encoders.append(_t5(pipeline, "_3", 256))
    zero_rows = 256 if pipeline.text_encoder_3 is None else 0
    text = Text(tuple(e.settings for e in encoders), int(config.joint_attention_dim), zero_rows)
    pooled = int(config.pooled_projection_dim)
    side = _side(config.sample_size)
    anatomy = Anatomy(Sd3Transformer(pipeline.transformer), config.in_channels, side, tuple(encoders), text, pooled)
    return replace(anatomy, guidance=7.0, steps=28, patch=int(config.patch_size), step=int(config.patch_size))


def _flux(pipeline: Any) -> Anatomy:
    """Flux (Black Forest Labs 2024)."""
    config = pipeline.transformer.config
    encoders = (_clip(pipeline, "", -1, "no", pooled=True), _t5(pipeline, "_2", 512))
    side = int(pipeline.default_sample_size)
    pooled = int(config.pooled_projection_dim)
    text = Text(tuple(e.settings for e in encoders))
    anatomy = Anatomy(FluxTransformer(pipeline.transformer), config.in_channels // 4, (side, side), encoders, text, pooled)
    embeds = bool(config.guidance_embeds)
    return replace(anatomy, guidance_input=embeds, guidance=3.5 if embeds else 1.0, steps=28, flow_grid="unit", step=2)


_ANATOMIES = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
}


def _reference(
    pipeline: Any, parts: Mapping[str, Part], settings: DiffusionSettings, files: Mapping[str, bytes]
) -> tuple[Tensors, Tensors]:
    """The pipeline's own run of the diffusers library, from noise to image."""
    assert settings.text is not None
    assert settings.latent is not None
    sample = [
        int(settings.latent.channels),
        settings.height // settings.latent.factor,
        settings.width // settings.latent.factor,
    ]
    steps, guided = min(PROOF_STEPS, settings.steps), settings.guidance != 1
    inputs: dict[str, Tensor] = {"latents": normal([_SEED], sample)}
    inputs |= {"steps": np.array(steps), "guidance": np.array(settings.guidance, np.float32)}
    tokenizers = {encoder.graph: Tokenizer.from_bytes(files[encoder.tokenizer]) for encoder in settings.text.encoders}
    texts = TextConditioner(settings.text, {}, tokenizers)
    negative = _NEGATIVE if guided and "guidance" not in [spec.name for spec in parts["denoiser"].inputs] else None
    for encoder in settings.text.encoders:
        inputs[f"token_ids.{encoder.graph}"] = texts.token_ids(encoder, [_PROMPT])
        if negative is not None:
            inputs[f"negative_token_ids.{encoder.graph}"] = texts.token_ids(encoder, [negative])
    patch = settings.schedule.dynamic_shift.patch if settings.schedule.dynamic_shift else 2
    way = trajectory(settings.schedule, settings.stepper, steps, tokens=(sample[1] // patch) * (sample[2] // patch))
    generator = torch.Generator().manual_seed(_SEED)
    for index, step in enumerate(way.steps):  # as the scheduler will draw them
        if step.needs_noise:
            inputs[f"noise.{index}"] = _noise(pipeline, inputs["latents"].shape, generator)
    channels = int(pipeline.vae.config.in_channels)
    inputs["pixels"] = np.clip(normal([_SEED], [channels, settings.height, settings.width]), -1, 1)
    with torch.no_grad():
        mean, log_variance = parts["vae_encoder"].module(torch.from_numpy(inputs["pixels"]))
    outputs = {"mean": mean.numpy(), "log_variance": log_variance.numpy()} | _encoded(pipeline)
    try:
        outputs |= run_pipeline(pipeline, inputs["latents"], _PROMPT, negative, steps, settings.guidance)
    except Exception as error:  # the library's own: some options of its schedulers do not go together
        said = next(iter(str(error).splitlines()), type(error).__name__)
        name = type(pipeline.scheduler).__name__
        raise ExportError(f"the diffusers library itself does not run this pipeline with its {name}: {said}") from error
    with torch.no_grad():
        last = torch.from_numpy(outputs[f"step.{len(way) - 1}"])
        outputs["image"] = parts["vae_decoder"].module(last / settings.latent.scale + settings.latent.shift).numpy()
    return inputs, outputs


def _noise(pipeline: Any, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """As the scheduler draws it, for latents of `shape`; Flux has them in rows."""
    if type(pipeline).__name__ != "FluxPipeline":
        return torch.randn(shape, generator=generator).numpy()
    rows = torch.randn(pipeline._pack_latents(torch.zeros(shape), *shape).shape, generator=generator)
    factor = pipeline.vae_scale_factor
    noise: Tensor = pipeline._unpack_latents(rows, shape[2] * factor, shape[3] * factor, factor).numpy()
    return noise


def _encoded(pipeline: Any) -> dict[str, Tensor]:
    """What the pipeline makes of the prompt."""
    name = type(pipeline).__name__
    with torch.no_grad(), quiet_diffusers():
        if name == "StableDiffusionPipeline":
            return {"encoder_hidden_states": pipeline.encode_prompt(_PROMPT, "cpu", 1, False)[0].numpy()}
        if name == "FluxPipeline":
            hidden, pooled, _ = pipeline.encode_prompt(_PROMPT, None, device="cpu")
        elif name == "StableDiffusion3Pipeline":
            hidden, _, pooled, _ = pipeline.encode_prompt(_PROMPT, None, None, device="cpu", do_classifier_free_guidance=False)
        else:
            hidden, _, pooled, _ = pipeline.encode_prompt(_PROMPT, None, device="cpu", do_classifier_free_guidance=False)
    return {"encoder_hidden_states": hidden.numpy(), "pooled": pooled.numpy()}


def run_pipeline(
    pipeline: Any, latents: Tensor, prompt: str, negative: str | None, steps: int, guidance: float
) -> dict[str, Tensor]:
    """The latents of the diffusers pipeline after each step: `step.0`, ..."""
    flux = type(pipeline).__name__ == "FluxPipeline"
    start = torch.from_numpy(latents)
    batch, channels, height, width = start.shape
    made: dict[str, Tensor] = {}

    def record(_pipeline: Any, index: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        sample = tensors["latents"]
        if flux:
            factor = pipeline.vae_scale_factor
            sample = pipeline._unpack_latents(sample, height * factor, width * factor, factor)
        made[f"step.{index}"] = sample.numpy().copy()
        return {}

    # A flow's scheduler that is stochastic draws from torch's own generator, whatever the pipeline is given.
    with torch.no_grad(), quiet_diffusers(), torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        pipeline(
            prompt=prompt,
            latents=pipeline._pack_latents(start, batch, channels, height, width) if flux else start,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(_SEED),
            output_type="latent",
            callback_on_step_end=record,
            height=height * pipeline.vae_scale_factor,
            width=width * pipeline.vae_scale_factor,
            **({} if negative is None else {"negative_prompt": negative}),
        )
    return made
