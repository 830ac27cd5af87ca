"""What a family's export half makes of a source: modules with named inputs, settings, and PyTorch's own answers."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from edgegen.errors import InputError
from edgegen.tensors import Axis, Tensors, TensorSpec

_SPEC = re.compile(r"(\w+) (float32|int64|int32|bool|uint8)\[([\w, ]*)\]")


@dataclass(frozen=True)
class Part:
    """One graph to be: a module, and what its `forward` takes and gives, in order. A named axis stays dynamic."""

    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Modules:
    """A source that is a user's own modules: by graph name, with their weights, in eval mode, on the CPU, in float32.

    `inputs` and `outputs` by graph, `axes` and `settings` as the user gave them; a family fills in what is missing.
    """

    kind: str
    name: str
    sha256: str
    licence: str
    modules: Mapping[str, torch.nn.Module]
    inputs: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)
    outputs: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model of a family, ready to be captured.

    `reference` runs PyTorch and returns (recorded inputs, recorded outputs), named and ordered as the pipeline's `replay` takes
    and gives them; it is called again after the weights were rounded. `files` are further files of the bundle, by path.
    """

    family: str
    parts: Mapping[str, Part]
    axes: Mapping[str, Axis]
    settings: msgspec.Struct
    reference: Callable[[], tuple[Tensors, Tensors]]
    files: Mapping[str, bytes] = field(default_factory=dict)


def parse_spec(text: str) -> TensorSpec:
    """Read "z float32[batch, 128]", as `edgegen inspect` writes it: a named axis is dynamic, a number is fixed.

    Raises InputError where it is not of that form.
    """
    match = _SPEC.fullmatch(text.strip())
    if not match:
        raise InputError(f'{text!r} is not a tensor; write it as "name float32[batch, 128]"')
    name, dtype, listed = match.groups()
    axes = tuple(int(axis) if axis.isdigit() else axis for axis in map(str.strip, listed.split(",")) if axis)
    return TensorSpec(name, dtype, axes)  # type: ignore[arg-type]


def example(spec: TensorSpec, axes: Mapping[str, Axis], seed: int = 0) -> torch.Tensor:
    """A tensor of the `opt` sizes to capture with: standard normal, or zeros where integers are asked for."""
    sizes = [axis if isinstance(axis, int) else max(axes[axis].opt, min(2, axes[axis].max)) for axis in spec.axes]
    if spec.dtype == "float32":
        return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(sizes, dtype=getattr(torch, spec.dtype))
