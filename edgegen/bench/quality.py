"""How good images are, in numbers: distances between sets of features, coverage, diversity; and likeness of single images.

Features are float [image, feature], of any network or function: a distance says nothing without the name of its features, and
only distances in the same features, from as many images, may be compared. Everything is numpy, in float64.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError
from edgegen.tensors import Tensor

Doubles = NDArray[np.float64]

_BLOCK = 1024  # rows of a matrix of distances that are held at once
_WINDOW, _SIGMA = 11, 1.5  # of SSIM's Gaussian, in pixels
_K1, _K2, _PEAK = 0.01, 0.03, 255.0


def frechet_distance(reference: Tensor, made: Tensor) -> float:
    """The Frechet distance of two normal distributions with the means and covariances of the features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), as Heusel et al. 2017 (arXiv:1706.08500) use it; covariances are unbiased.
    With fewer images than features a covariance has no full rank and the distance is too large: compare equal numbers only.

    Raises InputError where features do not fit, or there are fewer than 2 of either.
    """
    a, b = _pair(reference, made)
    return frechet_of_normals(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def frechet_of_normals(mean_a: Doubles, covariance_a: Doubles, mean_b: Doubles, covariance_b: Doubles) -> float:
    """The same of two given normal distributions: means [feature], covariances [feature, feature]."""
    root = _square_root(covariance_a)
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric: no complex numbers come of rounding.
    crossed = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    shift = float(np.square(mean_a - mean_b).sum())
    return max(0.0, shift + float(np.trace(covariance_a) + np.trace(covariance_b) - 2 * crossed))


def _covariance(features: Doubles) -> Doubles:
    centred = features - features.mean(0)
    covariance: Doubles = centred.T @ centred / (len(features) - 1)
    return covariance


def _square_root(symmetric: Doubles) -> Doubles:
    """Of a positive semidefinite matrix, by its eigenvectors."""
    values, vectors = np.linalg.eigh(symmetric)
    root: Doubles = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def kernel_distance(reference: Tensor, made: Tensor) -> float:
    """The squared maximum mean discrepancy with the kernel (x.y / features + 1)^3: Binkowski et al. 2018 (arXiv:1801.01401).

    The unbiased estimate (KID): 0 on average for equal distributions, however few the images, and so as often below as above.

    Raises InputError where features do not fit, or there are fewer than 2 of either.
    """
    a, b = _pair(reference, made)
    within = [_kernel_sum(x, x) - float(_kernel(np.square(x).sum(1), x.shape[1]).sum()) for x in (a, b)]
    unbiased = [total / (len(x) * (len(x) - 1)) for total, x in zip(within, (a, b), strict=True)]
    return sum(unbiased) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _kernel(products: Doubles, features: int) -> Doubles:
    kernel: Doubles = (products / features + 1) ** 3
    return kernel


def _kernel_sum(a: Doubles, b: Doubles) -> float:
    return float(sum(_kernel(a[i : i + _BLOCK] @ b.T, a.shape[1]).sum() for i in range(0, len(a), _BLOCK)))


def precision_recall(reference: Tensor, made: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991).

    Precision is the share of made images that lie within the reference, recall the share of the reference that lies within the
    made ones; "within" a set is within the distance from one of its members to that one's `neighbours`-th nearest.

    Raises InputError where features do not fit, or a set has no more than `neighbours` images.
    """
    a, b = _pair(reference, made, least=neighbours + 1)
    precision, recall = (float((_within(x, y, neighbours)[0] > 0).mean()) for x, y in ((b, a), (a, b)))
    return precision, recall


