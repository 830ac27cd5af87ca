"""TensorRT and TensorRT-RTX: one session for one graph, its state in device memory."""

import contextlib
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgegen.backends.base import State
from edgegen.backends.feed_check import FeedCheck
from edgegen.backends.graph_session import GraphSession
from edgegen.backends.trt.buffers import Buffers
from edgegen.backends.trt.cuda import Cuda, load_runtime
from edgegen.backends.trt.engine import Engine, RunOptions
from edgegen.backends.trt.flavours import Flavour
from edgegen.backends.trt.log import Log
from edgegen.backends.trt.profiles import BuildOptions, plan
from edgegen.backends.trt.runner import Runner
from edgegen.backends.trt.state import TrtState
from edgegen.errors import BackendError, InputError
from edgegen.graphs.edit import without_defaults
from edgegen.manifest import StatePair
from edgegen.tensors import Tensor, Tensors

if TYPE_CHECKING:
    from edgegen.bundle import GraphFiles


class TrtSession(GraphSession):
    """One engine, on one GPU: see `edgegen.backends.base.Session` for the contract.

    Contexts are made when they are first needed: one for each profile, and one for each recorded run. Runs that come again with
    the same shapes and memory, as the decode step does, are recorded and launched as one CUDA graph.

    Attributes:
        backend: the flavour's name.
        gpu: what it runs on.
    """

    def __init__(
        self,
        engine: bytes,
        flavour: Flavour,
        files: "GraphFiles",
        options: BuildOptions,
        *,
        device: int = 0,
        run: RunOptions | None = None,
    ) -> None:
        """Deserialize an engine that `build_engine` has made with the same arguments.

        Args:
            engine: native code: never one from elsewhere.
            flavour: the library that built it.
            files: the graph that it was built from; nothing of it is held.
            options: what it was built for.
            device: the GPU's number.
            run: how to run it.

        Raises:
            BackendError: the library or CUDA is missing, or refuses the engine; there is no memory; it is not of this graph.
            InputError: no such device, or an option that there is not.
        """
        trt, run = flavour.load(), run or RunOptions()
        self.backend = flavour.name
        self._what = f"{flavour.name} {flavour.version()}, {files.variant.path}"
        self._trt = trt
        self._lock = threading.RLock()
        self._states: weakref.WeakSet[TrtState] = weakref.WeakSet()
        self._runners: dict[int, Runner] = {}
        self._plan = plan(files.variant, files.axes, options)
        variant = files.variant
        super().__init__(variant.path, variant.inputs, variant.outputs, variant.state, self._plan.axes)
        self._defaults = without_defaults(files.model)[1]
        self._feeds = FeedCheck(self._fed, self._fed.keys(), self._outputs, self._plan.axes)
        self._log = Log(trt)
        with self._log, contextlib.ExitStack() as opened:  # closed again where the rest of the opening fails
            self._cuda = Cuda(load_runtime(), device)
            self._cuda.use()
            self.gpu = self._cuda.gpu()
            self._stream = self._cuda.stream()
            opened.callback(self._stream.close)
            self._buffers = Buffers(self._cuda)
            opened.callback(self._buffers.close)
            self._engine: Engine | None = Engine(trt, engine, self._what, self._log, run)
            opened.callback(self._engine.close)
            self._engine.check(files.variant, len(self._plan.profiles))
            self._graphs = run.cuda_graphs and not self._engine.captures_itself
            self._graph_state = ("by the library" if self._engine.captures_itself else "on") if run.cuda_graphs else "off"
            aliased = sum(self._engine.aliases(pair.output, pair.input) for pair in self._pairs)
            self._state_kind = "in place" if aliased == len(self._pairs) else "two copies that change places"
            self._values = {name: spec for name, spec in self._fed.items() if self._engine.slots[name].is_on_host}
            self._opened = opened.pop_all()

    @property
    def details(self) -> dict[str, str]:
        """How it runs, for a report: library, GPU, profiles, state, CUDA graphs, device memory, and what RTX alone has."""
        with self._lock:
            engine = self._open()
            graphs = next((runner.graph_state for runner in self._runners.values() if self._graphs and not runner.graphs), None)
            held = self._buffers.device_bytes + engine.scratch_bytes + sum(state.device_bytes for state in self._states)
            return {
                "library": self._what.partition(",")[0],
                "gpu": f"{self.gpu.name} (SM {self.gpu.sm}), CUDA {self.gpu.runtime}, driver {self.gpu.driver}",
                "profiles": "; ".join(map(str, self._plan.profiles)),
                **({"state": self._state_kind} if self._pairs else {}),
                "cuda graphs": graphs or self._graph_state,
                "device memory": f"{held} bytes besides the engine",
                **engine.details(),
            }

    @property
    def counts(self) -> dict[str, int]:
        """How often a run was queued piece by piece, recorded, and launched as recorded."""
        runners = self._runners.values()
        return {
            "plain": sum(runner.plain_runs for runner in runners),
            "recorded": sum(runner.recorded for runner in runners),
            "replayed": sum(runner.replays for runner in runners),
        }

    def new_state(self, capacity: int) -> State:
        """Fresh zero state. It has room for the whole cache that the engine was built for, which is at least `capacity`."""
        if not self._pairs:
            return super().new_state(capacity)
        for pair, spec in self._pairs.items():
            bounds = self._plan.axes.get(str(spec.axes[pair.axis]))
            if capacity < 1 or (bounds is not None and capacity > bounds.max):
                most = "" if bounds is None else f", at most {bounds.max}"
                raise InputError(f"a state of {capacity} entries was asked for; the engine has at least 1{most}")
        with self._lock:
            engine = self._open()
            self._cuda.use()
            profile = self._plan.profiles[0]
            shapes = {spec.name: profile.shapes(spec)[1] for spec in self._pairs.values()}
            state = TrtState(self._cuda, self._stream, self._pairs, shapes, lambda pair: _aliased(engine, pair), self._lock)
            self._states.add(state)
        return state

    def run(self, inputs: Tensors, *, state: State | None = None, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run once: see the protocol."""
        with self._lock, self._log:
            engine = self._open()
            held = self._check_state(state)
            names = self._fetched if outputs is None else tuple(outputs)
            feed = {**{name: value for name, value in self._defaults.items() if name not in inputs}, **inputs}
            self._feeds.check(feed, names)
            place = self._plan.choose(self._fed, feed, self._values)
            self._log.clear()
            self._cuda.use()
            if place not in self._runners:
                self._runners[place] = Runner(
                    self._trt, engine, self._cuda, self._stream, self._buffers, place, self._log, self._what, self._graphs
                )
            return self._runners[place].run(feed, held, names)

    def close(self) -> None:
        """Free the session and every state of it."""
        with self._lock, self._log:
            with contextlib.suppress(BackendError):  # a device that has failed: what it held is gone with it
                self._cuda.use()
            for state in list(self._states):
                state.close()
            for runner in self._runners.values():
                runner.close()
            self._runners.clear()
            self._engine = None
            self._opened.close()

    def _open(self) -> Engine:
        if self._engine is None:
            raise BackendError(f"the session of {self._path} is closed; load the bundle again")
        return self._engine

    def _check_state(self, state: State | None) -> TrtState | None:
        if not self._pairs:
            self._refuse_state(state)
            return None
        if not isinstance(state, TrtState) or state not in self._states or not state.is_open:
            raise InputError(f"{self._path} needs an open state, made by new_state() of this session")
        return state


def _aliased(engine: Engine, pair: StatePair) -> bool:
    return engine.aliases(pair.output, pair.input)
