"""The export half of variational autoencoders, plain autoencoders, and those whose latents are codes (VQ-VAE)."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import msgspec
import torch
from torch.distributions import Distribution, Independent, Normal

from edgegen.errors import ExportError
from edgegen.export.assemble import export_model
from edgegen.export.parts import Model, Modules, Part, check_last_id, check_steps, example, usual_sizes, with_numbers
from edgegen.export.report import Progress, TensorExportReport
from edgegen.export.request import Request
from edgegen.pipelines.vae import VaeSettings, drawn
from edgegen.tensors import Axis, Tensors, TensorSpec

_NAMES = (("mean", "log_variance"), ("mean",), ("codes",))  # what an encoder gives
_DTYPES = {torch.float32: "float32", torch.int64: "int64"}


def export(request: Request, progress: Progress) -> TensorExportReport:
    """Export an autoencoder to a bundle: see `edgegen.export.assemble.export_model`."""
    return export_model(request, build(request.source), progress)


def build(source: Modules) -> Model:
    """The model of a source.

    The source has the modules `encoder` (image -> mean, log-variance; or mean alone, or int64 codes) and `decoder` (latent or
    codes -> image), or `decoder` alone, or one module with the methods `encode` and `decode`: a VAE as it is usually written,
    or diffusers' AutoencoderKL, AutoencoderTiny and VQModel. Outputs, and the decoder's input, are found by running it where
    they are not given.

    Raises ExportError where it lacks what a VAE needs.
    """
    check_steps(source.axes, source.steps, least=max(source.steps.values(), default=1))
    if source.kind == "diffusers":
        source = with_numbers(source, ("height", "width"))
    modules, settings = _graphs(source)
    axes = {"batch": Axis(1, 1, 16)} | dict(source.axes)
    parts: dict[str, Part] = {}
    if "encoder" in modules:
        inputs = _inputs(source, "encoder", "image", settings)
        part = _part("encoder", modules["encoder"], inputs, source.outputs.get("encoder", ()), axes)
        parts["encoder"] = replace(part, steps=source.steps)
    inputs = source.inputs.get("decoder", ()) or _latent_of(parts.get("encoder"), settings, axes)
    parts["decoder"] = _part("decoder", modules["decoder"], inputs, source.outputs.get("decoder", ()), axes)
    settings = _complete(parts, settings, axes)
    for graph, part in parts.items():
        check_last_id(graph, part, axes, "class_ids", settings.classes, "classes")
        check_last_id(graph, part, axes, "codes", settings.codes, "codes")
    used = {axis for part in parts.values() for spec in (*part.inputs, *part.outputs) for axis in spec.axes}
    if unknown := sorted(source.axes.keys() - used):
        there = ", ".join(sorted(axis for axis in used if isinstance(axis, str)))
        raise ExportError(f"no tensor has an axis named {unknown[0]}; there are {there or 'none'}")
    return Model("vae", parts, axes, settings, lambda: _reference(parts, settings, axes))


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """PyTorch's distributions look at the numbers they are made of, which no graph can."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


class _Encode(torch.nn.Module):
    """`encode` of a whole autoencoder as a module of its own."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, *arguments: torch.Tensor) -> Any:
        with _unchecked_distributions():
            made = self.whole.encode(*arguments)
        posterior = getattr(made, "latent_dist", None)  # of diffusers' AutoencoderKL
        if posterior is not None:
            return posterior.mean, posterior.logvar
        if isinstance(made, Independent):
            made = made.base_dist
        if isinstance(made, Normal):
            return made.loc, 2 * made.scale.log()
        return getattr(made, "latents", made)  # of its AutoencoderTiny


class _Decode(torch.nn.Module):
    """`decode` of a whole autoencoder as a module of its own."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, *arguments: torch.Tensor) -> Any:
        made = self.whole.decode(*arguments)
        return getattr(made, "sample", made) if not isinstance(made, torch.Tensor) else made


class _EncodeCodes(_Encode):
    """What diffusers' VQModel keeps inside its `forward`: the nearest entry of the codebook, for each place."""

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        latents = self.whole.encode(*arguments).latents
        codes: torch.Tensor = self.whole.quantize(latents)[2][2]
        return codes.reshape(latents.shape[0], latents.shape[2], latents.shape[3])


class _DecodeCodes(_Decode):
    """The way back of `_EncodeCodes`."""

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        entries = self.whole.quantize.embedding(arguments[0]).permute(0, 3, 1, 2)
        made: torch.Tensor = self.whole.decode(entries, force_not_quantize=True).sample
        return made