def density_coverage(reference: Tensor, made: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797), which single odd images move less than precision and recall.

    Density is the mean number of the reference's neighbourhoods in which a made image lies, over `neighbours`: about 1 for
    images like the reference, more where they crowd at its densest. Coverage is the share of the reference whose neighbourhood
    holds a made image: it falls where kinds are missing.

    Raises InputError where features do not fit, or a set has no more than `neighbours` images.
    """
    a, b = _pair(reference, made, least=neighbours + 1)
    of_points, of_members = _within(b, a, neighbours)
    return float(of_points.mean()) / neighbours, float((of_members > 0).mean())


def _within(points: Doubles, members: Doubles, neighbours: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """In how many members' neighbourhoods each point lies, int [point], and how many points in each member's, int [member]."""
    # The nearest of a member is itself, at distance 0: the k-th of the others is at place k.
    radii = np.concatenate([np.partition(block, neighbours, axis=1)[:, neighbours] for block in _distances(members, members)])
    of_points, of_members = [], np.zeros(len(members), np.int64)
    for block in _distances(points, members):
        inside = block <= radii
        of_points.append(inside.sum(axis=1))
        of_members += inside.sum(axis=0)
    return np.concatenate(of_points), of_members


def diversity(features: Tensor) -> float:
    """The mean Euclidean distance between two different images' features; 0 where all images are the same.

    Raises InputError where there are fewer than 2.
    """
    x = _checked(features, 2)
    return float(sum(block.sum() for block in _distances(x, x)) / (len(x) * (len(x) - 1)))


def _distances(a: Doubles, b: Doubles) -> Iterator[Doubles]:
    """Euclidean distances [some of a, b], block after block."""
    itself, centre = a is b, b.mean(0)
    a, b = a - centre, b - centre  # less is lost where squares nearly cancel
    squares = np.square(b).sum(1)
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK]
        squared = np.square(block).sum(1)[:, None] + squares - 2 * block @ b.T
        if itself:  # exactly 0 from a point to itself, whatever rounding says
            np.fill_diagonal(squared[:, start:], 0.0)
        yield np.sqrt(squared.clip(0))


def psnr_db(wanted: Tensor, got: Tensor) -> Doubles:
    """Peak signal-to-noise ratio of each image in dB, uint8 [image, height, width, channel]; infinite where they are equal."""
    a, b = _images(wanted, got)
    error = np.square(a - b).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        ratio: Doubles = 10 * np.log10(_PEAK**2 / error)
    return ratio


def ssim(wanted: Tensor, got: Tensor) -> Doubles:
    """Structural similarity of each image, -1 to 1, uint8 [image, height, width, channel] (Wang et al. 2004, section III).

    The authors' Gaussian window of 11x11 pixels and sigma 1.5, where it lies wholly in the image; the mean over channels.

    Raises InputError where the images differ in size, or are smaller than the window.
    """
    a, b = _images(wanted, got)
    if min(a.shape[1:3]) < _WINDOW:
        raise InputError(f"images are {a.shape[2]} x {a.shape[1]}; SSIM needs {_WINDOW} pixels on a side")
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    likeness: Doubles = (above / below).mean(axis=(1, 2, 3))
    return likeness


def _blurred(images: Doubles) -> Doubles:
    """Weighted means over the window: [image, height - 10, width - 10, channel]."""
    place = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-0.5 * np.square(place / _SIGMA))
    weights /= weights.sum()
    rows, columns = images.shape[1] - _WINDOW + 1, images.shape[2] - _WINDOW + 1
    down: Doubles = sum((w * images[:, i : i + rows] for i, w in enumerate(weights)), start=np.zeros(1))
    across: Doubles = sum((w * down[:, :, i : i + columns] for i, w in enumerate(weights)), start=np.zeros(1))
    return across


def pixel_features(pixels: NDArray[np.uint8], side: int = 8) -> Doubles:
    """Features where no network is given: mean colours of a grid of `side` x `side` cells, 0 to 1; float [image, feature].

    They see colour and layout, and nothing of what an image shows.
    """
    _, height, width, _ = pixels.shape
    rows, columns = min(side, height), min(side, width)
    tops = np.arange(rows) * height // rows
    lefts = np.arange(columns) * width // columns
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), tops, axis=1), lefts, axis=2)
    sizes = np.diff(tops, append=height)[:, None] * np.diff(lefts, append=width)
    means: Doubles = (sums / sizes[:, :, None] / _PEAK).reshape(len(pixels), -1)
    return means


def compare_sets(reference: Tensor, made: Tensor, neighbours: int = 3) -> dict[str, float]:
    """Every measure of two sets of features; errors as of the single ones."""
    precision, recall = precision_recall(reference, made, neighbours)
    density, coverage = density_coverage(reference, made, neighbours)
    return {
        "frechet_distance": frechet_distance(reference, made),
        "kernel_distance": kernel_distance(reference, made),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "diversity": diversity(made),
        "reference_diversity": diversity(reference),
    }


def _pair(reference: Tensor, made: Tensor, least: int = 2) -> tuple[Doubles, Doubles]:
    a, b = _checked(reference, least), _checked(made, least)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"the reference has {a.shape[1]} features, the made images {b.shape[1]}; they must be of one kind")
    return a, b


def _checked(features: Any, least: int) -> Doubles:
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or len(array) < least or not array.shape[1]:
        raise InputError(f"features are [image, feature] of at least {least} images, not {list(array.shape)}")
    if not np.isfinite(array).all():
        raise InputError("features are not all finite numbers")
    return array


def _images(wanted: Tensor, got: Tensor) -> Sequence[Doubles]:
    if wanted.shape != got.shape or wanted.ndim != 4 or wanted.dtype != np.uint8 or got.dtype != np.uint8:
        raise InputError(f"images are uint8 [image, height, width, channel] of one size, not {wanted.shape} and {got.shape}")
    return wanted.astype(np.float64), got.astype(np.float64)
