"""Real images to compare with: of a folder, of an .npz, or those that a recipe holds out."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError
from edgegen.media import drawn, read_folder

_MAX_NPZ_BYTES = 8 << 30  # of one array, unpacked


@dataclass(frozen=True)
class Real:
    """Real images.

    Attributes:
        images: uint8 [image, height, width, channel].
        labels: int64 [image], the class of each; None where nobody told.
        said: where they are from, for people.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    said: str


def read_real(path: Path, most: int, *, learned_from: bool = False) -> Real:
    """At most `most` images, drawn from all that are there: always the same ones, in their order.

    Args:
        path: a folder of images of one size; an .npz with `images`, uint8 [image, height, width(, channel)], and `labels`, int
            [image], where there are classes; or a recipe that can be trained, which is run.
        most: how many.
        learned_from: of a recipe, the images that it learns from instead of those that it holds out.

    Raises:
        InputError: there are none, or they are not such. SourceError: the recipe's data cannot be had.
    """
    if path.suffix == ".py":
        images, labels, what = _of_recipe(path, learned_from=learned_from)
        said = f"{what} of {path.name}"
    elif path.is_dir():
        return Real(read_folder(path, most=most), None, str(path))
    else:
        (images, labels), said = _of_npz(path), str(path)
    chosen = drawn(len(images), most)
    return Real(images[chosen], None if labels is None else labels[chosen], said)


def _of_recipe(path: Path, *, learned_from: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, str]:
    from edgegen.train.recipe import load_training

    training = load_training(path)[1]
    source = training.data if learned_from else training.held_out
    if source is None:
        raise InputError(f"{path} holds no images out: its TRAINING has no `held_out`; give a folder or an .npz")
    data = source()
    return data.images, data.labels, "training images" if learned_from else "held-out images"


def _of_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise InputError(f'no real images at {path}; give a folder of images, an .npz with "images", or a recipe')
    try:
        with zipfile.ZipFile(path) as archive:
            if max(entry.file_size for entry in archive.infolist()) > _MAX_NPZ_BYTES:
                raise InputError(f"{path}: an array has more than {_MAX_NPZ_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            labels = arrays.get("labels")
    except KeyError:
        raise InputError(f'{path} has no array "images"') from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4) or not images.size:
        wanted = "uint8 [image, height, width, channel]"
        raise InputError(f"{path}: images are {images.dtype}{list(images.shape)}; they must be {wanted}")
    if labels is not None and (labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise InputError(f"{path}: labels are {labels.dtype}{list(labels.shape)}; they must be int [image]")
    return images, None if labels is None else labels.astype(np.int64)
