"""How good the images of a bundle are, against real ones: what `edgegen eval` measures."""

import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.backends import AUTO, choose
from edgegen.bench.quality import compare_sets, pixel_features, psnr_db, ssim
from edgegen.errors import InputError
from edgegen.media import read_folder, with_channels
from edgegen.pipelines.images import Images, draws

Pixels = NDArray[np.uint8]

PIXEL_FEATURES = "mean colours of 8x8 cells"
_MAX_NPZ_BYTES = 8 << 30  # of one array, unpacked
_SSIM_SIDE = 11
_NEIGHBOURS = 3
NOTE = (
    "The feature space is {name}, not Inception's: distances compare only with others in the same one, from as many images. "
    "Lower is better for the distances, higher for precision and recall; diversity is to be near the reference's."
)


def evaluate(
    bundle: str | os.PathLike[str],
    reference: Path,
    *,
    features: Path | None = None,
    count: int = 1000,
    seed: int = 0,
    backend: str = AUTO,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compare `count` images of a bundle with as many real ones.

    Args:
        bundle: its path: of a family that generates, or that reconstructs.
        reference: a folder of images of one size, or an .npz with `images`, uint8 [image, height, width(, channel)], and
            `labels` for a model with classes, int [image].
        features: a bundle of the family features; mean colours of 8x8 cells if None, which see little.
        count: images to make, and to take of the reference: as many of both as there are, so that no side is favoured.
        seed: of the first image. A model with classes makes those of the labels, or one after the other where there are none.
        backend: a backend's name, or "auto".
        threads: CPU threads; the default of the backend if None.
        options: of the pipeline's `generate`.
        progress: called with (images made, all) where the pipeline tells.

    Returns:
        One object for JSON: bundle, settings, features, and `sets` (as `compare_sets` says) and `seconds_per_image` where the
        model generates, `reconstruction` (means of psnr_db, where an image is not reproduced exactly, and of ssim) where it
        reconstructs.

    Raises:
        InputError: the reference cannot be read or does not fit the model. And all that `edgegen.load` raises.
    """
    from edgegen.runtime import load

    chosen = choose(backend)
    real, labels = read_reference(reference, count)
    if len(real) <= _NEIGHBOURS:
        raise InputError(
            f"{len(real)} images are too few to compare with; give {_NEIGHBOURS + 1} at least, thousands are better"
        )
    with load(bundle, chosen, threads=threads) as model:
        manifest = model.bundle.manifest
        classes = getattr(model.settings, "classes", None) or 0
        ids = _classes(labels, len(real), classes)
        made, seconds = _generate(
            model, len(real), seed, ({"class_ids": ids} if classes else {}) | dict(options or {}), progress
        )
        again, fitted = _reconstruct(model, real, ids if classes else None, is_known=labels is not None or not classes)
    if made is None and again is None:
        raise InputError(f"{bundle} neither generates images from seeds nor reconstructs them: there is nothing to compare")
    result: dict[str, Any] = {
        "bundle": {"name": manifest.name, "family": manifest.family, "precision": manifest.precision},
        "settings": {"backend": chosen, "threads": threads, "seed": seed, "images": len(real), "options": dict(options or {})},
        "sets": None,
        "reconstruction": None,
    }
    if made is not None:
        found, said = _described(features, (_fit(real, made.shape, reference), made), chosen, threads)
        result |= {"features": said, "note": NOTE.format(name=said["name"]), "seconds_per_image": seconds}
        result["sets"] = compare_sets(found[0], found[1], _NEIGHBOURS)
    if again is not None:
        result["reconstruction"] = _likeness(fitted, again)
    return result


def read_reference(path: Path, most: int) -> tuple[Pixels, NDArray[np.int64] | None]:
    """The first `most` images of a folder or of an .npz, uint8 [image, height, width, channel], and their labels [image].

    Raises InputError where there are none, or they are not such.
    """
    if path.is_dir():
        return read_folder(path, most=most), None
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise InputError(f'no reference at {path}; give a folder of images, or an .npz with "images"')
    try:
        with zipfile.ZipFile(path) as archive:
            if max(entry.file_size for entry in archive.infolist()) > _MAX_NPZ_BYTES:
                raise InputError(f"{path}: an array has more than {_MAX_NPZ_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"][:most]
            labels = arrays["labels"][:most] if "labels" in arrays else None
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


def _classes(labels: NDArray[np.int64] | None, count: int, classes: int) -> list[int]:
    return [i % max(classes, 1) for i in range(count)] if labels is None else [int(label) for label in labels]


def _generate(
    model: Any, count: int, seed: int, options: dict[str, Any], progress: Callable[[int, int], None] | None
) -> tuple[Pixels | None, float | None]:
    """Images and the seconds for each; None where the model draws none (codes, image-to-image)."""
    if not hasattr(model, "generate") or not draws(model.bundle.manifest):
        return None, None
    start = time.perf_counter()
    images: Images = model.generate(count=count, seed=seed, progress=progress, **options)
    return images.pixels, (time.perf_counter() - start) / count


def _reconstruct(model: Any, real: Pixels, ids: list[int] | None, *, is_known: bool) -> tuple[Pixels | None, Pixels]:
    """Reconstructions, and the images they are of; None where there is no encoder, or classes that nobody told."""
    if not hasattr(model, "reconstruct") or "encoder" not in model.graphs or not is_known:
        return None, real
    images: Images = model.reconstruct(real, class_ids=ids)
    channels = images.pixels.shape[3]
    fitted = real if real.shape[3] == channels else np.stack([with_channels(image, channels) for image in real])
    return images.pixels, fitted


def _fit(real: Pixels, shape: tuple[int, ...], reference: Path) -> Pixels:
    if real.shape[1:3] != shape[1:3]:
        sizes = f"{real.shape[2]} x {real.shape[1]}, the model makes {shape[2]} x {shape[1]}"
        raise InputError(f"the images of {reference} are {sizes}; bring them to one size first")
    if real.shape[3] == shape[3]:
        return real
    return np.stack([with_channels(image, shape[3], str(reference)) for image in real])


def _described(
    features: Path | None, sets: tuple[Pixels, Pixels], backend: str, threads: int | None
) -> tuple[list[NDArray[Any]], dict[str, Any]]:
    """The features of each set, and what they are called."""
    if features is None:
        return [pixel_features(pixels) for pixels in sets], {"name": PIXEL_FEATURES, "bundle": None}
    from edgegen.bundle import Bundle
    from edgegen.runtime import load

    with Bundle.open(features) as bundle:
        name, family = bundle.manifest.name, bundle.manifest.family
    if family != "features":
        raise InputError(f"{features} is of the family {family}; --features wants one of the family features")
    with load(features, backend, threads=threads) as network:
        return [network.extract(pixels) for pixels in sets], {"name": name, "bundle": str(features)}


def _likeness(real: Pixels, again: Pixels) -> dict[str, Any]:
    ratios = psnr_db(real, again)
    inexact = ratios[np.isfinite(ratios)]
    fits = min(real.shape[1:3]) >= _SSIM_SIDE
    return {
        "images": len(real),
        "exact": int(len(ratios) - len(inexact)),
        "psnr_db": float(inexact.mean()) if len(inexact) else None,
        "ssim": float(ssim(real, again).mean()) if fits else None,
    }
