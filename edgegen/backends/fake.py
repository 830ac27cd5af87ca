"""Sessions made of numpy functions: pipelines are tested, and tried out, without any inference library."""

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgegen.backends.base import State
from edgegen.backends.graph_session import GraphSession
from edgegen.errors import BackendError, InputError
from edgegen.manifest import StatePair
from edgegen.tensors import Axis, Tensor, Tensors, TensorSpec, check_feed

Function = Callable[[Tensors, dict[str, Tensor]], Mapping[str, Tensor]]


class FakeState:
    """State tensors in host memory. What `reserve` leaves undefined is filled with garbage, so that its use shows."""

    def __init__(self, specs: Sequence[tuple[TensorSpec, int]], capacity: int) -> None:
        self._specs = specs
        self.tensors = {spec.name: np.zeros(self._shape(spec, axis, capacity), spec.dtype) for spec, axis in specs}
        self._capacity = capacity

    @staticmethod
    def _shape(spec: TensorSpec, grows: int, capacity: int) -> list[int]:
        return [capacity if i == grows else size if isinstance(size, int) else 1 for i, size in enumerate(spec.axes)]

    @property
    def capacity(self) -> int:
        """The present length of the growing axis."""
        return self._capacity

    def reserve(self, capacity: int, keep: int) -> None:
        """Make the growing axis at least `capacity` long; the first `keep` entries survive."""
        if not self.tensors:
            raise BackendError("the state is closed")
        if capacity <= self._capacity:
            return
        for spec, axis in self._specs:
            old = self.tensors[spec.name]
            new = np.full(self._shape(spec, axis, capacity), 77, spec.dtype)
            kept = (slice(None),) * axis + (slice(keep),)
            new[kept] = old[kept]
            self.tensors[spec.name] = new
        self._capacity = capacity

    def read(self, name: str) -> Tensor:
        """A copy of the state tensor with that input name."""
        if name not in self.tensors:
            raise InputError(f"no state tensor named {name!r}; this state has {sorted(self.tensors)}")
        return self.tensors[name].copy()

    def close(self) -> None:
        """Free the memory. Closing twice is allowed."""
        self.tensors = {}


class FakeSession(GraphSession):
    """A session (see `backends.base.Session`) whose graph is a numpy function.

    The arrays that a run returns are overwritten with garbage by the next run, so that whoever keeps them too long sees it.

    Args:
        function: called with the feed (defaults filled in) and the state's tensors by input name, which it writes in place;
            returns the outputs that are not state.
        inputs: every input, state included. Named axes of state tensors other than the growing one have size 1.
        outputs: every output, state included.
        state: which output is written over which input.
        axes: bounds of the named axes.
        defaults: inputs that need not be fed.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        state: Sequence[StatePair] = (),
        *,
        axes: Mapping[str, Axis] | None = None,
        defaults: Tensors | None = None,
    ) -> None:
        self._function: Function | None = function
        super().__init__("this graph", inputs, outputs, state, axes)
        self._defaults = dict(defaults or {})
        self._lent: list[Tensor] = []
        self._lock = threading.Lock()

    def new_state(self, capacity: int) -> State:
        """Fresh state with room for `capacity` entries; its content is zero."""
        if not self._pairs:
            return super().new_state(capacity)
        if self._function is None:
            raise BackendError("the session is closed")
        return FakeState([(spec, pair.axis) for pair, spec in self._pairs.items()], capacity)

    def run(self, inputs: Tensors, *, state: State | None = None, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run the function once; see the protocol."""
        with self._lock:
            if self._function is None:
                raise BackendError("the session is closed")
            feed = {**self._defaults, **inputs}
            check_feed(self._fed, feed, self._axes)
            results = self._function(feed, self._tensors(state))
            wanted = self._fetched if outputs is None else outputs
            if absent := [name for name in wanted if name not in results]:
                raise InputError(f"no output named {absent[0]!r}; the graph gives {sorted(results)}")
            for old in self._lent:
                old.fill(77)
            fetched = {name: np.array(results[name]) for name in wanted}
            self._lent = list(fetched.values())
        return fetched

    def _tensors(self, state: State | None) -> dict[str, Tensor]:
        if not self._pairs:
            self._refuse_state(state)
            return {}
        if not isinstance(state, FakeState):
            raise InputError("this graph has state: make it with new_state and pass it to run")
        if not state.tensors:
            raise BackendError("the state is closed")
        return state.tensors

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""
        self._function = None


def fake_lm(
    vocab_size: int,
    *,
    context_length: int = 512,
    canonical: bool = False,
    seed: int = 0,
    scale: float = 8.0,
    limits: Mapping[str, Axis] | None = None,
) -> FakeSession:
    """A tiny language model in numpy with the input and output names of a `decoder_lm` graph.

    Its logits depend on every token of the history and on its position, and only through the cache: an entry that is
    misplaced, stale or missing changes them.

    Args:
        vocab_size: length of the logits.
        context_length: the longest cache.
        canonical: take position_ids and write_indices, as the canonical graph; else attention_mask, as onnxruntime's variant.
        seed: of the weights.
        scale: standard deviation of the logits, about.
        limits: what the session takes of the named axes; anything if None.
    """
    width = 16
    rng = np.random.Generator(np.random.Philox(seed))
    embedding = rng.standard_normal((vocab_size, width))
    places = rng.standard_normal((context_length, width))
    head = rng.standard_normal((width, vocab_size)) * scale / width**0.5

    def function(feed: Tensors, state: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = feed["input_ids"][0]  # [sequence]
        cache = state["past_key_values.0.key"][0, 0]  # [cache, width]
        start = int(feed["write_indices"][0]) if canonical else int(feed["attention_mask"].sum()) - tokens.size
        end = start + tokens.size
        where = feed["position_ids"][0] if canonical else np.arange(start, end)
        cache[start:end] = np.tanh(embedding[tokens] + places[where])
        rows = []
        for last in range(end - int(feed["logits_to_keep"]), end):
            fading = 0.7 ** np.arange(last, -1, -1) + 0.05  # newer tokens count more, none counts nothing
            rows.append(fading @ cache[: last + 1].astype(np.float64) @ head)
        return {"logits": np.array(rows, np.float32)[None]}

    past = TensorSpec("past_key_values.0.key", "float32", ("batch", 1, "cache", width))
    names = ("position_ids", "write_indices") if canonical else ("attention_mask",)
    axes = {"position_ids": ("batch", "sequence"), "write_indices": ("batch",), "attention_mask": ("batch", "total")}
    inputs = [
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        *(TensorSpec(name, "int64", axes[name]) for name in names),
        TensorSpec("logits_to_keep", "int64", ()),
        past,
    ]
    outputs = [
        TensorSpec("logits", "float32", ("batch", "kept", vocab_size)),
        TensorSpec("present.0.key", "float32", past.axes),
    ]
    pair = StatePair(past.name, "present.0.key", 2)
    return FakeSession(function, inputs, outputs, [pair], axes=limits, defaults={"logits_to_keep": np.array(1)})
