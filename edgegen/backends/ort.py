"""ONNX Runtime: one session for one graph, its state bound in place."""

import functools
import logging
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgegen.backends.base import State
from edgegen.backends.feed_check import FeedCheck
from edgegen.backends.kernel_nodes import exchange
from edgegen.backends.kernels import Kernels, kernels
from edgegen.backends.memory import Content, give_back, pages_let_go
from edgegen.backends.ort_binding import Binding
from edgegen.backends.threads import default_threads
from edgegen.errors import BackendError, InputError
from edgegen.manifest import StatePair, Variant
from edgegen.onnx_walk import ExternalTensor
from edgegen.tensors import Axis, Tensor, Tensors, TensorSpec

_log = logging.getLogger("edgegen")

_CPU = "CPUExecutionProvider"
_ALIGNMENT = 64  # bytes: a cache line, and the width of an AVX-512 register
_ERRORS: tuple[type[BaseException], ...] = (
    RuntimeError,
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
_ONLY_ERRORS = 3  # ONNX Runtime's log severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal
_DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's other names are numpy's


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
        provider: str = _CPU,
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
        options = functools.partial(_options, self.threads, config or {}, stateful=bool(variant.state))
        create = functools.partial(_create, weights, external, folder, provider, variant.path)
        self._native: Any
        self._native, self._shared, self.kernels = _with_kernels(create, model, options, variant, provider)
        self._optional = _check_signature(self._native, variant)
        fed = {name: spec for name, spec in self._inputs.items() if name not in state}
        self._feeds = FeedCheck(fed, fed.keys() - self._optional, self._outputs, axes)

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
                self._feeds.check(inputs, names)
            try:
                if binding is None:  # a plain run costs less than a binding of which nothing stays bound
                    return dict(zip(names, native.run(names, inputs), strict=bool(names)))  # it takes () for all
                return binding.run(inputs, names, self._optional)
            except _ERRORS as error:
                raise _backend_error(f"{self._path} failed", error) from error

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


class OrtState:
    """State in host memory: each tensor is bound as its past and as its present, so a run updates it in place."""

    def __init__(
        self, binding: "Binding", pairs: Mapping[StatePair, TensorSpec], axes: Mapping[str, Axis], capacity: int
    ) -> None:
        self.binding: Binding | None = binding
        self._pairs, self._axes = pairs, axes
        self._arrays: dict[str, Tensor] = {}
        self._capacity = 0
        self._grow(capacity, 0)

    @property
    def capacity(self) -> int:
        """The present length of the growing axis; 0 once closed."""
        return self._capacity

    def reserve(self, capacity: int, keep: int) -> None:
        """Make the growing axis at least `capacity` long and keep the first `keep` entries: see the protocol."""
        if not 0 <= keep <= self._capacity:
            raise InputError(f"{keep} entries of a state of {self._capacity} were to be kept")
        if capacity > self._capacity:
            self._grow(capacity, keep)

    def read(self, name: str) -> Tensor:
        """A copy of the state tensor with that input name."""
        if name not in self._arrays:
            raise InputError(f"no state named {name!r}; there are {sorted(self._arrays)}")
        return self._arrays[name].copy()

    def close(self) -> None:
        """Free the memory."""
        self.binding = None
        self._arrays.clear()
        self._capacity = 0

    def _grow(self, capacity: int, keep: int) -> None:
        if self.binding is None:
            raise BackendError("the state is closed; make another with new_state()")
        for pair, spec in self._pairs.items():  # one by one, so that old and new exist side by side for one tensor only
            grown = _zeros(spec, _state_shape(spec, pair, self._axes, capacity))
            if keep:
                kept = (slice(None),) * pair.axis + (slice(keep),)
                grown[kept] = self._arrays[pair.input][kept]
            self._arrays[pair.input] = grown
            self.binding.hold(pair, ort.OrtValue.ortvalue_from_numpy(grown))
        self._capacity = capacity


def _state_shape(spec: TensorSpec, pair: StatePair, axes: Mapping[str, Axis], capacity: int) -> tuple[int, ...]:
    """The shape of a state tensor: `capacity` on the growing axis; other named axes have their `opt` size, 1 if unbounded."""
    growing = axes.get(str(spec.axes[pair.axis]))
    if capacity < 1 or (growing is not None and capacity > growing.max):
        most = "" if growing is None else f", at most {growing.max}"
        raise InputError(f"a state of {capacity} entries was asked for; {spec} has at least 1{most}")
    sizes = [axis if isinstance(axis, int) else axes[axis].opt if axis in axes else 1 for axis in spec.axes]
    sizes[pair.axis] = capacity
    return tuple(sizes)


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Tensor:
    """An aligned array of zeros, whose pages the system commits only when they are written."""
    size_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
    try:
        raw = np.zeros(size_bytes + _ALIGNMENT, np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: more than can be addressed
        raise BackendError(f"no memory for {size_bytes} bytes of state {spec.name!r}; ask for a shorter context") from error
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size_bytes].view(spec.dtype).reshape(shape)


def _options(threads: int, config: Mapping[str, str], *, stateful: bool, kernels: Kernels | None = None) -> Any:
    options = ort.SessionOptions()
    if kernels is not None:
        options.register_custom_ops_library(str(kernels.path))
    options.log_severity_level = _ONLY_ERRORS
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A memory pattern is kept for each shape that was ever fed, and a growing attention mask brings a new one at each step.
    options.enable_mem_pattern = not stateful
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def _with_kernels(
    create: Callable[[bytes, Callable[[], Any]], tuple[Any, Sequence[Any]]],
    model: bytes,
    options: Callable[..., Any],
    variant: Variant,
    provider: str,
) -> tuple[Any, Sequence[Any], str]:
    """A session with edgegen's kernels where they can take a node of the graph, else as the graph is; and whose they are."""
    own = kernels() if provider == _CPU else None
    if own is not None:
        last_axes = {spec.name: spec.axes[-1] for spec in variant.inputs if spec.dtype == "float32" and spec.axes}
        changed, count = exchange(model, {name: size for name, size in last_axes.items() if isinstance(size, int)})
        if count:
            try:
                return *create(changed, functools.partial(options, kernels=own)), own.instructions
            except BackendError as error:
                _log.info("%s runs without edgegen's kernels: %s", variant.path, error)
    return *create(model, options), ""


def _create(
    weights: Mapping[str, Content],
    external: Sequence[ExternalTensor],
    folder: Path | None,
    provider: str,
    path: str,
    model: bytes,
    options: Callable[[], Any],
) -> tuple[Any, Sequence[Any]]:
    """A session, and the values that it reads where they are: they must live as long as it does."""
    present = ort.get_available_providers()
    if provider not in present:
        raise BackendError(f"onnxruntime has no {provider} here; it has {', '.join(present)}")
    try:
        with pages_let_go(weights.values()):
            if provider == _CPU and folder and external and all(tensor.name and tensor.dtype for tensor in external):
                try:
                    return _create_in_place(model, weights, external, folder, options())
                except _ERRORS as error:
                    _log.info("%s: its weights are copied, for in place onnxruntime says: %s", path, error)
            return _create_with_copies(model, weights, options(), provider), ()
    except _ERRORS as error:
        raise _backend_error(f"onnxruntime {ort.__version__} refuses {path}", error) from error
    finally:
        give_back()


def _create_in_place(
    model: bytes, weights: Mapping[str, Content], external: Sequence[ExternalTensor], folder: Path, options: Any
) -> tuple[Any, Sequence[Any]]:
    """A session on the CPU whose kernels read, and pack, the bytes of `weights` themselves.

    ONNX Runtime has several ways to take weights from memory, and copies in all but this one: initializers shared among
    sessions. It wants to see the files that the graph names all the same, and an optimizer that folds a weight reads them.
    """
    values = {
        str(tensor.name): ort.OrtValue.ortvalue_from_numpy(_array(weights[tensor.location], tensor)) for tensor in external
    }
    for name, value in values.items():
        options.add_initializer(name, value)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model, options, providers=[_CPU]), list(values.values())


