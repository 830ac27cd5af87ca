"""A serialized engine made ready to run: deserialized, held to its graph's manifest, its contexts made on demand.

An engine is native code: only what edgegen built itself, or was told the digest of, comes here (`engine_host_code_allowed`
stays off all the same).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgegen.backends.trt.cuda import Cuda, DeviceMemory, Stream
from edgegen.backends.trt.log import Log
from edgegen.backends.trt.runtime_cache import RuntimeCache
from edgegen.errors import BackendError, InputError
from edgegen.manifest import Variant

_DTYPES = {  # trt.DataType's names: numpy's
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class RunOptions:
    """How an engine is run.

    Attributes:
        cuda_graphs: record a run whose shapes and memory come again, and launch it as a whole.
        specialization: TensorRT-RTX only: when kernels are compiled for the shapes that come: "lazy" (in the background, slower
            ones run meanwhile), "eager" (before the first run of each shape), "none".
        runtime_cache: TensorRT-RTX only: a file that keeps compiled kernels between processes. Like an engine it is native
            code: its folder must be the user's own.
    """

    cuda_graphs: bool = True
    specialization: str = "lazy"
    runtime_cache: Path | None = None


class Slot(NamedTuple):
    """An input or output of an engine. `shape` has -1 for an axis that is not fixed; `is_on_host` where it says shapes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool
    is_on_host: bool


class Engine:
    """A deserialized engine. Its contexts share one piece of scratch memory: runs of a session never overlap."""

    def __init__(self, trt: Any, content: bytes, what: str, log: Log, options: RunOptions) -> None:
        """Deserialize `content`; `what` names it in errors. BackendError where the library refuses it."""
        self._trt, self._what, self._log = trt, what, log
        self._runtime = _runtime(trt, log, what)
        _check_validity(trt, self._runtime, content, what)
        self._native = self._runtime.deserialize_cuda_engine(content)
        if self._native is None:
            cure = "it was built by another version or for another GPU, or is damaged: build it again"
            raise log.failure(f"{what}: the engine cannot be deserialized", cure)
        self.slots: Mapping[str, Slot] = {slot.name: slot for slot in map(self._slot, range(self._native.num_io_tensors))}
        self._cache: RuntimeCache | None = None
        self._config = self._runtime_config(options)
        self._scratch: DeviceMemory | None = None

    def _slot(self, place: int) -> Slot:
        trt, native = self._trt, self._native
        name = native.get_tensor_name(place)
        kind = native.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise BackendError(
                f"{self._what}: tensor {name!r} is {kind}; edgegen feeds and fetches {', '.join(_DTYPES.values())}"
            )
        return Slot(
            name,
            _DTYPES[kind],
            tuple(native.get_tensor_shape(name)),
            native.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            native.get_tensor_location(name) == trt.TensorLocation.HOST,
        )

    @property
    def captures_itself(self) -> bool:
        """Whether the library records CUDA graphs by itself: TensorRT-RTX, which knows when its kernels are compiled."""
        return hasattr(self._config, "cuda_graph_strategy")

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a run needs besides weights, inputs and outputs."""
        return int(self._native.device_memory_size_v2)

    def check(self, variant: Variant, profiles: int) -> None:
        """Hold the engine to what the manifest says of the graph. BackendError where they differ."""
        for kind, specs, is_input in (("inputs", variant.inputs, True), ("outputs", variant.outputs, False)):
            said = {spec.name: (spec.dtype, len(spec.axes)) for spec in specs}
            real = {slot.name: (slot.dtype, len(slot.shape)) for slot in self.slots.values() if slot.is_input == is_input}
            if said != real:
                names = sorted(name for name in said.keys() | real.keys() if said.get(name) != real.get(name))
                raise BackendError(f"{self._what}: the engine's {kind} {names} differ from the manifest's; build it again")
        if self._native.num_optimization_profiles != profiles:
            found = self._native.num_optimization_profiles
            raise BackendError(f"{self._what}: the engine has {found} profiles, {profiles} were asked for; build it again")

    def aliases(self, output: str, given: str) -> bool:
        """Whether the engine writes `output` over the input `given`. An engine of an older TensorRT never does."""
        find = getattr(self._native, "get_aliased_input_tensor", None)
        return find is not None and find(output) == given

    def context(self, cuda: Cuda, stream: Stream, profile: int) -> Any:
        """A context for one profile. BackendError where there is no memory for it."""
        if self._scratch is None:
            self._scratch = cuda.device_memory(self.scratch_bytes, f"the scratch memory of {self._what}")
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._config is not None:
            self._config.set_execution_context_allocation_strategy(strategy)
        context = self._native.create_execution_context(strategy if self._config is None else self._config)
        if context is None:
            raise self._log.failure(f"{self._what}: no execution context can be made")
        context.set_device_memory(self._scratch.address, self._scratch.size_bytes)
        if not context.set_optimization_profile_async(profile, stream.handle):
            raise self._log.failure(f"{self._what}: profile {profile} cannot be used")
        stream.wait()
        return context

    def details(self) -> dict[str, str]:
        """How it runs, for a report."""
        said = {"scratch memory": f"{self.scratch_bytes} bytes"}
        if self._config is not None and hasattr(self._config, "dynamic_shapes_kernel_specialization_strategy"):
            said["kernel specialization"] = self._config.dynamic_shapes_kernel_specialization_strategy.name.lower()
        if self._cache is not None:
            said["runtime cache"] = self._cache.state
        return said

    def close(self) -> None:
        """Free the engine and its scratch memory; its contexts must be gone. Closing twice is allowed."""
        if self._cache is not None:
            self._cache.save()
        self._config = self._cache = self._native = self._runtime = None  # in this order: a config points to its cache
        if self._scratch is not None:
            self._scratch.close()

    def _runtime_config(self, options: RunOptions) -> Any:
        """How contexts are made, where the library has more to choose than how they allocate; else None."""
        trt = self._trt
        config = self._native.create_runtime_config() if hasattr(self._native, "create_runtime_config") else None
        if config is not None and hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            name = options.specialization.upper()
            if name not in strategies.__members__:
                known = ", ".join(strategies.__members__).lower()
                raise InputError(f"no kernel specialization {options.specialization!r}; there are {known}")
            config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, name)
        if config is not None and hasattr(config, "cuda_graph_strategy") and options.cuda_graphs:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if config is not None and hasattr(config, "create_runtime_cache") and options.runtime_cache is not None:
            self._cache = RuntimeCache(config, options.runtime_cache)
        return config


def _runtime(trt: Any, log: Log, what: str) -> Any:
    try:
        return trt.Runtime(log.logger)
    except TypeError as error:  # pybind11's word for a constructor that returned null
        raise log.failure(f"{what}: the library cannot start", "look at the GPU's driver") from error


def _check_validity(trt: Any, runtime: Any, content: bytes, what: str) -> None:
    """Ask the library whether the engine is for this machine, where it can tell. It is no proof that nobody altered it."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(content[: runtime.engine_header_size])
    if validity == trt.EngineValidity.INVALID:
        raise BackendError(f"{what}: the engine is not valid on this machine (diagnostics {diagnostics}); build it again")
