"""Runs of one execution context: tensors bound, work queued, and a run that comes again launched as a recorded graph."""

import logging
import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from edgegen.backends.trt.allocator import Grown
from edgegen.backends.trt.buffers import Buffers
from edgegen.backends.trt.cuda import Cuda, Graph, Stream
from edgegen.backends.trt.engine import Engine, Slot
from edgegen.backends.trt.log import Log
from edgegen.backends.trt.state import TrtState
from edgegen.errors import BackendError
from edgegen.tensors import Tensor, Tensors

_log = logging.getLogger("edgegen")

_KEPT = 4  # recorded runs of one profile, and runs that may come again: a state in two copies needs two of each


@dataclass
class _Bound:
    """A run whose tensors are bound: the copies around it, each (target, source, bytes), and what it will give."""

    copies_in: list[tuple[int, int, int]] = field(default_factory=list)
    copies_out: list[tuple[int, int, int]] = field(default_factory=list)
    results: dict[str, Tensor] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)  # outputs whose shape the run itself finds out


class _Recorded(NamedTuple):
    """A recorded run, and the context that it was recorded of.

    The library leaves open what a graph does once its context has been told other shapes or addresses: such a context does
    nothing else from then on, as long as the graph is there.
    """

    graph: Graph
    context: Any
    results: dict[str, Tensor]


