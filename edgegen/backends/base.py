"""The seam between pipelines and inference libraries: two small protocols."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol

from edgegen.tensors import Axis, Tensor, Tensors, TensorSpec


class State(Protocol):
    """Tensors that stay on the device between runs and are updated in place: a key/value cache.

    Belongs to one session and one conversation. Every state tensor has one growing axis (`StatePair.axis`), `capacity` long.
    It may be used by one thread at a time. Memory is freed by `close`, or with the session.
    """

    @property
    def capacity(self) -> int:
        """The present length of the growing axis."""

    def reserve(self, capacity: int, keep: int) -> None:
        """Make the growing axis at least `capacity` long; the first `keep` entries survive, the rest is undefined."""

    def read(self, name: str) -> Tensor:
        """A copy, on the host, of the state tensor with that input name."""

    def close(self) -> None:
        """Free the memory. Closing twice is allowed."""


class Session(Protocol):
    """One loaded graph variant.

    Lifetime: owns its memory from construction to `close`; `run` after `close` raises BackendError.
    Buffers: arrays returned by `run` are valid until the next `run` of the same session; copy what must live longer.
    Threads: `run` may be called from any thread; calls are serialised by the session.
    """

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Every input, state included."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Every output, state included."""

    @property
    def axes(self) -> Mapping[str, Axis]:
        """The sizes of the named axes that this session takes: an engine is built for less than its graph was exported for.

        Of the axis that grows in a state: the capacities that may be asked for. An axis that is not here has no bounds.
        """

    @property
    def details(self) -> Mapping[str, str]:
        """How it runs, for a report: what is worth telling depends on the library."""

    def new_state(self, capacity: int) -> State:
        """Fresh state with room for `capacity` entries; its content is zero. InputError where the graph has no state."""

    def run(self, inputs: Tensors, *, state: State | None = None, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run once and wait for the result.

        inputs: every input that is neither state nor has a default in the graph (dtypes and shapes as in `inputs`).
        state:  needed if the graph has state; updated in place.
        outputs: the names to fetch; all that are not state if None.
        Raises InputError for a feed that does not fit, BackendError where the library fails.
        """

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""

    def __enter__(self) -> "Session":
        """Nothing happens on entering: the session is ready from construction."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
