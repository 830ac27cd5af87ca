"""What every session has alike of the protocol: its signature, and the way that it ends."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

from edgegen.backends.base import State
from edgegen.errors import InputError
from edgegen.manifest import StatePair
from edgegen.tensors import Axis, TensorSpec

_Self = TypeVar("_Self", bound="GraphSession")


class GraphSession:
    """The inputs, outputs and axes of one graph; see `edgegen.backends.base.Session`.

    For those that derive from it: `_inputs` and `_outputs` by name, `_pairs` with the spec of each state input, and of what is
    not state `_fed` (inputs) and `_fetched` (names of outputs).
    """

    def __init__(
        self,
        path: str,
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        state: Sequence[StatePair] = (),
        axes: Mapping[str, Axis] | None = None,
    ) -> None:
        self._path = path  # what errors call the graph
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = {spec.name: spec for spec in outputs}
        self._axes: Mapping[str, Axis] = axes or {}
        self._pairs = {pair: self._inputs[pair.input] for pair in state}
        in_state = {name for pair in state for name in (pair.input, pair.output)}
        self._fed = {name: spec for name, spec in self._inputs.items() if name not in in_state}
        self._fetched = tuple(name for name in self._outputs if name not in in_state)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Every input, state included."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Every output, state included."""
        return self._outputs

    @property
    def axes(self) -> Mapping[str, Axis]:
        """The sizes of the named axes that the session takes."""
        return self._axes

    @property
    def details(self) -> Mapping[str, str]:
        """There is nothing to tell."""
        return {}

    def new_state(self, capacity: int) -> State:
        """InputError: the graph has no state."""
        raise InputError(f"{self._path} keeps no state, of {capacity} entries or any; run it without one")

    def close(self) -> None:
        """There is nothing to free."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _refuse_state(self, state: State | None) -> None:
        """InputError for a state that is given to a graph without one."""
        if state is not None:
            raise InputError(f"{self._path} keeps no state; run it without one")
