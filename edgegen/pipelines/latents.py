"""Arithmetic on latents: interpolation, truncation, mixing of styles; and what is asked of those that a user brings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError
from edgegen.tensors import Tensor

Floats = NDArray[np.float32]


def checked(name: str, given: Any, *shapes: Sequence[int | str]) -> Floats:
    """A user's array as float32; a named axis of a shape takes any size but 0.

    Raises InputError where it has none of the `shapes`, or holds what is not finite.
    """
    try:
        if np.iscomplexobj(given):
            raise TypeError
        with np.errstate(over="ignore"):  # what comes of it is looked at
            array = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers, not {type(given).__name__}") from None
    if not array.size or not any(_fits(array.shape, shape) for shape in shapes):
        wanted = " or ".join(f"float32[{', '.join(map(str, shape))}]" for shape in shapes)
        raise InputError(f"{name} is {list(array.shape)}; this model takes {wanted}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds {int((~np.isfinite(array)).sum())} numbers that are not finite")
    return array


def _fits(sizes: tuple[int, ...], shape: Sequence[int | str]) -> bool:
    return len(sizes) == len(shape) and all(isinstance(b, str) or a == b for a, b in zip(sizes, shape, strict=True))


def linear(a: Floats, b: Floats, steps: int) -> Floats:
    """From `a` to `b` [...] in a straight line: [steps, ...], both ends included."""
    share = np.linspace(0, 1, steps, dtype=np.float32).reshape(-1, *[1] * a.ndim)
    return a + (b - a) * share


def spherical(a: Floats, b: Floats, steps: int) -> Floats:
    """From `a` to `b` [...] along a great circle, lengths in between: [steps, ...], both ends included.

    Normal latents lie near a sphere, which a straight line leaves (White 2016, "Sampling Generative Networks"; the formula is
    Shoemake's of 1985). Along a straight line where the two are nearly parallel: the circle is not defined there.
    """
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    long = np.linalg.norm(x) * np.linalg.norm(y)
    angle = float(np.arccos(np.clip(x @ y / long, -1, 1))) if long else 0.0
    if np.sin(angle) < 1e-6:
        return linear(a, b, steps)
    share = np.linspace(0, 1, steps)[:, None]
    path = (np.sin((1 - share) * angle) * x + np.sin(share * angle) * y) / np.sin(angle)
    return np.asarray(path, np.float32).reshape(steps, *a.shape)


def layered(w: Tensor, layers: int) -> Floats:
    """One style for each layer: [image, W] is repeated, [image, layer, W] is returned as it is."""
    each: Floats = w if w.ndim == 3 else np.repeat(w[:, None], layers, axis=1)
    return each


def truncated(w: Floats, mean: Floats, psi: float, cutoff: int) -> Floats:
    """Pull the first `cutoff` layers of w [image, layer, W] towards the mean [W]: psi 1 moves nothing, at 0 all are the mean.

    The truncation trick of Karras et al. 2019 (StyleGAN), section 3 and appendix B.
    """
    pulled = w.copy()
    pulled[:, :cutoff] = mean + np.float32(psi) * (w[:, :cutoff] - mean)
    return pulled


def mixed(w: Floats, other: Floats, layer: int) -> Floats:
    """Styles of `w` below `layer`, of `other` from there on; both [image, layer, W] (Karras et al. 2019, section 3.1)."""
    return np.concatenate([w[:, :layer], np.broadcast_to(other, w.shape)[:, layer:]], axis=1)
