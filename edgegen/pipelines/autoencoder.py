"""The two halves of an autoencoder: any number of images, of any size, in tiles where they are larger than a graph takes."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError
from edgegen.pipelines.batches import BatchedGraph
from edgegen.pipelines.images import PixelRange, check_numbers
from edgegen.pipelines.latents import Floats
from edgegen.pipelines.tiling import RunTile, Tiling, strips, tiled
from edgegen.tensors import Tensor


@dataclass(frozen=True)
class Cut:
    """How large a run may be, None for as large as the graphs were exported for.

    `tile` is the largest side of a tile and `overlap` what neighbours share (a quarter of a tile if None), in pixels of the
    image; `batch_size` is how many images run at once.
    """

    tile: int | None = None
    overlap: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Raise InputError for what is no whole number."""
        check_numbers(tile=self.tile, overlap=self.overlap, batch_size=self.batch_size)

    def tiling(self, sides: tuple[int, int | None], scale: int, step: int) -> Tiling | None:
        """How to cut what a graph takes; None where nothing bounds its sides, and no tile was asked for.

        Args:
            sides: the least and the most of a side, in steps of the latent.
            scale: pixels for each step of the latent.
            step: what the graph takes for each step of the latent: pixels, or the steps themselves (1).

        Raises:
            InputError: a tile that the graph does not take, or an overlap that is too large for it.
        """
        least, most = sides
        size = most if self.tile is None else self.tile // scale
        if size is None:
            if self.overlap is not None:
                raise InputError(f"overlap is {self.overlap}, but nothing is cut: give tile with it")
            return None
        if not max(least, 1) <= size <= (most or size):
            upper = "or more" if most is None else f"to {most * scale}"
            raise InputError(f"tile is {self.tile}; it must be {max(least, 1) * scale} {upper} pixels, as was exported")
        if self.overlap is not None and not 0 <= self.overlap <= size // 2 * scale:
            raise InputError(f"overlap is {self.overlap}; for tiles of {size * scale} pixels it is 0 to {size // 2 * scale}")
        shared = step * (size // 4 if self.overlap is None else -(-self.overlap // scale))
        return Tiling(size * step, shared, shared, multiple=step, least=max(least, 1) * step)


WHOLE = Cut()


@dataclass(frozen=True)
class Encoder:
    """The graph image (, class_ids) -> mean, log_variance; `scale` pixels for each step of the latent, 0: it has no sides."""

    graph: BatchedGraph
    scale: int

    def moments(self, images: Floats, ids: Tensor | None = None, cut: Cut = WHOLE) -> tuple[Floats, Floats | None]:
        """Mean and log-variance, as the graph gives them, of float32 [image, channel, height, width].

        Sides must be multiples of the scale. There is no variance where the model is a plain autoencoder.
        """
        names = [name for name in ("mean", "log_variance") if name in self.graph.session.outputs]

        def run(part: Tensor) -> Tensor:
            made = self.graph.run(fed("image", part, ids), cut.batch_size)
            return np.concatenate([made[name] for name in names], axis=1) if len(names) > 1 else made[names[0]]

        moments = _tiled(run, images, self._tiling(cut), Fraction(1, max(self.scale, 1)))
        channels = moments.shape[1] // len(names)
        return moments[:, :channels], moments[:, channels:] if len(names) > 1 else None

    def check_sides(self, images: Floats, *, cuts: bool) -> None:
        """InputError, in pixels, where images are too small for the graph, or too large and cannot go in tiles (`cuts`)."""
        height, width = images.shape[2:]
        bounds = {"width": self.graph.bounds("image", 3), "height": self.graph.bounds("image", 2)}
        for size, known in ((width, bounds["width"]), (height, bounds["height"])):
            if known is not None and (size < known.min or (size > known.max and not cuts)):
                wanted = " x ".join("any" if known is None else str(known) for known in bounds.values())
                larger = ", and larger ones in tiles" if cuts else ""
                raise InputError(f"the image is {width} x {height}; this model takes {wanted}{larger}")

    def _tiling(self, cut: Cut) -> Tiling | None:
        if not self.scale:
            return None
        least, most = self.graph.sides("image")
        return cut.tiling((-(-least // self.scale), most and most // self.scale), self.scale, self.scale)


@dataclass(frozen=True)
class Decoder:
    """The graph latent (or codes) (, class_ids) -> image; `name` is its input's, `scale` as the encoder's."""

    graph: BatchedGraph
    scale: int
    pixels: PixelRange
    name: str = "latent"

    def decode(self, latents: Tensor, ids: Tensor | None = None, cut: Cut = WHOLE) -> NDArray[np.uint8]:
        """Images uint8 [image, height, width, channel] of latents [image, channel, h, w] or [image, ...], or of codes.

        Raises:
            InputError: a cut that does not fit, see `Cut`.
            BackendError: the model gives what is not finite.
        """
        tiling = self.tiling(cut)
        parts = self.graph.batches(len(latents), cut.batch_size)
        return np.concatenate([self._part(latents[part], None if ids is None else ids[part], tiling) for part in parts])

    def floats(self, latents: Tensor, ids: Tensor | None = None) -> Floats:
        """What the graph gives, in one piece."""
        return self.graph.run(fed(self.name, latents, ids))["image"]

    def tiling(self, cut: Cut) -> Tiling | None:
        """How latents are cut; None where they are not. InputError as for `decode`."""
        if self.scale:
            return cut.tiling(self.graph.sides(self.name), self.scale, 1)
        asked = {"tile": cut.tile, "overlap": cut.overlap}
        for name, value in asked.items():
            if value is not None:
                raise InputError(f"{name} is {value}, but this model's latent has no sides to cut")
        return None

    def _part(self, latents: Tensor, ids: Tensor | None, tiling: Tiling | None) -> NDArray[np.uint8]:
        """Of a batch that fits."""
        if tiling is None or max(latents.shape[-2:]) <= tiling.tile:
            return self.pixels.to_uint8(self.floats(latents, ids))
        has_channels = latents.ndim == 4  # codes have none

        def run(tile: Tensor) -> Tensor:
            return self.floats(tile if has_channels else tile[:, 0], ids)

        rows = strips(run, latents if has_channels else latents[:, None], tiling, Fraction(self.scale))
        return np.concatenate([self.pixels.to_uint8(row) for row in rows], axis=1)  # a strip at a time is held in floats


def _tiled(run: RunTile, images: Tensor, tiling: Tiling | None, scale: Fraction) -> Tensor:
    if tiling is None or max(images.shape[-2:]) <= tiling.tile:
        return run(images)
    return tiled(run, images, tiling, scale)


def fed(name: str, array: Tensor, ids: Tensor | None) -> dict[str, Tensor]:
    """One tensor, and the classes where there are some."""
    return {name: array} if ids is None else {name: array, "class_ids": ids}
