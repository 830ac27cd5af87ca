"""What is asked of a GAN: its settings, and options checked against what the model has."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError
from edgegen.pipelines.images import PixelRange, class_ids_for, normal, seeds_for
from edgegen.pipelines.latents import Floats, checked
from edgegen.ranges import is_whole

Noise = Literal["fixed", "seeded", "zero"]
Mix = tuple[Any, int]


class GanSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest's `settings` hold for a GAN.

    Attributes:
        pixels: the numbers for black and white; of what goes into a translator, too.
        classes: how many there are, where the graph takes `class_ids`.
        mean_w: the mean latent [W], where there is a mapping; `mean_count`: of how many z it was taken, 0 if not by edgegen.
        stored_noise: whether `noise.bin` holds each layer's fixed noise: float32, little-endian, layer after layer.
        scale: of a translator: so many output pixels for so many input pixels.
        multiple: sides that a translator takes are multiples of it.
        receptive_field: how many input pixels away an output pixel of a translator still depends on; None if that has no end.
    """

    pixels: PixelRange = PixelRange()
    classes: int = 0
    mean_w: tuple[float, ...] = ()
    mean_count: int = 0
    stored_noise: bool = False
    scale: tuple[int, int] = (1, 1)
    multiple: int = 1
    receptive_field: int | None = None

    def __post_init__(self) -> None:
        bounds = {"classes": (0, 1 << 31), "multiple": (1, 1 << 12), "scale": (1, 64), "receptive_field": (0, 1 << 20)}
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value or 0,)
            if not all(least <= number <= most for number in numbers):
                raise ValueError(f"{name} is {value}; it must be {least} to {most}")
        if not np.isfinite(self.mean_w).all():
            raise ValueError("mean_w holds numbers that are not finite")


@dataclass(frozen=True)
class Style:
    """How w becomes the styles of the layers. `mean` is None where nothing is truncated, `other` where nothing is mixed."""

    psi: float = 1.0
    cutoff: int = 0
    other: Floats | None = None  # z [1 or image, ...]
    layer: int = 0
    noise: Noise = "zero"


@dataclass(frozen=True)
class Batch:
    """What some images are made from: `z` or `w`, none if z is drawn from the seeds."""

    seeds: tuple[int, ...]
    z: Floats | None
    w: Floats | None
    class_ids: NDArray[np.int64] | None
    style: Style

    def part(self, start: int, stop: int) -> "Batch":
        """Some of the images."""
        cut = slice(start, stop)
        z = None if self.z is None else self.z[cut]
        w = None if self.w is None else self.w[cut]
        ids = None if self.class_ids is None else self.class_ids[cut]
        other = self.style.other
        style = self.style if other is None or len(other) == 1 else replace(self.style, other=other[cut])
        return Batch(self.seeds[cut], z, w, ids, style)


