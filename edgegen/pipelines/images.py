"""What image pipelines give back, where their noise comes from, and the numbers that a model means by a pixel."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.backends.memory import available_bytes
from edgegen.errors import BackendError, InputError
from edgegen.media import with_channels
from edgegen.ranges import check_kind, check_range, is_whole
from edgegen.tensors import Tensor

if TYPE_CHECKING:
    from edgegen.manifest import Manifest

MAX_SEED = 2**64 - 1
MAX_COUNT = 1 << 16  # all images of a call are in memory
_ALWAYS_THERE = 1 << 28  # what a process has without a look
_REAL = frozenset({"psi", "guidance", "guidance_rescale", "eta", "strength"})  # all others count something


class PixelRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers that a graph gives (or takes) for black and for white: -1 and 1 for most GANs and diffusion models."""

    black: float = -1.0
    white: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.black) and np.isfinite(self.white) and self.black != self.white):
            raise ValueError(f"black is {self.black} and white is {self.white}; they must be finite, and not the same")

    def to_uint8(self, images: Tensor) -> NDArray[np.uint8]:
        """Float [image, channel, height, width] -> uint8 [image, height, width, channel], rounded to the nearest.

        Raises BackendError where a number is not finite: the model, or its precision, is broken.
        """
        scale = (self.white - self.black) / 255.0
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            grey = np.multiply(images, np.float32(1 / scale), dtype=np.float32)
            grey -= np.float32(self.black / scale)
            least, most = grey.min(), grey.max()
        if not (np.isfinite(least) and np.isfinite(most)):
            raise BackendError("the model gave pixels that are not finite; try a higher precision, or other latents")
        if least < 0 or most > 255:
            np.clip(grey, 0, 255, out=grey)
        np.rint(grey, out=grey)
        pixels = np.empty((len(grey), *grey.shape[2:], grey.shape[1]), np.uint8)
        np.copyto(pixels, grey.transpose(0, 2, 3, 1), casting="unsafe")
        return pixels

    def from_uint8(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [image, height, width, channel] -> float32 [image, channel, height, width]."""
        scaled = pixels.astype(np.float32) * np.float32((self.white - self.black) / 255.0) + np.float32(self.black)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


@dataclass(frozen=True)
class Images:
    """Finished images.

    Attributes:
        pixels: uint8 [image, height, width, channel]; 1 channel is grey, 3 are RGB, 4 RGBA.
        seeds: of each image; the same seed gives the same image again, alone or in any batch. Empty where none was used.
        parameters: what they were made with, for a file's metadata.
    """

    pixels: NDArray[np.uint8]
    seeds: tuple[int, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)


def check_numbers(**options: Any) -> None:
    """Raise InputError where an option is given and is no number, or not the kind that it counts in.

    What range it has is the model's business, but for the deadline's.
    """
    for name, value in options.items():
        if name != "deadline_s":
            check_kind(name, value, whole=name not in _REAL)
        elif value is not None:
            check_range(name, value, 0, 1e9)


def draws(manifest: "Manifest") -> bool:
    """Whether a bundle makes images from seeds: it has a graph that begins with no image, and its latents are no codes."""
    inputs = [{spec.name for spec in graph.variants["canonical"].inputs} for graph in manifest.graphs.values()]
    return any("image" not in names for names in inputs) and not manifest.settings.get("codes")


def seeds_for(count: int, seed: int | Sequence[int] | None) -> tuple[int, ...]:
    """One seed for each image: `seed`, `seed` + 1, ...; those given; or random ones.

    Raises InputError where `count` is below 1 or above MAX_COUNT, or seeds are out of range or of another number.
    """
    check_numbers(count=count)
    if count < 1:
        raise InputError(f"count is {count}; it must be at least 1")
    if count > MAX_COUNT:
        raise InputError(f"count is {count}; a call makes at most {MAX_COUNT} images: make them in several, by their seeds")
    if seed is None:
        return tuple(int(s) for s in np.random.default_rng().integers(0, 2**32, count))
    seeds = tuple(seed) if isinstance(seed, Sequence) else (seed,)
    if not all(map(is_whole, seeds)):
        raise InputError(f"seeds are whole numbers, not {_told(seed)}")
    if not isinstance(seed, Sequence):
        seeds = tuple(range(int(seed), int(seed) + count))
    if len(seeds) != count or not all(0 <= s <= MAX_SEED for s in seeds):
        raise InputError(f"seeds are {str(seeds[:4])[:60]}; give one from 0 to 2**64 - 1, or {count} of them")
    return tuple(map(int, seeds))


def check_room(count: int, height: int, width: int, channels: int) -> None:
    """Raise InputError where so many images cannot be in memory at once, as a call's are, before any is made."""
    needed = 2 * count * height * width * channels  # the batches, and the whole that they are joined to
    if needed > _ALWAYS_THERE and (free := available_bytes()) is not None and needed > free:
        size = f"{count} images of {width} x {height} take {needed / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free"
        raise InputError(f"{size}: make fewer, or smaller ones, or make them in several calls, by their seeds")


def class_ids_for(given: Any, count: int, classes: int) -> NDArray[np.int64] | None:
    """The class of each image, int64 [image]; None for a model that knows no classes (`classes` is 0).

    Raises InputError where they are missing, not wanted, of another number, or not from 0 to `classes` - 1.
    """
    if classes == 0:
        if given is not None:
            raise InputError("class_ids: this model knows no classes")
        return None
    wanted = f"this model has {classes} classes: give one or {count} of them, from 0 to {classes - 1}"
    if given is None:
        raise InputError(f"class_ids are missing; {wanted}")
    try:
        ids = np.asarray(given)
    except ValueError:  # lists of several lengths
        raise InputError(f"class_ids are {_told(given)}; {wanted}") from None
    fits = np.issubdtype(ids.dtype, np.integer) and ids.shape in ((), (count,))
    if not fits or ids.min() < 0 or ids.max() >= classes:
        raise InputError(f"class_ids are {_told(given)}; {wanted}")
    return np.broadcast_to(ids.astype(np.int64), (count,))


def _told(value: Any) -> str:
    """A value in few words and on one line, an array by its form."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype}{list(value.shape)}"
    return " ".join(str(value)[:60].split())


def pixel_batch(given: Any, channels: int) -> NDArray[np.uint8]:
    """A user's image or images as uint8 [image, height, width, channel], their channels as the model wants them.

    Raises InputError where they are no uint8 images, or would lose colours or transparency.
    """
    pixels = np.asarray(given)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not pixels.size:
        wanted = "uint8 [height, width, channel], or with an axis of images before them"
        raise InputError(f"images are {wanted}, not {pixels.dtype}{list(pixels.shape)}")
    batch = pixels[None] if pixels.ndim == 3 else pixels
    if batch.shape[3] not in (1, 3, 4):
        raise InputError(f"the images have {batch.shape[3]} channels; there are 1 (grey), 3 (RGB) or 4 (RGBA)")
    if batch.shape[3] == channels:
        return batch
    return np.stack([with_channels(image, channels) for image in batch])


def normal(seeds: Sequence[int], shape: Sequence[int], stream: int = 0) -> NDArray[np.float32]:
    """Standard normal numbers float32 [image, *shape]: each image draws from its own seed (numpy's Philox), alone or not.

    `stream` tells apart what one image draws for different purposes.
    """
    drawn = np.empty((len(seeds), *shape), np.float32)
    for index, seed in enumerate(seeds):
        generator = np.random.Generator(np.random.Philox(key=[seed, stream]))
        generator.standard_normal(dtype=np.float32, out=drawn[index, ...])
    return drawn
