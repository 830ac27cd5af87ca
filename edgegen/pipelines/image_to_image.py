"""Networks that turn images into images: super-resolution, translation; in tiles where an image is large."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from edgegen.backends.base import Session
from edgegen.errors import BundleError, InputError
from edgegen.pipelines.batches import BatchedGraph
from edgegen.pipelines.gan_options import GanSettings
from edgegen.pipelines.images import Images, check_numbers, pixel_batch
from edgegen.pipelines.tiling import Ramp, Tiling, padded, pieces, strips, tiled, up
from edgegen.tensors import Axis, Tensor, Tensors

_log = logging.getLogger("edgegen")

BLEND = 16  # input pixels of the ramp between two tiles, unless asked for otherwise
MOST_SIDE = 512  # of a tile, where the graph names no limit


class Translator:
    """The graph `translator`: `image` float32 [batch, channel, height, width] -> `image_out`, `settings.scale` times as large.

    Args:
        session: of the graph; the owner closes it.
        settings: of the bundle.
        axes: bounds of the graph's named axes.
    """

    def __init__(self, session: Session, settings: GanSettings, axes: Mapping[str, Axis] | None = None) -> None:
        image = session.inputs.get("image")
        if set(session.inputs) != {"image"} or "image_out" not in session.outputs or image is None or len(image.axes) != 4:
            raise BundleError(
                f"a translator takes image and gives image_out; this one takes {list(map(str, session.inputs.values()))}"
            )
        if not isinstance(image.axes[1], int):
            raise BundleError(f"a translator takes images of so many channels; this one takes {image}")
        self.graph, self.settings = BatchedGraph(session, axes or {}), settings
        self.channels, self.scale = image.axes[1], Fraction(*settings.scale)
        height, width = (self._sides(place) for place in (2, 3))
        self.least, self.most = (height[0], width[0]), (height[1], width[1])

    def _sides(self, place: int) -> tuple[int, int]:
        """Least and most of a side, in whole multiples."""
        axis = self.graph.session.inputs["image"].axes[place]
        bounds = self.graph.axes.get(axis, Axis(1, MOST_SIDE, MOST_SIDE)) if isinstance(axis, str) else Axis(axis, axis, axis)
        multiple = self.settings.multiple
        least, most = up(bounds.min, multiple), bounds.max // multiple * multiple
        if not 0 < least <= most:
            raise BundleError(f"the translator's sides are {least} to {most}, in multiples of {multiple}: none is allowed")
        return least, most

    def translate(
        self,
        pixels: NDArray[np.uint8],
        *,
        tile: int | None = None,
        overlap: int | None = None,
        blend: int | None = None,
        ramp: Ramp = "cosine",
        progress: Callable[[int, int], None] | None = None,
        deadline_s: float | None = None,
    ) -> Images:
        """Change images. What is too large is cut into tiles (see `edgegen.pipelines.tiling`), what is too small is reflected.

        Args:
            pixels: uint8 [image, height, width, channel], or one without the first axis. Grey becomes RGB for a model of
                RGB; an alpha channel is dropped where it is opaque, and refused where it is not.
            tile: the largest side of a tile in input pixels: smaller ones need less memory. None: as large as was exported for.
            overlap: how many input pixels neighbours share. None: what makes seams vanish (twice the receptive field and the
                ramp) where it is known and fits, else a quarter of a tile.
            blend: how wide the ramp between neighbours is, in input pixels: if None, 16, or what the overlap leaves.
            ramp: its shape.
            progress: called with (tiles done, all).
            deadline_s: no tile begins later; the images that are finished are returned.

        Returns:
            uint8 [image, height * scale, width * scale, channel]. Joined tiles are the image in one piece to within one grey
            level (float32 sums in another order) where the overlap is at least twice the receptive field and the ramp; else all
            that lies that far from every seam.

        Raises:
            InputError: an array that is no image or has other channels; a tile or an overlap that cannot be; no image was
                finished at the deadline.
        """
        check_numbers(tile=tile, overlap=overlap, blend=blend, deadline_s=deadline_s)
        images = pixel_batch(pixels, self.channels).transpose(0, 3, 1, 2)
        height, width = images.shape[2:]
        whole = padded(images, self.least, self.settings.multiple)
        tilings = self._tilings(tile, overlap, blend, ramp)
        down, across = (pieces(side, tiling, self.scale) for side, tiling in zip(whole.shape[2:], tilings, strict=True))
        if self.settings.receptive_field is None and len(down) * len(across) > 1:
            _log.warning(
                "%d x %d tiles may differ from an image in one piece, the larger the less: a pixel of this model depends on "
                "all of the image (attention, instance normalization), or how far it looks is not known",
                len(down),
                len(across),
            )
        clock = _Clock(len(images) * len(down) * len(across), progress, deadline_s)
        made = []
        for index in range(len(images)):
            rows = strips(self._run_pixels(clock), whole[index : index + 1], tilings[0], self.scale, across=tilings[1])
            try:
                made.append(np.concatenate([self.settings.pixels.to_uint8(row) for row in rows], axis=1))
            except _LateError:
                break
        if not made:
            raise InputError(f"deadline_s is {deadline_s:g}: no image was finished by then; give more time, or smaller images")
        result = np.concatenate(made)[:, : math.ceil(height * self.scale), : math.ceil(width * self.scale)]
        said = {"tiles": f"{len(down)} x {len(across)}", "scale": str(self.scale)}
        if len(made) < len(images):
            said["stopped"] = "deadline"
        return Images(np.ascontiguousarray(result), (), said)

    def replay(self, inputs: Tensors) -> Iterator[tuple[str, Tensor]]:
        """The proof's tensors: `image_out` of `image` float32, and again from tiles where there is `tile`."""
        yield "image_out", self._run(inputs["image"])
        if "tile" in inputs:
            tile, overlap, blend = (int(inputs[name].item()) for name in ("tile", "overlap", "blend"))
            cut = self._tilings(tile, overlap, blend, "cosine")[0]
            yield "image_out.tiled", tiled(self._run, inputs["image"], cut, self.scale)

    def _tilings(self, tile: int | None, overlap: int | None, blend: int | None, ramp: Ramp) -> list[Tiling]:
        """How height and width are cut."""
        return [self._tiling(place, tile, overlap, blend, ramp) for place in (0, 1)]

    def _tiling(self, place: int, tile: int | None, overlap: int | None, blend: int | None, ramp: Ramp) -> Tiling:
        least, most, multiple = self.least[place], self.most[place], self.settings.multiple
        side = most if tile is None else tile // multiple * multiple
        if not least <= side <= most:
            sides = Axis(least, most, most, multiple)
            raise InputError(f"tile is {tile}; this model was exported for sides of {sides}")
        reach = self.settings.receptive_field
        if overlap is None:
            wanted = side // 4 if reach is None else 2 * reach + (BLEND if blend is None else blend)
            overlap = min(up(wanted, multiple), side // 2 // multiple * multiple)
        if blend is None:
            # A narrow ramp between pixels that are right is better than a wide one between pixels that are not.
            room = overlap - 2 * (reach or 0)
            blend = min(BLEND, room if room > 0 else overlap)
        return Tiling(side, overlap, blend, ramp, multiple, least)

    def _run_pixels(self, clock: "_Clock") -> Callable[[Tensor], Tensor]:
        """Runs a tile of uint8 pixels, and tells that it did."""

        def run(tile: Tensor) -> Tensor:
            clock.begin()
            made = self._run(self.settings.pixels.from_uint8(tile.transpose(0, 2, 3, 1)))
            clock.done()
            return made

        return run

    def _run(self, image: Tensor) -> Tensor:
        return self.graph.run({"image": image})["image_out"]


class _LateError(Exception):
    """The deadline has passed."""


class _Clock:
    """Counts tiles, and stops before one that would begin too late."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None, deadline_s: float | None) -> None:
        self._total, self._done, self._progress = total, 0, progress
        self._end = None if deadline_s is None else time.perf_counter() + deadline_s

    def begin(self) -> None:
        if self._end is not None and time.perf_counter() > self._end:
            raise _LateError

    def done(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
