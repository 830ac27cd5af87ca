"""ONNX Runtime: one session for one graph, its state bound in place."""

import functools
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edgegen.backends.base import State
from edgegen.backends.memory import Content
from edgegen.backends.ort_binding import Binding
from edgegen.backends.ort_create import CPU, ERRORS, backend_error, check_signature, create, session_options, with_kernels
from edgegen.backends.ort_state import OrtState
from edgegen.backends.threads import default_threads
from edgegen.errors import BackendError, InputError
from edgegen.manifest import Variant
from edgegen.onnx_walk import ExternalTensor
from edgegen.tensors import Axis, Tensor, Tensors, TensorSpec, check_feed


class OrtSession:
    """One graph variant in ONNX Runtime, from memory: see `edgegen.backends.base.Session` for the contract.

    An input with a default in the graph may be left out, which is also faster. `threads` is what the session runs with,
    `kernels` whose: the instruction set of edgegen's own, or "" where all are onnxruntime's.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        model: bytes,
        weights: Mapping[str, Content],
        variant: Variant,
        axes: Mapping[str, Axis],
        *,
        threads: int | None = None,
        external: Sequence[ExternalTensor] = (),
        folder: Path | None = None,
        provider: str = CPU,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Build the session. It may hold on to `weights` until it is closed: their bytes must not change.

        Args:
            model: the serialized ONNX graph.
            weights: the content of each external-data file, by the name the graph refers to.
            variant: what the manifest says of the graph; the graph is held to it.
            axes: the ranges of the named axes.
            external: where the tensors lie in `weights` (`onnx_walk.check` tells).
            folder: where the same weights lie as files. With both, weights are read where they are; else they are copied.
            threads: threads for one operator, the calling one included; one for each usable physical core if None.
            provider: the execution provider; one that is not there is an error, never a silent fallback.
            config: ONNX Runtime session config entries, for experiments.

        Raises:
            BackendError: the provider is missing, or ONNX Runtime refuses the graph.
            InputError: `threads` is below 1.
        """
        self.threads = default_threads() if threads is None else threads
        if self.threads < 1:
            raise InputError(f"threads is {self.threads}; it must be at least 1")
        self._path, self._axes = variant.path, axes
        self._inputs = {spec.name: spec for spec in variant.inputs}
        self._outputs = {spec.name: spec for spec in variant.outputs}
        self._pairs = {pair: self._inputs[pair.input] for pair in variant.state}
        state = {name for pair in variant.state for name in (pair.input, pair.output)}
        self._fetched = tuple(name for name in self._outputs if name not in state)
        self._lock = threading.Lock()
        self._states: weakref.WeakSet[OrtState] = weakref.WeakSet()
        options = functools.partial(session_options, self.threads, config or {}, stateful=bool(variant.state))
        opener = functools.partial(create, weights, external, folder, provider, variant.path)
        self._native: Any
        self._native, self._shared, self.kernels = with_kernels(opener, model, options, variant, provider)
        self._optional = check_signature(self._native, variant)
        self._fed = {name: spec for name, spec in self._inputs.items() if name not in state}
        self._required = self._fed.keys() - self._optional
        self._checked: tuple[Any, ...] | None = None

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Every input, state included."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Every output, state included."""
        return self._outputs

    def new_state(self, capacity: int) -> "OrtState":
        """Fresh zero state with room for `capacity` entries; InputError where the graph has none or it cannot be that long."""
        if not self._pairs:
            raise InputError(f"{self._path} keeps no state; run it without one")
        with self._lock:
            state = OrtState(Binding(self._open()), self._pairs, self._axes, capacity)
            self._states.add(state)
        return state

    def run(self, inputs: Tensors, *, state: State | None = None, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run once: see the protocol."""
        with self._lock:
            native = self._open()
            binding = self._binding(state)
            names = self._fetched if outputs is None else tuple(outputs)
            if binding is None or not binding.repeats(inputs, names):
                self._check(inputs, names)
            try:
                if binding is None:  # a plain run costs less than a binding of which nothing stays bound
                    return dict(zip(names, native.run(names, inputs), strict=bool(names)))  # it takes () for all
                return binding.run(inputs, names, self._optional)
            except ERRORS as error:
                raise backend_error(f"{self._path} failed", error) from error

    def _check(self, inputs: Tensors, names: tuple[str, ...]) -> None:
        form = (names, *((name, array.dtype, array.shape) for name, array in inputs.items()))
        if form == self._checked:  # as the last run's
            return
        self._checked = None
        check_feed({name: self._fed[name] for name in self._fed.keys() & inputs.keys() | self._required}, inputs, self._axes)
        unknown = [name for name in names if name not in self._outputs]
        if unknown:
            raise InputError(f"no output named {unknown}; there are {sorted(self._outputs)}")
        self._checked = form

    def close(self) -> None:
        """Free the session and every state of it."""
        with self._lock:
            for state in list(self._states):
                state.close()
            self._native = None
            self._shared = ()

    def __enter__(self) -> "OrtSession":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> Any:
        if self._native is None:
            raise BackendError(f"the session of {self._path} is closed; load the bundle again")
        return self._native

    def _binding(self, state: State | None) -> "Binding | None":
        """What keeps the state bound; None where the graph has none."""
        if not self._pairs:
            if state is not None:
                raise InputError(f"{self._path} keeps no state; run it without one")
            return None
        if not isinstance(state, OrtState) or state not in self._states or state.binding is None:
            raise InputError(f"{self._path} needs an open state, made by new_state() of this session")
        return state.binding
