"""ONNX Runtime: one session for one graph, its state bound in place."""

import functools
import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgegen.backends.base import State
from edgegen.backends.feed_check import FeedCheck
from edgegen.backends.graph_session import GraphSession
from edgegen.backends.ort.binding import Binding
from edgegen.backends.ort.create import check_signature, create, session_options, with_kernels
from edgegen.backends.ort.device import Captures, DeviceBinding, Place
from edgegen.backends.ort.failures import ERRORS, backend_error
from edgegen.backends.ort.providers import (
    CPU,
    check_placement,
    config_for,
    may_capture,
    may_fall_back,
    options_for,
    provider_of,
    usable,
)
from edgegen.backends.ort.state import OrtState, Shelf
from edgegen.backends.threads import default_threads
from edgegen.errors import BackendError, InputError
from edgegen.graphs.walk import Content, ExternalTensor
from edgegen.manifest import Variant
from edgegen.tensors import Axis, Tensor, Tensors

_log = logging.getLogger("edgegen")


class OrtSession(GraphSession):
    """One graph variant in ONNX Runtime, from memory: see `edgegen.backends.base.Session` for the contract.

    An input with a default in the graph may be left out, which is also faster. `threads` is what the session runs with,
    `kernels` whose: the instruction set of edgegen's own, or "" where all are onnxruntime's. `provider` is the one that the
    session really has, and `captured` whether runs that repeat become CUDA graphs.
    """

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
        device: int = 0,
        allow_fallback: bool | None = None,
        cuda_graphs: bool | None = None,
        resident: bool | None = None,
        cache_length: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Build the session. It may hold on to `weights` until it is closed: their bytes must not change.

        Args:
            model: the serialized ONNX graph.
            weights: the content of each external-data file, by the name the graph refers to.
            variant: what the manifest says of the graph; the graph is held to it.
            axes: the ranges of the named axes.
            external: where the tensors lie in `weights` (`graphs.walk.check` tells).
            folder: where the same weights lie as files. With both, weights are read where they are; else they are copied.
            threads: threads for one operator, the calling one included; one for each usable physical core if None.
            provider: a name of `ort.providers.PROVIDERS`. One that cannot be used here, or leaves operators that compute to
                the CPU, is an error.
            device: the number of the GPU.
            allow_fallback: log that instead and go on; if None, as EDGEGEN_ALLOW_FALLBACK says, else not.
            cuda_graphs: capture runs that repeat, where the provider can; if None, as EDGEGEN_CUDA_GRAPHS says, else not.
            resident: keep state and what repeats in the memory of the device; if None, wherever that is not the host's.
            cache_length: how long the state is, for a provider that must know it; the longest that was exported if None.
            config: ONNX Runtime session config entries, for experiments.

        Raises:
            BackendError: the provider cannot be used, or ONNX Runtime refuses the graph.
            InputError: `threads` is below 1, or `device` no number of a GPU.
        """
        self.threads = default_threads() if threads is None else threads
        if self.threads < 1:
            raise InputError(f"threads is {self.threads}; it must be at least 1")
        if isinstance(device, bool) or not isinstance(device, int) or device < 0:
            raise InputError(f"device is {device!r}; give the number of a GPU, counted from 0")
        self._device = device
        super().__init__(variant.path, variant.inputs, variant.outputs, variant.state, axes)
        self._lock = threading.Lock()
        self._states: weakref.WeakSet[OrtState] = weakref.WeakSet()
        fallback = may_fall_back(allow_fallback)
        self.provider = usable(provider, variant.path, fallback=fallback)
        self.backend = "onnxruntime" if self.provider == CPU else f"onnxruntime-{self.provider}"
        self._fixed = self._fixed_axis(cache_length)
        self._native: Any
        self._native, self._shared, self.kernels = self._build(
            model, weights, variant, cuda_graphs, config=config or {}, external=external, folder=folder
        )
        check_placement(self._native, self.provider, variant.path, fallback=fallback)
        self._optional = check_signature(self._native, variant)
        self._resident = self.provider != CPU if resident is None else resident
        self._captures = Captures(self._native) if self.captured else None
        self._shelf = Shelf() if self.captured else None
        self._plain = None if variant.state or not self._resident else self._new_binding()
        self._feeds = FeedCheck(self._fed, self._fed.keys() - self._optional, self._outputs, axes)

    def _build(
        self,
        model: bytes,
        weights: Mapping[str, Content],
        variant: Variant,
        cuda_graphs: bool | None,
        *,
        config: Mapping[str, str],
        external: Sequence[ExternalTensor],
        folder: Path | None,
    ) -> tuple[Any, Sequence[Any], str]:
        """The native session, what must live as long, and whose kernels it has; without CUDA graphs where they are refused."""
        config = {**config_for(self.provider), **config}
        options = functools.partial(session_options, self.threads, config, stateful=bool(variant.state), fixed=self._fixed)
        self.captured = may_capture(self.provider, cuda_graphs)
        while True:
            told = options_for(self.provider, variant, self._axes, capture=self.captured)
            opener = functools.partial(create, weights, external, folder, self.provider, told, self._device, variant.path)
            try:
                return with_kernels(opener, model, options, variant, self.provider)
            except BackendError as error:
                if not self.captured:
                    raise
                self.captured = False
                _log.warning("%s runs without CUDA graphs: %s", variant.path, error)

    @property
    def axes(self) -> Mapping[str, Axis]:
        """The sizes of the named axes that it takes: as exported, but for a state whose length the provider has to know."""
        return {**self._axes, **{name: Axis(self._axes[name].min, size, size) for name, size in self._fixed.items()}}

    @property
    def details(self) -> dict[str, str]:
        """How it runs, for a report: provider, threads, kernels, CUDA graphs."""
        if self.provider == CPU:
            return {"provider": self.provider, "threads": str(self.threads), "kernels": self.kernels or "onnxruntime's"}
        return {"provider": self.provider, "cuda graphs": "on" if self.captured else "off"}

    def new_state(self, capacity: int) -> State:
        """Fresh zero state with room for `capacity` entries; InputError where the graph has none or it cannot be that long."""
        if not self._pairs:
            return super().new_state(capacity)
        with self._lock:
            fixed = next(iter(self._fixed.values()), None)
            self._open()
            state = OrtState(self._new_binding(), self._pairs, self._axes, capacity, fixed, self._shelf)
            self._states.add(state)
        return state

    def run(self, inputs: Tensors, *, state: State | None = None, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run once: see the protocol."""
        with self._lock:
            native = self._open()
            binding = self._binding(state)
            names = self._fetched if outputs is None else tuple(outputs)
            if binding is None or not binding.repeats(inputs, names):
                self._feeds.check(inputs, names)
            try:
                if binding is None:  # a plain run costs less than a binding of which nothing stays bound
                    return dict(zip(names, native.run(names, inputs), strict=bool(names)))  # it takes () for all
                return binding.run(inputs, names, self._optional)
            except ERRORS as error:
                raise backend_error(f"{self._path} failed", error) from error

    def close(self) -> None:
        """Free the session and every state of it."""
        with self._lock:
            for state in list(self._states):
                state.close()
            if self._shelf is not None:
                self._shelf.clear()
            if self._plain is not None:
                self._plain.clear()
            self._plain = None
            self._native = None
            self._shared = ()

    def _open(self) -> Any:
        if self._native is None:
            raise BackendError(f"the session of {self._path} is closed; load the bundle again")
        return self._native

    def _fixed_axis(self, cache_length: int | None) -> dict[str, int]:
        """The growing axis and its only length, where the provider has to know it."""
        if not self._pairs or not provider_of(self.provider).fixed_state:
            return {}
        pair, spec = next(iter(self._pairs.items()))
        name = str(spec.axes[pair.axis])
        longest = self._axes[name].max
        if cache_length is not None and not 1 <= cache_length <= longest:
            raise InputError(f"cache_length is {cache_length}; {name} is 1 to {longest}")
        return {name: cache_length or longest}

    def _new_binding(self) -> Binding:
        if not self._resident:
            return Binding(self._native)
        has_plugin = bool(provider_of(self.provider).package)
        name, number = ("cpu", 0) if self.provider == CPU else ("cuda", self._device)
        place = Place(name, number, self._native if has_plugin else None)
        return DeviceBinding(self._native, place, {**self._inputs, **self._outputs}, self._captures)

    def _binding(self, state: State | None) -> Binding | None:
        """What keeps the state bound, or a session's own memory on the device; None where there is neither."""
        if not self._pairs:
            self._refuse_state(state)
            return self._plain
        if not isinstance(state, OrtState) or state not in self._states or state.binding is None:
            raise InputError(f"{self._path} needs an open state, made by new_state() of this session")
        return state.binding