def _create_with_copies(model: bytes, weights: Mapping[str, Content], options: Any, provider: str) -> Any:
    if weights and not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise BackendError(f"onnxruntime {ort.__version__} cannot take these weights from memory; install 1.24 or newer")
    if weights:
        sizes = [memoryview(content).nbytes for content in weights.values()]
        options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes)
    return ort.InferenceSession(model, options, providers=[provider])


def _array(content: Content, tensor: ExternalTensor) -> Tensor:
    array: Tensor = np.ndarray(tensor.shape, tensor.dtype, content, tensor.offset)
    return array if array.flags.aligned else array.copy()


def _check_signature(session: Any, variant: Variant) -> frozenset[str]:
    """Hold the graph to what the manifest says of it; return the inputs that have a default.

    Raises BackendError where names, dtypes or ranks differ: a feed that fits the manifest would not fit the graph.
    """
    optional = session.get_overridable_initializers()
    for kind, specs, nodes in (
        ("inputs", variant.inputs, [*session.get_inputs(), *optional]),
        ("outputs", variant.outputs, session.get_outputs()),
    ):
        said = {spec.name: (spec.dtype, len(spec.axes)) for spec in specs}
        real = {node.name: (_dtype(node.type), len(node.shape)) for node in nodes}
        if said != real:
            names = sorted(name for name in said.keys() | real.keys() if said.get(name) != real.get(name))
            raise BackendError(f"{variant.path}: {kind} {names} differ from the manifest's; export the bundle again")
    return frozenset(node.name for node in optional)


def _dtype(name: str) -> str:
    inner = name.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(inner, inner)


def _backend_error(what: str, error: BaseException) -> BackendError:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return BackendError(f"{what}: {line}")
