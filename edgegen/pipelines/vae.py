"""Variational autoencoders: images to latents and back, and new images from the prior; and those whose latents are codes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.backends.base import Session
from edgegen.errors import BundleError, InputError
from edgegen.pipelines.autoencoder import Cut, Decoder, Encoder, fed
from edgegen.pipelines.base import OpenSession, Owner, opened, settings_of
from edgegen.pipelines.batches import BatchedGraph
from edgegen.pipelines.images import (
    Images,
    PixelRange,
    check_numbers,
    check_room,
    class_ids_for,
    normal,
    pixel_batch,
    seeds_for,
)
from edgegen.pipelines.latents import Floats, checked, linear, spherical
from edgegen.pipelines.tiling import padded
from edgegen.ranges import is_whole
from edgegen.tensors import Axis, Tensor, Tensors

if TYPE_CHECKING:
    from edgegen.bundle import Bundle

Codes = NDArray[np.int64]
OnProgress = Callable[[int, int], None]  # (images that are done, all)
_POSTERIOR, _PRIOR = 1, 0  # streams of noise
_LEAST_LOG_VARIANCE, _MOST_LOG_VARIANCE = -30.0, 20.0  # as diffusers bounds it: its exponential stays a float32


class VaeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest's `settings` hold for a VAE.

    Attributes:
        pixels: the numbers for black and white, of what goes in and what comes out.
        classes: how many there are, where the graphs take `class_ids`.
        codes: how many entries the codebook has, where the latent is codes; 0 for a latent of numbers.
        scale: pixels for each step along a side of the latent; 0 where the latent has no sides.
        scaling_factor, shift_factor: latents are (what the encoder gives - shift) * scaling, and the decoder gets the reverse:
            so that they are about standard normal.
    """

    pixels: PixelRange = PixelRange()
    classes: int = 0
    codes: int = 0
    scale: int = 0
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.classes < 0 or self.codes < 0 or self.scale < 0:
            raise ValueError("classes, codes and scale cannot be negative")
        if not (np.isfinite(self.scaling_factor) and np.isfinite(self.shift_factor) and self.scaling_factor > 0):
            raise ValueError(f"scaling_factor is {self.scaling_factor}; it must be above 0, and the shift finite")


@dataclass(frozen=True)
class Posterior:
    """What an encoder makes of images: float32 [image, ...]; `log_variance` is None where the model is a plain autoencoder."""

    mean: Floats
    log_variance: Floats | None

    def sample(self, seed: int | Sequence[int]) -> Floats:
        """Draw latents [image, ...]; InputError where there is no variance."""
        if self.log_variance is None:
            raise InputError("this model is a plain autoencoder: its latents have no variance to draw with; use the mean")
        noise = normal(seeds_for(len(self.mean), seed), self.mean.shape[1:], stream=_POSTERIOR)
        return drawn(self.mean, self.log_variance, noise)


def drawn(mean: Floats, log_variance: Floats, noise: Floats) -> Floats:
    """The reparameterization trick (Kingma and Welling 2014, section 2.4); all are [image, ...]."""
    bounded = np.clip(log_variance, _LEAST_LOG_VARIANCE, _MOST_LOG_VARIANCE)
    return np.asarray(mean + np.exp(0.5 * bounded) * noise, np.float32)