def _graphs(source: Modules) -> tuple[dict[str, torch.nn.Module], VaeSettings]:
    """The modules by graph, and the settings as far as they are said."""
    modules, said = dict(source.modules), dict(source.settings)
    if set(modules) == {""}:
        whole: Any = modules[""]
        if not (hasattr(whole, "encode") and hasattr(whole, "decode")):
            raise ExportError(
                'the module has no methods encode and decode; write them, or return both graphs: {"encoder": .., "decoder": ..}'
            )
        config: Mapping[str, Any] = getattr(whole, "config", None) or {}
        if hasattr(whole, "quantize") and "num_vq_embeddings" in config:
            modules = {"encoder": _EncodeCodes(whole), "decoder": _DecodeCodes(whole)}
            said = {"codes": config["num_vq_embeddings"]} | said
        else:
            modules = {"encoder": _Encode(whole), "decoder": _Decode(whole)}
            found = {name: config.get(name) for name in ("scaling_factor", "shift_factor")}
            said = {name: value for name, value in found.items() if value is not None} | said
    if set(modules) not in ({"decoder"}, {"encoder", "decoder"}):
        raise ExportError(f"a VAE has the graphs encoder and decoder, or decoder alone; this source has {sorted(modules)}")
    try:
        return {name: modules[name].eval() for name in modules}, msgspec.convert(said, VaeSettings)
    except (msgspec.ValidationError, ValueError) as error:
        raise ExportError(f"the settings are not those of a VAE: {error}") from error


def _inputs(source: Modules, graph: str, first: str, settings: VaeSettings) -> tuple[TensorSpec, ...]:
    inputs = source.inputs.get(graph) or source.inputs.get("", ())  # without a graph's name: what the whole module takes
    names = [spec.name for spec in inputs]
    if noise := [name for name in names if name.startswith("noise.")]:
        said = "give mean and log-variance, from which the pipeline draws" if graph == "encoder" else "draw nothing"
        raise ExportError(f"{graph} draws noise inside ({', '.join(noise)}): its forward must {said}")
    if names not in ([first], [first, "class_ids"]):
        wanted = f"{first} float32[batch, 3, 64, 64]" + ", class_ids int64[batch]" * (settings.classes > 0)
        raise ExportError(f'{graph}: its inputs are {names}; say them in `inputs`, or with --input "{graph}: {wanted}"')
    if names[-1] == "class_ids" and not settings.classes:
        raise ExportError(f'{graph} takes class_ids: say how many there are, `settings={{"classes": ...}}`')
    return inputs


def _part(
    graph: str, module: torch.nn.Module, inputs: tuple[TensorSpec, ...], given: tuple[TensorSpec, ...], axes: dict[str, Axis]
) -> Part:
    """One graph; its outputs, where they are not given, as the module gives them. Their axes are added to `axes`."""
    unknown = [axis for spec in inputs for axis in spec.axes if isinstance(axis, str) and axis not in axes]
    if unknown:
        raise ExportError(f"{graph}: the axis {unknown[0]} has no sizes; say (least, usual, most) in `axes`")
    made = _run(Part(module, inputs, ()), [example(spec, axes) for spec in inputs], graph)
    choices = _NAMES if graph == "encoder" else (("image",),)
    names = tuple(spec.name for spec in given)
    if given and (names not in choices or len(given) != len(made)):
        raise ExportError(f"{graph}: its outputs are {list(names)}; they must be {_either(choices)}")
    if not given:
        is_codes = made[0].dtype == torch.int64
        fits = [n for n in choices if len(n) == len(made) and (graph == "decoder" or (n == ("codes",)) == is_codes)]
        if not fits:
            raise ExportError(f"{graph} gives {len(made)} tensors; it must give {_either(choices)}")
        names = fits[0]
    outputs = given or tuple(_spec(name, tensor, inputs[0], axes) for name, tensor in zip(names, made, strict=True))
    return Part(module, inputs, outputs)


def _either(choices: tuple[tuple[str, ...], ...]) -> str:
    return " or ".join(", ".join(names) for names in choices)


def _spec(name: str, made: torch.Tensor, source: TensorSpec, axes: dict[str, Axis]) -> TensorSpec:
    """The output `made` of the input `source`: sides that are named there are as many times larger here as they show."""
    if made.dtype not in _DTYPES:
        raise ExportError(f"{name} is {made.dtype}; it must be float32, or int64 for codes")
    listed: list[int | str] = [source.axes[0], *made.shape[1:]]
    if made.ndim >= 3 and len(source.axes) >= 3:
        for place in (-2, -1):
            axis = source.axes[place]
            if isinstance(axis, str):
                size = axes[axis]
                share = Fraction(made.shape[place], usual_sizes(axes)[axis])
                listed[place] = axis if share == 1 else f"{name}_{axis}"
                axes.setdefault(str(listed[place]), Axis(*(int(n * share) for n in (size.min, size.opt, size.max))))
    return TensorSpec(name, _DTYPES[made.dtype], tuple(listed))  # type: ignore[arg-type]