@dataclass(frozen=True)
class Anatomy:
    """What a generator has.

    `latent_shape` is z's without the batch; `classes` 0: not conditional; `layers` and `width` are w's, 0 where there are no
    styles; `noise` has the shape of each layer's, [1, height, width].
    """

    latent_shape: tuple[int, ...]
    classes: int = 0
    layers: int = 0
    width: int = 0
    noise: tuple[tuple[int, ...], ...] = ()
    has_mean: bool = False
    has_stored_noise: bool = False

    @property
    def constant_noise(self) -> tuple[Noise, ...]:
        """The noise that is the same for every image: what the proof can hold."""
        if not self.noise:
            return ()
        return ("zero", "fixed") if self.has_stored_noise else ("zero",)

    def style(self, psi: float | None, cutoff: int | None, mix: Mix | None, noise: Noise | None) -> Style:
        """Check what `Gan.generate` was asked for beside latents. InputError where it does not fit."""
        asked = {"psi": psi, "cutoff": cutoff, "mix": mix, "noise": noise}
        given = [name for name, value in asked.items() if value is not None and (name != "noise" or not self.noise)]
        if given and not self.layers:
            raise InputError(f"{given[0]} needs the graphs mapping and synthesis; this bundle has only generator")
        if psi is not None and not self.has_mean:
            raise InputError("psi needs the mean latent, and this bundle holds none; export the model again")
        if psi is not None and not np.isfinite(psi):
            raise InputError(f"psi is {psi}; it must be finite: 1 changes nothing, 0 gives the mean image")
        if cutoff is not None and (psi is None or not 0 <= cutoff <= self.layers):
            raise InputError(f"cutoff is {cutoff}; it goes with psi, and counts layers: 0 to {self.layers}")
        other, layer = (None, 0) if mix is None else self._mix(mix)
        mode = self._noise_mode(noise)
        return Style(1.0 if psi is None else float(psi), self.layers if cutoff is None else cutoff, other, layer, mode)

    def _mix(self, mix: Any) -> tuple[Floats, int]:
        if not isinstance(mix, tuple | list) or len(mix) != 2 or not is_whole(mix[1]):
            raise InputError("mix must be (seed or latents, layer)")
        source, layer = mix
        if not 0 < layer < self.layers:
            raise InputError(f"mix begins at layer {layer}; there are {self.layers}: give 1 to {self.layers - 1}")
        if is_whole(source):
            return normal(seeds_for(1, int(source)), self.latent_shape), int(layer)
        return self._latents("mix", source), int(layer)

    def _noise_mode(self, noise: Noise | None) -> Noise:
        if noise is None:
            return "fixed" if self.has_stored_noise else "seeded"
        if noise not in ("fixed", "seeded", "zero"):
            raise InputError(f"noise is {noise!r}; it is fixed, seeded or zero")
        if not self.noise:
            raise InputError("noise: this model takes none")
        if noise == "fixed" and not self.has_stored_noise:
            raise InputError("noise is fixed, but this bundle stores none; use seeded or zero")
        return noise

    def batch(self, count: int | None, seed: Any, class_ids: Any, latents: Any, w: Any, style: Style) -> Batch:
        """Put together what the images are made from. InputError where it does not fit, or there are other numbers of it."""
        if latents is not None and w is not None:
            raise InputError("give latents or w, not both")
        z = None if latents is None else self._latents("latents", latents)
        styles = None if w is None else self._styles(w, count or 1, class_ids, style)
        brought = z if z is not None else styles
        total = count if count is not None else _how_many(brought, seed, class_ids, style.other)
        if brought is not None and len(brought) != total:
            raise InputError(f"count is {total}, but there are {len(brought)} {'latents' if w is None else 'w'}")
        if style.other is not None and len(style.other) not in (1, total):
            raise InputError(f"mix brings {len(style.other)} latents for {total} images; give one, or one for each")
        ids = None if w is not None else class_ids_for(class_ids, total, self.classes)
        return Batch(seeds_for(total, seed), z, styles, ids, style)

    def _latents(self, name: str, given: Any) -> Floats:
        return checked(name, given, ("image", *self.latent_shape))

    def _styles(self, given: Any, count: int, class_ids: Any, style: Style) -> Floats:
        if not self.layers:
            raise InputError("w needs the graphs mapping and synthesis; this bundle has only generator")
        if class_ids is not None or (self.classes and style.other is not None):
            raise InputError("class_ids do not go with w, nor does mix in a conditional model: the class is in w already")
        w = checked("w", given, (self.width,), ("image", self.width), ("image", self.layers, self.width))
        return np.repeat(w[None], count, axis=0) if w.ndim == 1 else w


def _how_many(brought: Floats | None, *lists: Any) -> int:
    """As many images as there are of what comes in numbers; those of one are for all."""
    if brought is not None:
        return len(brought)
    return max([1, *(len(given) for given in lists if isinstance(given, Sequence | np.ndarray))])