class Runner:
    """The runs of one profile: plain ones in a context of their own, each recorded one with the context that it came from.

    Used by one thread at a time; `close` before its engine.

    Attributes:
        graphs: whether runs are recorded; `graph_state` says it, or why not.
        plain_runs, recorded, replays: how often each was done.
    """

    def __init__(
        self,
        trt: Any,
        engine: Engine,
        cuda: Cuda,
        stream: Stream,
        buffers: Buffers,
        profile: int,
        log: Log,
        what: str,
        graphs: bool,
    ) -> None:
        self._trt, self._engine, self._cuda, self._stream, self._buffers = trt, engine, cuda, stream, buffers
        self._log, self._what, self._profile = log, what, profile
        self._context: Any = None  # for the next plain run
        self._grown: dict[str, Grown] = {}
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self.graphs = graphs
        self.graph_state = "on" if graphs else "off"
        self.plain_runs = self.recorded = self.replays = 0

    def run(self, feed: Tensors, state: TrtState | None, names: Sequence[str]) -> dict[str, Tensor]:
        """Run once and wait. The arrays are valid until the next run that fetches the same outputs."""
        key = self._key(feed, state, names)
        found = self._recorded.get(key)
        if found is None:
            results = self._run_plainly(feed, state, names)
        else:
            results = found.results
            self._recorded.move_to_end(key)
            self._stage(feed)
            found.graph.launch(self._stream)
            self._stream.wait()
            self.replays += 1
        if state is not None:
            state.advance()
        return dict(results)

    def close(self) -> None:
        """Free the contexts and what was recorded. Closing twice is allowed."""
        while self._recorded:
            self._forget()
        self._context = None
        for grown in self._grown.values():
            grown.close()

    def _run_plainly(self, feed: Tensors, state: TrtState | None, names: Sequence[str]) -> dict[str, Tensor]:
        self._prepare()
        bound = self._bind(feed, state, names)
        self._queue(bound)
        self._fetch_late(bound)
        self._stream.wait()
        self.plain_runs += 1
        key = self._key(feed, state, names)  # binding may have brought new memory
        if self.graphs and not bound.late and key in self._seen:
            self._record(key, bound)
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _KEPT:
            self._seen.popitem(last=False)
        return bound.results

    def _record(self, key: Hashable, bound: _Bound) -> None:
        """Record a run that has come twice. Right behind a plain run of the same shapes: the library asks for that."""
        if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(self._stream.handle):
            self._do_not_record("the library cannot be recorded for this graph")
            return
        try:
            graph = self._stream.record(lambda: self._queue(bound))
        except BackendError as error:
            self._do_not_record(str(error))
            return
        self.recorded += 1
        self._recorded[key], self._context = _Recorded(graph, self._context, bound.results), None
        if len(self._recorded) > _KEPT:
            self._forget()

    def _prepare(self) -> None:
        """See to it that there is a context for a plain run: a new one, or that of a graph where there is no memory for it."""
        if self._context is not None:
            return
        try:
            self._context = self._engine.context(self._cuda, self._stream, self._profile)
        except BackendError:
            if not self._recorded:
                raise
            self._log.clear()
            self._forget()

    def _forget(self) -> None:
        """Give up the recorded run that was not launched for longest; its context is free for others."""
        _, oldest = self._recorded.popitem(last=False)
        oldest.graph.close()
        self._context = oldest.context

    def _do_not_record(self, reason: str) -> None:
        _log.info("%s runs without CUDA graphs: %s", self._what, reason)
        self._log.clear()
        self.graphs, self.graph_state = False, f"off: {reason}"

    def _key(self, feed: Tensors, state: TrtState | None, names: Sequence[str]) -> Hashable:
        """What must be the same for a recorded run to be this one: shapes, values that are shapes, memory, results."""
        slots = self._engine.slots
        fed = tuple((name, array.shape, array.tobytes() if slots[name].is_on_host else b"") for name, array in feed.items())
        held = () if state is None else tuple(state.addresses().items())
        return fed, held, tuple(names), self._buffers.version

    def _stage(self, feed: Tensors) -> None:
        for name, array in feed.items():
            host = self._buffers.host(name, array.nbytes)
            np.copyto(host.array(array.dtype, array.shape), array)

    def _bind(self, feed: Tensors, state: TrtState | None, names: Sequence[str]) -> _Bound:
        self._stage(feed)  # first: values that are shapes are read while shapes are inferred
        bound, slots = _Bound(), self._engine.slots
        for name, array in feed.items():
            host = self._buffers.host(name, array.nbytes)
            if slots[name].is_on_host:
                self._set_input(slots[name], array.shape, host.address)
            else:
                address = self._buffers.device(name, array.nbytes).address
                bound.copies_in.append((address, host.address, array.nbytes))
                self._set_input(slots[name], array.shape, address)
        held = {} if state is None else state.addresses()
        for name, shape in ({} if state is None else state.shapes).items():
            self._set_input(slots[name], shape, held[name])
        self._infer_shapes()
        for slot in slots.values():
            if not slot.is_input:
                self._bind_output(slot, held.get(slot.name), slot.name in names, bound)
        return bound

    def _set_input(self, slot: Slot, shape: tuple[int, ...], address: int) -> None:
        if -1 in slot.shape and not self._context.set_input_shape(slot.name, shape):
            raise self._log.failure(f"{self._what} does not take input {slot.name!r} of shape {list(shape)}")
        self._set_address(slot.name, address)

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._log.failure(f"{self._what}: tensor {name!r} cannot be bound")

    def _infer_shapes(self) -> None:
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise self._log.failure(f"{self._what}: these shapes do not go together ({error})") from error
        if missing:
            raise self._log.failure(f"{self._what}: the shapes of {list(missing)} are not known")

    def _bind_output(self, slot: Slot, held: int | None, is_wanted: bool, bound: _Bound) -> None:
        """Bind an output: to the state's memory, to a buffer, or to an allocator where its shape is not known yet."""
        name, shape = slot.name, tuple(self._context.get_tensor_shape(slot.name))
        if -1 in shape:
            grown = self._grown.setdefault(name, Grown(self._trt, self._cuda, name))
            if not self._context.set_output_allocator(name, grown.native):
                raise self._log.failure(f"{self._what}: output {name!r} cannot be bound")
            bound.late += [name] if is_wanted else []
            return
        size_bytes = math.prod(shape) * np.dtype(slot.dtype).itemsize
        host = self._buffers.host(name, size_bytes) if is_wanted or slot.is_on_host else None
        if slot.is_on_host and host is not None:
            address = host.address
        else:
            address = self._buffers.device(name, size_bytes).address if held is None else held
        self._set_address(name, address)
        if is_wanted and host is not None:
            bound.results[name] = host.array(slot.dtype, shape)
            bound.copies_out += [] if slot.is_on_host else [(host.address, address, size_bytes)]

    def _queue(self, bound: _Bound) -> None:
        for copy in bound.copies_in:
            self._stream.to_device(*copy)
        if not self._context.execute_async_v3(self._stream.handle):
            reasons = [grown.error for grown in self._grown.values() if grown.error is not None]
            raise reasons[0] if reasons else self._log.failure(f"{self._what} failed")
        for copy in bound.copies_out:
            self._stream.to_host(*copy)

    def _fetch_late(self, bound: _Bound) -> None:
        for name in bound.late:
            grown, slot = self._grown[name], self._engine.slots[name]
            size_bytes = math.prod(grown.shape) * np.dtype(slot.dtype).itemsize
            host = self._buffers.host(name, size_bytes)
            self._stream.to_host(host.address, grown.address, size_bytes)
            bound.results[name] = host.array(slot.dtype, grown.shape)
