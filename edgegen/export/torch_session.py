"""A session that runs a PyTorch module: a family's pipeline on the original, for the answers that its graphs are held to."""

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch

from edgegen.backends.base import State
from edgegen.errors import InputError
from edgegen.export.parts import Part
from edgegen.tensors import Axis, Tensor, Tensors, TensorSpec, check_feed


class TorchSession:
    """The module of a part as a session (see `edgegen.backends.base.Session`); it has no state."""

    def __init__(self, part: Part, axes: Mapping[str, Axis]) -> None:
        self._part, self._axes = part, axes
        self._inputs = {spec.name: spec for spec in part.inputs}

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Every input."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Every output."""
        return {spec.name: spec for spec in self._part.outputs}

    @property
    def axes(self) -> Mapping[str, Axis]:
        """The sizes of the named axes that it takes."""
        return self._axes

    @property
    def details(self) -> Mapping[str, str]:
        """There is nothing to tell."""
        return {}

    def new_state(self, capacity: int) -> State:
        """InputError: a module has no state."""
        raise InputError(f"a PyTorch module keeps no state, of {capacity} entries or any")

    def run(self, inputs: Tensors, *, state: State | None = None, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run the module. InputError where the feed does not fit."""
        if state is not None:
            raise InputError("a PyTorch module keeps no state; run it without one")
        check_feed(self._inputs, inputs, self._axes)
        with torch.no_grad():
            made = self._part.module(*(torch.from_numpy(inputs[name]) for name in self._inputs))
        tensors = made if isinstance(made, tuple | list) else (made,)
        found = {spec.name: tensor.numpy() for spec, tensor in zip(self._part.outputs, tensors, strict=True)}
        return found if outputs is None else {name: found[name] for name in outputs}

    def close(self) -> None:
        """Nothing: the module is the caller's."""

    def __enter__(self) -> "TorchSession":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