class Vae(Owner):
    """The graph `decoder`, and `encoder` where there is one.

    Lifetime: owns its sessions and its bundle. Threads: several may use one pipeline; runs of a graph take turns.

    Args:
        sessions: by graph name.
        settings: of the bundle.
        axes: bounds of the named axes, by graph; nothing is split or tiled where they are not given.
    """

    def __init__(
        self, sessions: Mapping[str, Session], settings: VaeSettings, axes: Mapping[str, Mapping[str, Axis]] | None = None
    ) -> None:
        self.settings = settings
        self.graphs = {name: BatchedGraph(session, (axes or {}).get(name, {})) for name, session in sessions.items()}
        self.latent_name = "codes" if settings.codes else "latent"
        inputs = sessions["decoder"].inputs
        if self.latent_name not in inputs or ("class_ids" in inputs) != (settings.classes > 0):
            raise BundleError(f"the decoder takes {sorted(inputs)}, which is not what the settings say; export the model again")
        self.latent_axes = inputs[self.latent_name].axes[1:]
        self.is_spatial = settings.scale > 0
        if self.is_spatial and len(self.latent_axes) != (2 if settings.codes else 3):
            raise BundleError(f"a latent with sides is not {inputs[self.latent_name]}; export the model again")
        self._decoder = Decoder(self.graphs["decoder"], settings.scale, settings.pixels, self.latent_name)

    @classmethod
    def from_bundle(cls, bundle: "Bundle", open_session: OpenSession) -> "Vae":
        """Read the settings and open the graphs. BundleError where they do not fit."""
        settings = settings_of(bundle, VaeSettings, "a VAE")
        graphs = bundle.manifest.graphs
        if set(graphs) not in ({"decoder"}, {"encoder", "decoder"}):
            raise BundleError(f"a VAE has the graphs encoder and decoder, or decoder alone; here are {sorted(graphs)}")
        with opened(graphs, open_session) as sessions:
            pipeline = cls(sessions, settings, {name: graph.axes for name, graph in graphs.items()})
        return pipeline.adopt(bundle)

    def generate(
        self,
        *,
        count: int | None = None,
        seed: int | Sequence[int] | None = None,
        class_ids: int | Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        progress: OnProgress | None = None,
        deadline_s: float | None = None,
    ) -> Images:
        """Make images of latents drawn from the standard normal prior.

        Args:
            count: how many; if None, as many as there are seeds or class ids, or one.
            seed: see `Images`.
            class_ids: of all images, or of each; a conditional model needs it.
            height: in pixels; the size that was exported as the usual one if None.
            width: as `height`.
            tile: the largest side of a tile, in pixels, for a latent with sides: less needs less memory. Images larger than was
                exported always go in tiles.
            overlap: how many pixels neighbouring tiles share; a quarter of a tile if None.
            batch_size: at most so many images run at once; as many as were exported for, if None.
            progress: called with (images done, all) after each batch.
            deadline_s: no batch begins later; the images that are finished are returned, at least one batch.

        Raises:
            InputError: an option that does not fit, or a model whose latents are codes: it has no prior of its own.
            BackendError: the model gives what is not finite.
        """
        if self.settings.codes:
            raise InputError("this model's latents are codes, which have no prior of their own: decode codes, or reconstruct")
        check_numbers(count=count, height=height, width=width, deadline_s=deadline_s)
        started = time.perf_counter()
        if count is None:
            count = next((len(given) for given in (seed, class_ids) if isinstance(given, Sequence | np.ndarray)), 1)
        seeds, shape = seeds_for(count, seed), self._latent_shape(height, width)
        if self.is_spatial:
            check_room(count, shape[-2] * self.settings.scale, shape[-1] * self.settings.scale, 3)
        ids = class_ids_for(class_ids, count, self.settings.classes)
        cut = Cut(tile, overlap, batch_size)
        made: list[NDArray[np.uint8]] = []
        for part in self.graphs["decoder"].batches(count, cut.batch_size):
            if made and deadline_s is not None and time.perf_counter() - started > deadline_s:
                break
            latents = normal(seeds[part], shape, stream=_PRIOR)
            made.append(self._decode(latents, None if ids is None else ids[part], cut))
            if progress is not None:
                progress(min(part.stop, count), count)
        pixels = np.concatenate(made)
        given = {"class_ids": class_ids, "height": height, "width": width}
        return Images(pixels, seeds[: len(pixels)], {name: value for name, value in given.items() if value is not None})

    def encode(
        self,
        pixels: Any,
        *,
        class_ids: int | Sequence[int] | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
    ) -> Posterior | Codes:
        """What the encoder makes of images.

        Args:
            pixels: uint8 [height, width, channel] or [image, height, width, channel]. Sides that the latent's do not divide are
                continued by reflection; images larger than was exported are encoded in tiles, where the latent has sides.
            class_ids: of all images, or of each; a conditional encoder needs it.
            tile: see `generate`; codes are encoded in one piece.
            overlap: likewise.
            batch_size: likewise.

        Returns:
            The posterior of the latents; codes, int64 [image, latent height, latent width], where the latent is codes.

        Raises:
            InputError: no image, a size that cannot be encoded, or no encoder in this bundle.
        """
        return self._encode(pixels, class_ids, Cut(tile, overlap, batch_size))

    def _encode(self, pixels: Any, class_ids: Any, cut: Cut) -> Posterior | Codes:
        encoder = self._encoder()
        batch = pixel_batch(pixels, int(encoder.session.inputs["image"].axes[1]))
        classes = self.settings.classes if "class_ids" in encoder.session.inputs else 0
        ids = class_ids_for(class_ids, len(batch), classes)
        images = self.settings.pixels.from_uint8(batch)
        if self.is_spatial and all(isinstance(axis, str) for axis in encoder.session.inputs["image"].axes[2:]):
            images = padded(images, encoder.sides("image")[0], self.settings.scale)
        half = Encoder(encoder, self.settings.scale)
        half.check_sides(images, cuts=self.is_spatial and not self.settings.codes)
        if self.settings.codes:
            return np.asarray(encoder.run(fed("image", images, ids), cut.batch_size)["codes"], np.int64)
        mean, log_variance = half.moments(images, ids, cut)
        scaling, shift = np.float32(self.settings.scaling_factor), np.float32(self.settings.shift_factor)
        if log_variance is not None:
            log_variance = log_variance + 2 * np.log(scaling)
        return Posterior((mean - shift) * scaling, log_variance)

    def decode(
        self,
        latents: Any,
        *,
        class_ids: int | Sequence[int] | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
    ) -> Images:
        """Images of latents float32 [image, ...], or of codes int64 [image, latent height, latent width].

        Latents larger than was exported are decoded in tiles that overlap and are blended (`edgegen.pipelines.tiling`); `tile`,
        `overlap` and `batch_size` are those of `generate`.

        Raises:
            InputError: latents that do not fit this model, or are not finite.
            BackendError: the model gives what is not finite.
        """
        # Sides may be any, even of a graph of one size: larger ones go in tiles.
        axes = (*self.latent_axes[:-2], "height", "width") if self.is_spatial else self.latent_axes
        z = self._codes(latents) if self.settings.codes else checked("latents", latents, ("image", *axes))
        ids = class_ids_for(class_ids, len(z), self.settings.classes)
        return Images(self._decode(z, ids, Cut(tile, overlap, batch_size)))

    def reconstruct(
        self,
        pixels: Any,
        *,
        class_ids: int | Sequence[int] | None = None,
        seed: int | Sequence[int] | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
    ) -> Images:
        """Encode images and decode them again, through the mean, or where a seed is given through latents drawn with it.

        `pixels` and errors as for `encode`; `tile`, `overlap` and `batch_size` as for `generate`.
        """
        cut = Cut(tile, overlap, batch_size)
        encoded = self._encode(pixels, class_ids if "class_ids" in self._encoder().session.inputs else None, cut)
        if isinstance(encoded, Posterior):
            latents: Tensor = encoded.mean if seed is None else encoded.sample(seed)
        elif seed is not None:
            raise InputError("this model's latents are codes: nothing is drawn, so no seed is taken")
        else:
            latents = encoded
        height, width = np.shape(pixels)[-3:-1]
        made = self._decode(latents, class_ids_for(class_ids, len(latents), self.settings.classes), cut)
        return Images(np.ascontiguousarray(made[:, :height, :width]))

    def interpolate(
        self,
        first: Any,
        last: Any,
        steps: int,
        *,
        class_ids: int | Sequence[int] | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
    ) -> Images:
        """`steps` images on the way from one to the other, both ends included.

        Args:
            first: a seed, or an image uint8 [height, width, channel].
            last: as `first`. Between two seeds the way is along the sphere, else a straight line.
            steps: at least 2.
            class_ids: of all images, or of each; where images are encoded by a conditional encoder, one for all.
            tile: see `generate`.
            overlap: likewise.
            batch_size: likewise.
        """
        if self.settings.codes:
            raise InputError("this model's latents are codes, between which nothing lies")
        check_numbers(steps=steps)
        if steps < 2:
            raise InputError(f"steps is {steps}; from one image to another there are at least 2")
        cut = Cut(tile, overlap, batch_size)
        ends = [self._end(end, class_ids, cut) for end in (first, last)]
        if ends[0].shape != ends[1].shape:
            raise InputError(
                f"the two ends have latents {list(ends[0].shape)} and {list(ends[1].shape)}; give images of one size"
            )
        way = spherical if np.ndim(first) == np.ndim(last) == 0 else linear
        ids = class_ids_for(class_ids, steps, self.settings.classes)
        return Images(self._decode(way(ends[0], ends[1], steps), ids, cut))

    def replay(self, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
        """The proof's tensors, in order.

        Args:
            inputs: `image` and `noise` (and `class_ids`) give mean, log_variance, latent, image; a plain autoencoder has no
                `noise` and gives mean, image. Without an encoder, `latent` gives image. With codes, `image` and PyTorch's own
                `codes` give the share of codes that agree, and the image of PyTorch's: a code is another one where two entries
                are equally near, and then the image would be, too.
        """
        ids = inputs.get("class_ids")
        if self.settings.codes:
            if "encoder" in self.graphs:
                codes = self._encoder().run(self._encoder_feed(inputs["image"], ids))["codes"]
                yield "codes.agreement", np.mean(codes == inputs["codes"], dtype=np.float32).reshape(1)
            latent = inputs["codes"]
        elif "encoder" in self.graphs:
            made = self._encoder().run(self._encoder_feed(inputs["image"], ids))
            yield from made.items()
            latent = made["mean"]
            if "log_variance" in made:
                latent = drawn(made["mean"], made["log_variance"], inputs["noise"])
                yield "latent", latent
        else:
            latent = inputs["latent"]
        yield "image", self.graphs["decoder"].run(fed(self.latent_name, latent, ids))["image"]

    def _encoder(self) -> BatchedGraph:
        if "encoder" not in self.graphs:
            raise InputError("this bundle has no encoder: it makes images from latents only")
        return self.graphs["encoder"]

    def _encoder_feed(self, image: Tensor, ids: Tensor | None) -> dict[str, Tensor]:
        return fed("image", image, ids if "class_ids" in self._encoder().session.inputs else None)

    def _end(self, end: Any, class_ids: Any, cut: Cut) -> Floats:
        """The latent of a seed or of an image."""
        if np.ndim(end) == 0:
            if not is_whole(end):
                raise InputError(f"an end of the way is a seed, or an image uint8 [height, width, channel], not {end!r}")
            shape = self._latent_shape(None, None)
            return normal(seeds_for(1, end), shape).reshape(shape)
        encoded = self._encode(end, class_ids if "class_ids" in self._encoder().session.inputs else None, cut)
        assert isinstance(encoded, Posterior)  # noqa: S101 -- codes were refused
        if len(encoded.mean) != 1:
            raise InputError(f"an end of the way is one image, not {len(encoded.mean)}")
        latent: Floats = encoded.mean[0]
        return latent

    def _decode(self, z: Tensor, ids: Tensor | None, cut: Cut) -> NDArray[np.uint8]:
        """Pixels of latents."""
        if not self.settings.codes:
            z = np.asarray(z / np.float32(self.settings.scaling_factor) + np.float32(self.settings.shift_factor), np.float32)
        return self._decoder.decode(z, ids, cut)

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        """Of one image's latent; a side in pixels, or the usual one."""
        axes, bounds, scale = self.latent_axes, self.graphs["decoder"].axes, self.settings.scale
        usual = [axis if isinstance(axis, int) else bounds[axis].opt if axis in bounds else 1 for axis in axes]
        for place, name, side in ((-2, "height", height), (-1, "width", width)):
            if side is None:
                continue
            if not self.is_spatial:
                raise InputError(f"{name} is {side}, but this model makes images of one size")
            if side < scale or side % scale:
                raise InputError(f"{name} is {side}; it must be a multiple of {scale}")
            known = self.graphs["decoder"].bounds(self.latent_name, place)
            if known is not None and side // scale <= known.max and not known.holds(side // scale):
                sizes = f"{known.times(scale)}, and larger ones in tiles"
                raise InputError(f"{name} is {side}; this model was exported for {sizes}")
            usual[place] = side // scale
        return tuple(usual)

    def _codes(self, given: Any) -> Codes:
        codes, most = np.asarray(given), self.settings.codes - 1
        rank = len(self.latent_axes) + 1
        if not np.issubdtype(codes.dtype, np.integer) or codes.ndim != rank or not codes.size:
            raise InputError(f"codes are int64 with {rank} axes, images first, not {codes.dtype}{list(codes.shape)}")
        if codes.min() < 0 or codes.max() > most:
            raise InputError(f"codes are {codes.min()} to {codes.max()}; this model has 0 to {most}")
        return codes.astype(np.int64)
