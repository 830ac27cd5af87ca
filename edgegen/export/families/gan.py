"""The export half of GANs: a generator; mapping and synthesis, as StyleGAN has them; or a network that changes images."""

from collections.abc import Mapping
from fractions import Fraction

import msgspec
import numpy as np
import torch

from edgegen.errors import ExportError
from edgegen.export.assemble import export_model
from edgegen.export.families.gan_parts import Given, examples, run_module, scale_of
from edgegen.export.families.gan_styles import (
    arrays,
    build_styled,
    noise_file,
    noise_inputs,
    stored_noise,
    with_constant_noise,
)
from edgegen.export.parts import Model, Modules, Part
from edgegen.export.receptive import receptive_field
from edgegen.export.report import Progress, TensorExportReport
from edgegen.export.request import Request
from edgegen.pipelines.tiling import up
from edgegen.tensors import Axis, Tensors, TensorSpec

_MOST_SIDE = 512  # of an image in the proof, and of one that the receptive field is looked for in
_BLEND = 4  # of the tiles in the proof


def export(request: Request, progress: Progress) -> TensorExportReport:
    """Export a GAN to a bundle: see `edgegen.export.assemble.export_model`."""
    return export_model(request, build(request.source), progress)


def build(source: Modules) -> Model:
    """The model of a source. ExportError where it lacks what a GAN needs."""
    given = Given.of(source)
    if "generator" in given.parts:
        return _build_generator(given)
    return _build_translator(given) if "translator" in given.parts else build_styled(given)


def _build_generator(given: Given) -> Model:
    part, classes = given.parts["generator"], given.settings.classes
    stored = stored_noise(part)
    settings = msgspec.structs.replace(given.settings, stored_noise=bool(stored))

    def reference() -> tuple[Tensors, Tensors]:
        inputs = dict(zip((spec.name for spec in part.inputs), examples(part.inputs, given.axes), strict=True))
        if classes:
            inputs["class_ids"] = torch.arange(len(inputs["z"])) % classes
        names = [spec.name for spec in noise_inputs(part)]

        def paint(noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
            made: torch.Tensor = part.module(*(inputs | dict(zip(names, noise, strict=True))).values())
            return made

        noise = tuple(inputs[name] for name in names)
        with torch.no_grad():
            images = {"image": paint(noise)} | with_constant_noise(paint, noise, stored)
        return arrays(inputs), arrays(images)

    return Model("gan", given.parts, given.axes, settings, reference, noise_file(stored))


def _build_translator(given: Given) -> Model:
    part, settings = given.parts["translator"], given.settings
    scale = scale_of(part.module, part.inputs, given.axes)
    if settings.multiple == 1:
        settings = msgspec.structs.replace(settings, multiple=_multiple(part, given.axes, scale))
    reach = settings.receptive_field
    if reach is None:
        reach = _reach(part, given.axes, scale, settings.multiple)
    settings = msgspec.structs.replace(settings, scale=(scale.numerator, scale.denominator), receptive_field=reach)
    tiling = _tiling(part.inputs[0], given.axes, reach, scale, settings.multiple)
    batch, channels, *bounds = _bounds(part, given.axes)
    if tiling:
        sides = [up(tiling["tile"] * 3 // 2, settings.multiple)] * 2
    else:
        most = max(int(_MOST_SIDE / scale) // settings.multiple * settings.multiple, 1)
        sides = [max(min(bound.opt, most), bound.min) for bound in bounds]
    drawn = np.random.Generator(np.random.Philox(0)).integers(0, 256, (batch.min, *sides, channels.min), np.uint8)
    image = settings.pixels.from_uint8(drawn)

    def reference() -> tuple[Tensors, Tensors]:
        with torch.no_grad():
            made = part.module(torch.from_numpy(image)).numpy()
        # The tiles' reference is the image in one piece: that is what they must not differ from.
        again = {"image_out.tiled": made} if tiling else {}
        return {"image": image} | {name: np.array(value) for name, value in tiling.items()}, {"image_out": made, **again}

    return Model("gan", given.parts, given.axes, settings, reference)


def _bounds(part: Part, axes: Mapping[str, Axis]) -> list[Axis]:
    """Of batch, channels, height and width of the image that goes in."""
    return [axes[axis] if isinstance(axis, str) else Axis(axis, axis, axis) for axis in part.inputs[0].axes]


def _multiple(part: Part, axes: Mapping[str, Axis], scale: Fraction) -> int:
    """What the sides must be multiples of, for the scale to be exact: 4 for a network that halves its input twice."""
    batch, channels, *bounds = _bounds(part, axes)
    for multiple in (1 << power for power in range(8)):
        sides = [bound.opt if bound.min == bound.max else (bound.opt // multiple | 1) * multiple for bound in bounds]
        if not all(bound.min <= side <= bound.max for side, bound in zip(sides, bounds, strict=True)):
            continue
        try:
            made = run_module(part.module, (torch.rand(batch.min, channels.min, *sides),))
        except ExportError:
            continue  # it takes no such size
        if list(made.shape[2:]) == [side * scale for side in sides]:
            return multiple
    raise ExportError(f"the translator makes images of {scale} times the size for few sizes only; fix it: --axis height=64")


def _reach(part: Part, axes: Mapping[str, Axis], scale: Fraction, multiple: int) -> int | None:
    """The receptive field, looked for in an image of the usual size, and where that does not hold it, of the largest."""
    batch, channels, *bounds = _bounds(part, axes)
    for wanted in ([bound.opt for bound in bounds], [min(bound.max, _MOST_SIDE) for bound in bounds]):
        sides = [max(side // multiple * multiple, bound.min) for side, bound in zip(wanted, bounds, strict=True)]
        found = receptive_field(part.module, torch.rand(batch.min, channels.min, *sides), scale, multiple)
        if found is not None:
            return found
    return None


def _tiling(spec: TensorSpec, axes: Mapping[str, Axis], reach: int | None, scale: Fraction, multiple: int) -> dict[str, int]:
    """Tiles that the proof can join, and hold to an image in one piece; none where sizes or the receptive field forbid it."""
    bounds = [axes[axis] for axis in spec.axes[2:] if isinstance(axis, str)]
    if reach is None or len(bounds) < 2:
        return {}
    overlap = up(2 * reach + _BLEND, multiple)
    tile = up(max(2 * overlap, *(bound.min for bound in bounds)), multiple)
    side = up(tile * 3 // 2, multiple)
    fits = side <= min(bound.max for bound in bounds) and side * max(scale, Fraction(1)) <= _MOST_SIDE
    return {"tile": tile, "overlap": overlap, "blend": _BLEND} if fits else {}
