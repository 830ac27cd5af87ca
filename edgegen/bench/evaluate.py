"""How good the images of a bundle are, against real ones: what `edgegen eval` measures."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.backends import AUTO, choose
from edgegen.bench.quality import compare_sets, pixel_features, psnr_db, ssim
from edgegen.bench.reference import Real, read_real
from edgegen.errors import InputError
from edgegen.media import with_channels
from edgegen.pipelines.images import Images, draws

Pixels = NDArray[np.uint8]

PIXEL_FEATURES = "mean colours of 8x8 cells"
_SSIM_SIDE = 11
_NEIGHBOURS = 3
NOTE = (
    "The feature space is {name}, not Inception's: distances compare only with others in the same one, from as many images. "
    "Lower is better for the distances, higher for precision, recall and coverage; diversity is to be near the reference's."
)


def evaluate(
    bundle: str | os.PathLike[str],
    reference: Path,
    *,
    baseline: Path | None = None,
    features: Path | None = None,
    count: int = 1000,
    seed: int = 0,
    backend: str = AUTO,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compare `count` images of a bundle with as many real ones, and other real ones with those.

    Args:
        bundle: its path: of a family that generates, or that reconstructs.
        reference: a folder of images of one size; an .npz with `images`, uint8 [image, height, width(, channel)], and `labels`
            for a model with classes, int [image]; or a recipe, for the images that it holds out.
        baseline: other real images, of the same kinds; of a recipe those that it learns from. What they score is what a perfect
            model would. Where `reference` is a recipe, that one, if None.
        features: a bundle of the family features; mean colours of 8x8 cells if None, which see little.
        count: images to make, and to take of the reference: as many of both as there are, so that no side is favoured.
        seed: of the first image. A model with classes makes those of the labels, or one after the other where there are none.
        backend: a backend's name, or "auto".
        threads: CPU threads; the default of the backend if None.
        options: of the pipeline's `generate`.
        progress: called with (images made, all) where the pipeline tells.

    Returns:
        One object for JSON: bundle, settings, reference, features, and `sets` (as `compare_sets` says) and `seconds_per_image`
        (of one call for all of them) where the model generates, `baseline` (`sets` of those images), `reconstruction` (means of
        psnr_db, where an image is not reproduced exactly, and of ssim) where it reconstructs.

    Raises:
        InputError: the reference cannot be read or does not fit the model. And all that `edgegen.load` raises.
    """
    from edgegen.runtime import load

    chosen = choose(backend)
    real = read_real(reference, count)
    images, others = len(real.images), _baseline(reference, baseline, real)
    if images <= _NEIGHBOURS:
        raise InputError(f"{images} images are too few to compare with; give {_NEIGHBOURS + 1} at least, thousands are better")
    with load(bundle, chosen, threads=threads) as model:
        manifest = model.bundle.manifest
        classes = getattr(model.settings, "classes", None) or 0
        ids = {"class_ids": _classes(real.labels, images, classes)} if classes else {}
        made, seconds = _generate(model, images, seed, ids | dict(options or {}), progress)
        is_known = real.labels is not None or not classes
        reconstruction = _reconstruction(model, real.images, ids.get("class_ids"), is_known=is_known)
    if made is None and reconstruction is None:
        raise InputError(f"{bundle} neither generates images from seeds nor reconstructs them: there is nothing to compare")
    result: dict[str, Any] = {
        "bundle": {"name": manifest.name, "family": manifest.family, "precision": manifest.precision},
        "settings": {"backend": chosen, "threads": threads, "seed": seed, "images": images, "options": dict(options or {})},
        "reference": real.said,
        "sets": None,
        "baseline": None,
        "reconstruction": reconstruction,
    }
    if made is not None:
        result["seconds_per_image"] = seconds
        result |= _compared(features, made, real, others, chosen, threads)
    return result


def _baseline(reference: Path, baseline: Path | None, real: Real) -> Real | None:
    """As many other real images; None where nobody named any."""
    path = reference if baseline is None and reference.suffix == ".py" else baseline
    if path is None:
        return None
    others = read_real(path, len(real.images), learned_from=True)
    if len(others.images) < len(real.images):
        raise InputError(f"the baseline has {len(others.images)} images, the reference {len(real.images)}; give as many")
    return others


def _compared(
    features: Path | None, made: Pixels, real: Real, others: Real | None, backend: str, threads: int | None
) -> dict[str, Any]:
    """The measures of the made images, and of other real ones, against the reference."""
    groups = [made, *(_fit(group.images, made.shape, group.said) for group in (real, others) if group is not None)]
    found, space = _described(features, groups, backend, threads)
    result = {"features": space, "note": NOTE.format(name=space["name"]), "sets": compare_sets(found[1], found[0], _NEIGHBOURS)}
    if others is not None:
        result["baseline"] = {"images": others.said, "sets": compare_sets(found[1], found[2], _NEIGHBOURS)}
    return result


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


def _reconstruction(model: Any, real: Pixels, ids: list[int] | None, *, is_known: bool) -> dict[str, Any] | None:
    """How like the real images their reconstructions are; None where there is no encoder, or classes that nobody told."""
    if not hasattr(model, "reconstruct") or "encoder" not in model.graphs or not is_known:
        return None
    start = time.perf_counter()
    again = model.reconstruct(real, class_ids=ids).pixels
    seconds = (time.perf_counter() - start) / len(real)
    ratios = psnr_db(fitted := _with_channels(real, again.shape[3]), again)
    inexact = ratios[np.isfinite(ratios)]
    fits = min(fitted.shape[1:3]) >= _SSIM_SIDE
    return {
        "images": len(real),
        "exact": int(len(ratios) - len(inexact)),
        "psnr_db": float(inexact.mean()) if len(inexact) else None,
        "ssim": float(ssim(fitted, again).mean()) if fits else None,
        "seconds_per_image": seconds,
    }


def _fit(real: Pixels, shape: tuple[int, ...], said: str) -> Pixels:
    if real.shape[1:3] != shape[1:3]:
        sizes = f"{real.shape[2]} x {real.shape[1]}, the model makes {shape[2]} x {shape[1]}"
        raise InputError(f"the images of {said} are {sizes}; bring them to one size first")
    return _with_channels(real, shape[3], said)


def _with_channels(real: Pixels, channels: int, said: str = "the reference") -> Pixels:
    return real if real.shape[3] == channels else np.stack([with_channels(image, channels, said) for image in real])


def _described(
    features: Path | None, groups: Sequence[Pixels], backend: str, threads: int | None
) -> tuple[list[NDArray[Any]], dict[str, Any]]:
    """The features of each group, and what they are called."""
    if features is None:
        return [pixel_features(pixels) for pixels in groups], {"name": PIXEL_FEATURES, "bundle": None}
    from edgegen.bundle import Bundle
    from edgegen.runtime import load

    with Bundle.open(features) as bundle:
        name, family = bundle.manifest.name, bundle.manifest.family
    if family != "features":
        raise InputError(f"{features} is of the family {family}; --features wants one of the family features")
    with load(features, backend, threads=threads) as network:
        return [network.extract(pixels) for pixels in groups], {"name": name, "bundle": str(features)}
