"""A session that runs a PyTorch module: a family's pipeline on the original, for the answers that its graphs are held to."""

from collections.abc import Mapping, Sequence

import torch

from edgegen.backends.base import State
from edgegen.backends.graph_session import GraphSession
from edgegen.export.parts import Part
from edgegen.tensors import Axis, Tensor, Tensors, check_feed


class TorchSession(GraphSession):
    """The module of a part as a session (see `edgegen.backends.base.Session`); it has no state."""

    def __init__(self, part: Part, axes: Mapping[str, Axis]) -> None:
        super().__init__("a PyTorch module", part.inputs, part.outputs, axes=axes)
        self._part = part

    def run(self, inputs: Tensors, *, state: State | None = None, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run the module. InputError where the feed does not fit."""
        self._refuse_state(state)
        check_feed(self._inputs, inputs, self._axes)
        with torch.no_grad():
            made = self._part.module(*(torch.from_numpy(inputs[name]) for name in self._inputs))
        tensors = made if isinstance(made, tuple | list) else (made,)
        found = {spec.name: tensor.numpy() for spec, tensor in zip(self._part.outputs, tensors, strict=True)}
        return found if outputs is None else {name: found[name] for name in outputs}
