"""Images larger than memory: cut into overlapping tiles, run tile by tile, and blended where the tiles meet.

An output pixel of a convolutional network depends only on the input pixels within its receptive field. Two neighbouring tiles
are joined in the middle of their overlap, over a ramp as wide as `blend`: so every pixel that is used lies at least
`(overlap - blend) / 2` input pixels from a tile's inner edge. Where that is at least the radius of the receptive field, the
joined image is the one that the network would give in one piece; where it is less, the ramp hides the seam.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError
from edgegen.tensors import Tensor

Ramp = Literal["cosine", "linear"]
RunTile = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tiling:
    """How images are cut. All lengths are in pixels of the input.

    Attributes:
        tile: the largest side of a tile.
        overlap: the least that neighbours share; at most half a tile.
        blend: how wide the ramp between neighbours is; at most `overlap`. 0: a hard cut.
        ramp: its shape.
        multiple: tiles begin and end at multiples of it; what a network that halves its input twice needs is 4.
        least: the smallest side of a tile; `tile` for a network of one fixed size. Tiles are no larger than their number asks.

    Raises:
        InputError: on construction, where these do not go together.
    """

    tile: int
    overlap: int
    blend: int
    ramp: Ramp = "cosine"
    multiple: int = 1
    least: int = 1

    def __post_init__(self) -> None:
        if self.multiple < 1 or self.tile < self.multiple or self.tile % self.multiple:
            raise InputError(f"tile is {self.tile}; it must be a multiple of {self.multiple}, and above 0")
        if not 0 <= 2 * self._overlap <= self.tile:
            steps = f", in steps of {self.multiple}" if self.multiple > 1 else ""
            raise InputError(f"overlap is {self.overlap}; for tiles of {self.tile} it is 0 to {self.tile // 2}{steps}")
        if not 0 <= self.blend <= self.overlap:
            raise InputError(f"blend is {self.blend}; it must be 0 to the overlap of {self.overlap}")
        if self.ramp not in ("cosine", "linear"):
            raise InputError(f"ramp is {self.ramp!r}; it must be cosine or linear")

    @property
    def _overlap(self) -> int:
        return up(self.overlap, self.multiple)

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Where tiles begin and end along an axis: all of one size, spread evenly; one where `length` fits in a tile.

        Raises InputError where `length` is not a multiple of `multiple`: pad it first (`padded`).
        """
        if length % self.multiple or length < 1:
            raise InputError(f"a side of {length} is not a multiple of {self.multiple}")
        if length <= self.tile:
            return [(0, length)]
        units, tile, overlap = (n // self.multiple for n in (length, self.tile, self._overlap))
        steps = math.ceil((units - tile) / (tile - overlap))
        tile = max(math.ceil((units + steps * overlap) / (steps + 1)), math.ceil(self.least / self.multiple))
        starts = [i * (units - tile) // steps * self.multiple for i in range(steps + 1)]
        return [(start, start + tile * self.multiple) for start in starts]


class Piece(NamedTuple):
    """One tile along one axis: the span that is read, of the input; the span that is used, of the output, and its weights."""

    start: int
    stop: int
    first: int
    last: int
    weights: NDArray[np.float32]  # [last - first]; with the neighbours' they sum to 1


def pieces(length: int, tiling: Tiling, scale: Fraction = Fraction(1)) -> list[Piece]:
    """The tiles along an axis of `length` input pixels; the output has `scale` as many.

    Raises InputError where a tile would not give whole output pixels.
    """
    spans = tiling.spans(length)
    if any((edge * scale).denominator != 1 for span in spans for edge in span):
        raise InputError(f"tiles at multiples of {tiling.multiple} do not give whole pixels at scale {scale}")
    stride = min((after[0] - before[0] for before, after in itertools.pairwise(spans)), default=0)
    width = math.floor(min(tiling.blend, stride) * scale)  # ramps of one tile must not meet
    ramps = [math.floor((before[1] + after[0]) * scale / 2) - width // 2 for before, after in itertools.pairwise(spans)]
    result = []
    for index, (start, stop) in enumerate(spans):
        first = ramps[index - 1] if index else 0
        last = ramps[index] + width if index < len(ramps) else int(length * scale)
        weights = np.ones(last - first, np.float32)
        rise = _rise(width, tiling.ramp)
        if index:
            weights[:width] = rise
        if index < len(ramps):
            weights[last - first - width :] = 1 - rise
        result.append(Piece(start, stop, first, last, weights))
    return result


def strips(
    run: RunTile, images: Tensor, tiling: Tiling, scale: Fraction = Fraction(1), *, across: Tiling | None = None
) -> Iterator[NDArray[np.float32]]:
    """Run `run` tile by tile; give the finished rows from top to bottom, so that no more than a strip is held in float32.

    Args:
        run: takes [image, channel, height, width], gives float32 [image, channel, height * scale, width * scale]; its result
            is used up before the next call.
        images: [image, channel, height, width], of any dtype; sides must be multiples of `tiling.multiple`.
        tiling: how to cut.
        scale: output pixels for each input pixel.
        across: how to cut the width, where `tiling` holds for the height only.

    Yields:
        float32 [image, channel, rows, width * scale]; all rows together are height * scale.

    Raises:
        InputError: the sides do not fit, or `run` gives another size.
    """
    columns = pieces(images.shape[3], across or tiling, scale)
    rows = pieces(images.shape[2], tiling, scale)
    pending: NDArray[np.float32] | None = None
    for index, row in enumerate(rows):
        strip = _strip(run, images, row, columns, scale)
        if pending is not None:
            strip[:, :, : pending.shape[2]] += pending
        done = rows[index + 1].first if index + 1 < len(rows) else row.last
        pending = strip[:, :, done - row.first :].copy()
        yield strip[:, :, : done - row.first]


def _strip(run: RunTile, images: Tensor, row: Piece, columns: list[Piece], scale: Fraction) -> NDArray[np.float32]:
    """One row of tiles, joined from left to right and weighted from top to bottom."""
    strip = np.zeros((0, 0, 0, 0), np.float32)
    top = int(row.start * scale)
    for column in columns:
        made = run(images[:, :, row.start : row.stop, column.start : column.stop])
        wanted = (int((row.stop - row.start) * scale), int((column.stop - column.start) * scale))
        if made.ndim != 4 or made.shape[2:] != wanted:
            raise InputError(f"a tile gave {list(made.shape)}; at scale {scale} its height and width must be {list(wanted)}")
        if not strip.size:
            strip = np.zeros((*made.shape[:2], row.last - row.first, columns[-1].last), np.float32)
        left = int(column.start * scale)
        used = made[:, :, row.first - top : row.last - top, column.first - left : column.last - left]
        strip[:, :, :, column.first : column.last] += used * column.weights * row.weights[:, None]
    return strip


def tiled(run: RunTile, images: Tensor, tiling: Tiling, scale: Fraction = Fraction(1)) -> NDArray[np.float32]:
    """As `strips`, in one array: float32 [image, channel, height * scale, width * scale]."""
    return np.concatenate(list(strips(run, images, tiling, scale)), axis=2)


def padded(images: Tensor, least: int | tuple[int, int], multiple: int = 1) -> Tensor:
    """Reflect [image, channel, height, width] beyond its right and lower edge until both sides are allowed.

    Args:
        images: of any dtype.
        least: the smallest allowed side, or height and width.
        multiple: sides become multiples of it.

    Returns:
        The same array where nothing is missing.
    """
    sides = least if isinstance(least, tuple) else (least, least)
    missing = [up(max(size, side), multiple) - size for size, side in zip(images.shape[2:], sides, strict=True)]
    if not any(missing):
        return images
    return np.pad(images, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), mode="reflect")


def up(size: int, multiple: int) -> int:
    """The multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def _rise(width: int, ramp: Ramp) -> NDArray[np.float32]:
    """From 0 to 1, at the middle of each of `width` pixels."""
    share = (np.arange(width) + 0.5) / max(width, 1)
    return np.asarray(share if ramp == "linear" else 0.5 - 0.5 * np.cos(np.pi * share), np.float32)
