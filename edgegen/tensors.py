"""What goes in and out of a graph: names, dtypes and named axes."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError

DType = Literal["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]
Tensor = NDArray[Any]
Tensors = Mapping[str, Tensor]


class Axis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The sizes that a named axis may take: multiples of `step`; `opt` is what a backend should tune for."""

    min: int
    opt: int
    max: int
    step: int = 1

    def holds(self, size: int) -> bool:
        """Whether the axis may be that long."""
        return self.min <= size <= self.max and size % self.step == 0

    def times(self, factor: int) -> "Axis":
        """The sizes of what is `factor` times as long."""
        return Axis(*(factor * size for size in (self.min, self.opt, self.max, self.step)))

    def __str__(self) -> str:
        if self.min == self.max:
            return str(self.min)
        return f"{self.min} to {self.max}" + (f", in multiples of {self.step}" if self.step > 1 else "")


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: an axis is a fixed size or the name of a dynamic axis."""

    name: str
    dtype: DType
    axes: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.axes))}]"


def check_feed(specs: Mapping[str, TensorSpec], feed: Tensors, axes: Mapping[str, Axis]) -> None:
    """Raise InputError where `feed` lacks an input, has one too many, or does not fit dtype, rank, or axis range.

    The same named axis must have the same size in every tensor of the feed.
    """
    missing, unknown = specs.keys() - feed.keys(), feed.keys() - specs.keys()
    if missing or unknown:
        raise InputError(f"inputs: missing {sorted(missing)}, unknown {sorted(unknown)}; the graph takes {sorted(specs)}")
    sizes: dict[str, int] = {}
    for name, array in feed.items():
        _check_tensor(specs[name], array, axes, sizes)


def _check_tensor(spec: TensorSpec, array: Tensor, axes: Mapping[str, Axis], sizes: dict[str, int]) -> None:
    if array.dtype != np.dtype(spec.dtype) or array.ndim != len(spec.axes):
        raise InputError(f"input {spec.name!r} is {array.dtype}{list(array.shape)}; the graph takes {spec}")
    for axis, size in zip(spec.axes, array.shape, strict=True):
        wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
        if size != wanted:
            raise InputError(f"input {spec.name!r} is {list(array.shape)}: axis {axis!r} must be {wanted}")
        bounds = axes.get(axis) if isinstance(axis, str) else None
        if bounds is not None and not bounds.holds(size):
            raise InputError(f"input {spec.name!r}: axis {axis!r} is {size}; it was exported for {bounds}")