def _latent_of(encoder: Part | None, settings: VaeSettings, axes: dict[str, Axis]) -> tuple[TensorSpec, ...]:
    """The decoder's inputs, from what the encoder gives."""
    if encoder is None:
        raise ExportError('decoder: say its inputs, for example --input "decoder: latent float32[batch, 16]"')
    first = encoder.outputs[0]
    name = "codes" if first.name == "codes" else "latent"
    listed = list(first.axes)
    for place, axis in enumerate(first.axes):
        if isinstance(axis, str) and place:
            listed[place] = f"latent_{axis.removeprefix(f'{first.name}_')}"
    for old, new in zip(first.axes, listed, strict=True):
        if isinstance(old, str) and isinstance(new, str):
            axes.setdefault(new, axes[old])
    latent = msgspec.structs.replace(first, name=name, axes=tuple(listed))
    return (latent, TensorSpec("class_ids", "int64", (first.axes[0],))) if settings.classes else (latent,)


def _complete(parts: Mapping[str, Part], settings: VaeSettings, axes: Mapping[str, Axis]) -> VaeSettings:
    """Check the decoder's input, and find how many pixels a step of the latent is."""
    decoder = parts["decoder"]
    latent, image = decoder.inputs[0], decoder.outputs[0]
    wanted = "codes" if "encoder" in parts and parts["encoder"].outputs[0].name == "codes" else None
    if latent.name not in ("latent", "codes") or (wanted and latent.name != wanted) or len(image.axes) != 4:
        raise ExportError(
            f"the decoder makes image [batch, channel, height, width] of latent or codes, not {image} of {latent}"
        )
    if (latent.name == "codes") != (settings.codes > 0):
        raise ExportError(f'the decoder takes {latent.name}; `settings` must say of codes how many entries there are: "codes"')
    sides = [axes[axis].opt if isinstance(axis, str) else axis for axis in (*latent.axes[-2:], *image.axes[-2:])]
    has_sides = len(latent.axes) == (3 if settings.codes else 4)
    scales = {Fraction(sides[2], sides[0]), Fraction(sides[3], sides[1])}
    scale = scales.pop()
    if not has_sides or scales or scale.denominator != 1:
        return msgspec.structs.replace(settings, scale=0)
    return msgspec.structs.replace(settings, scale=int(scale))


def _run(part: Part, arguments: list[torch.Tensor], graph: str) -> tuple[torch.Tensor, ...]:
    try:
        with torch.no_grad():
            made = part.module(*arguments)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{graph} does not run on {', '.join(map(str, part.inputs))}: {first_line[:200]}") from error
    tensors = (made,) if isinstance(made, torch.Tensor) else tuple(made) if isinstance(made, tuple | list) else ()
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise ExportError(f"{graph} gives a {type(made).__name__}; it must give a tensor, or a tuple of them")
    return tensors


def _reference(parts: Mapping[str, Part], settings: VaeSettings, axes: Mapping[str, Axis]) -> tuple[Tensors, Tensors]:
    """What PyTorch gives, as `Vae.replay` takes and gives it."""
    decoder = parts["decoder"]
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    if "encoder" in parts:
        latent = _encoded(parts["encoder"], settings, axes, inputs, outputs)
    else:
        latent = example(decoder.inputs[0], axes, seed=1)
        if settings.codes:
            latent = torch.randint(0, settings.codes, latent.shape, generator=torch.Generator().manual_seed(1))
        inputs[decoder.inputs[0].name] = latent
    if len(decoder.inputs) > 1 and "class_ids" not in inputs:
        inputs["class_ids"] = torch.arange(len(latent)) % settings.classes
    outputs["image"] = _run(decoder, [latent, *_ids(decoder, inputs)], "decoder")[0]
    return _as_numpy(inputs), _as_numpy(outputs)


def _as_numpy(named: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.numpy() for name, tensor in named.items()}


def _encoded(
    encoder: Part,
    settings: VaeSettings,
    axes: Mapping[str, Axis],
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
) -> torch.Tensor:
    """The latent or the codes of an image of random pixels, written down in `inputs` and `outputs`."""
    shape = example(encoder.inputs[0], axes).shape
    pixels = settings.pixels
    shares = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    inputs["image"] = shares * (pixels.white - pixels.black) + pixels.black
    if settings.classes:
        inputs["class_ids"] = torch.arange(len(shares)) % settings.classes
    made = _run(encoder, [inputs["image"], *_ids(encoder, inputs)], "encoder")
    named = dict(zip((spec.name for spec in encoder.outputs), made, strict=True))
    if "codes" in named:
        inputs["codes"] = named["codes"]
        outputs["codes.agreement"] = torch.ones(1)
        return named["codes"]
    outputs.update(named)
    if "log_variance" not in named:
        return named["mean"]
    inputs["noise"] = torch.randn(named["mean"].shape, generator=torch.Generator().manual_seed(2))
    numbers = (named["mean"].numpy(), named["log_variance"].numpy(), inputs["noise"].numpy())
    outputs["latent"] = torch.from_numpy(drawn(*numbers))
    return outputs["latent"]


def _ids(part: Part, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [inputs["class_ids"]] if len(part.inputs) > 1 else []
