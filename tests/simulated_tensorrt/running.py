"""Runtime, engine and context: what is queued is carried out by onnxruntime, on the very addresses that were bound."""

import ctypes
import json
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx

from simulated_tensorrt.building import _TYPES, HEADER_BYTES, IHostMemory, ITensor, magic
from simulated_tensorrt.cuda_runtime import IllegalAddressError
from simulated_tensorrt.world import World

SCRATCH_BYTES = 1024
_DATA_DEPENDENT = {"NonZero", "Unique", "Compress", "NonMaxSuppression"}
_NUMPY = {
    "FLOAT": np.float32,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "HALF": np.float16,
}


class Runtime:
    world: World

    def __init__(self, logger: Any) -> None:
        self.world.register(self, logger)
        self.engine_host_code_allowed = False

    @property
    def engine_header_size(self) -> int:
        return HEADER_BYTES

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        kinds = self.world.trt.EngineValidity
        return (kinds.VALID, 0) if buffer.startswith(magic(self.world)) else (kinds.INVALID, 32)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        assert not self.engine_host_code_allowed, "an engine's host code is never allowed"
        if self.world.faults.deserialize or not serialized_engine.startswith(magic(self.world)):
            return self.world.fail(
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag == kEXPECTED failed)"
            )
        length = int.from_bytes(serialized_engine[HEADER_BYTES : HEADER_BYTES + 8], "little")
        start = HEADER_BYTES + 8
        about = json.loads(serialized_engine[start : start + length])
        device = self.world.cuda.devices[self.world.cuda.current]
        if about["capabilities"] and f"SM{device.major}{device.minor}" not in about["capabilities"]:
            return self.world.fail("the engine was not built for this GPU")
        return self.world.trt.ICudaEngine(about, serialized_engine[start + length :])


class ICudaEngine:
    world: World

    def __init__(self, about: dict[str, Any], model: bytes) -> None:
        import onnxruntime as ort  # not before edgegen, which switches its telemetry off

        self.about, self.model = about, onnx.load_model_from_string(model)
        graph, constants = self.model.graph, {tensor.name for tensor in self.model.graph.initializer}
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # TensorRT widens integer weights; onnxruntime's kernels for them would round the activations to 8 bits.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: ITensor(value) for value in graph.input if value.name not in constants}
        self.outputs = {value.name: ITensor(value) for value in graph.output}
        self.types = {value.name: _TYPES[value.type.tensor_type.elem_type] for value in (*graph.input, *graph.output)}
        self.updates = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "TensorScatter"}
        self.is_data_dependent = any(node.op_type in _DATA_DEPENDENT for node in graph.node)
        self.shapes: dict[Any, dict[str, tuple[int, ...]]] = {}
        self.contexts = 0

    @property
    def names(self) -> list[str]:
        return [*self.inputs, *self.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self.about["profiles"]))

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH_BYTES

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return getattr(self.world.trt.TensorIOMode, "INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.world.trt.DataType, self.types[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.inputs | self.outputs)[name].shape

    def get_tensor_location(self, name: str) -> Any:
        return getattr(self.world.trt.TensorLocation, "HOST" if name in self.about["hosts"] else "DEVICE")

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.updates.get(name)

    def create_runtime_config(self) -> Any:
        return self.world.trt.IRuntimeConfig()

    def create_execution_context(self, how: Any = None) -> "IExecutionContext | None":
        if self.world.faults.context:
            return self.world.fail("IExecutionContext: Error Code 2: OutOfMemory (requested size 1024)")
        strategies = self.world.trt.ExecutionContextAllocationStrategy
        strategy = strategies.STATIC if how is None else getattr(how, "strategy", how)
        self.contexts += 1
        return self.world.trt.IExecutionContext(self, is_user_managed=strategy == strategies.USER_MANAGED)

    def compute(
        self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], values: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        feed = dict(values)
        for name in self.inputs.keys() - values.keys():
            dtype = np.dtype(_NUMPY[self.types[name]])
            size = int(np.prod(shapes[name])) * dtype.itemsize
            feed[name] = self.world.cuda.bytes_at(addresses[name], size).copy().view(dtype).reshape(shapes[name])
        return dict(zip(self.outputs, self.session.run(list(self.outputs), feed), strict=True))

    def carry_out(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], values: dict[str, np.ndarray]) -> None:
        for name, value in self.compute(addresses, shapes, values).items():
            self.world.cuda.bytes_at(addresses[name], value.nbytes)[:] = np.frombuffer(value.tobytes(), np.uint8)


class IRuntimeConfig:
    world: World

    def __init__(self) -> None:
        self.strategy = self.world.trt.ExecutionContextAllocationStrategy.STATIC
        self.cache: Any = None
        if self.world.is_rtx:
            self._graphs = self.world.trt.CudaGraphStrategy.DISABLED
            self._kernels = self.world.trt.DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    @property
    def cuda_graph_strategy(self) -> Any:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: Any) -> None:
        self._graphs = strategy

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Any:
        return self._kernels

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy: Any) -> None:
        self._kernels = strategy

    def create_runtime_cache(self) -> "IRuntimeCache":
        return self.world.trt.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class IRuntimeCache:
    world: World

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"kernels of " + magic(self.world))

    def deserialize(self, blob: bytes) -> bool:
        return blob == self.serialize()


class IExecutionContext:
    world: World

    def __init__(self, engine: ICudaEngine, *, is_user_managed: bool) -> None:
        self._engine, self._needs_memory = engine, is_user_managed
        self._profile: int | None = None
        self._shapes = {name: tensor.shape for name, tensor in engine.inputs.items() if -1 not in tensor.shape}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._changes = 0  # a graph that was recorded before the last one is void
        self._is_settled = False  # an execution has carried out what the last change of shapes brings

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._needs_memory, "the context allocates by itself"
        assert memory % 256 == 0, "device memory must be aligned to 256 bytes"
        assert size >= SCRATCH_BYTES, "too small"
        self.world.cuda.bytes_at(memory, size)
        self._needs_memory = False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return bool(self.world.fail(f"profile {profile_index} does not exist"))
        self._profile = profile_index
        self._is_settled = False
        self._changes += 1
        return True

    def set_input_shape(self, name: str, shape: Iterable[int]) -> bool:
        shape, fixed = tuple(shape), self._engine.inputs[name].shape
        fits = len(shape) == len(fixed) and all(axis in (-1, size) for axis, size in zip(fixed, shape, strict=True))
        smallest, _, largest = self._bounds("shapes").get(name, (shape, shape, shape))
        if not fits or not all(a <= size <= b for a, size, b in zip(smallest, shape, largest, strict=True)):
            self.world.fail(f"IExecutionContext::setInputShape: {name}: {shape} is not in [{smallest}, {largest}]")
            return False
        self._is_settled = self._is_settled and self._shapes.get(name) == shape
        self._shapes[name] = shape
        self._changes += 1
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.names:
            return bool(self.world.fail(f"no tensor {name}"))
        if memory % 256:
            return bool(self.world.fail(f"the address of {name} is not aligned to 256 bytes"))
        self._addresses[name] = memory
        self._changes += 1
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._allocators[name] = output_allocator
        return True

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._engine.inputs if name not in self._shapes]
        return missing + [name for name in self._engine.about["hosts"] if name not in self._addresses]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._engine.inputs:
            return self._shapes.get(name, self._engine.inputs[name].shape)
        if self.infer_shapes() or self._engine.is_data_dependent:
            return self._engine.outputs[name].shape
        return self._output_shapes()[name]

    def is_stream_capturable(self, stream: int) -> bool:
        return not self._engine.is_data_dependent

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle, "the default stream synchronizes with every other"
        faults = self.world.faults
        problem = self._problem(stream_handle)
        if problem is None and faults.execute:
            problem = f"Error Code 1: Cuda Runtime ({faults.says})" if faults.executions_before_failure <= 0 else None
            faults.executions_before_failure -= 1
        if problem is not None:
            self.world.fail(f"IExecutionContext::enqueueV3: {problem}")
            return False
        addresses, shapes, values = dict(self._addresses), dict(self._shapes), self._values()
        engine, is_recorded = self._engine, self.world.cuda.is_recorded(stream_handle)
        if is_recorded and not self._is_settled:
            return bool(
                self.world.fail("IExecutionContext::enqueueV3: shapes changed, and were not executed before the capture")
            )
        if engine.is_data_dependent:
            return self._execute_now(stream_handle, addresses, shapes, values)

        def work() -> None:
            engine.carry_out(addresses, shapes, values)

        status = self.world.cuda.enqueue(stream_handle, "Execute", self._while_unchanged(work) if is_recorded else work)
        self._is_settled = True
        return int(status) == 0

    def _while_unchanged(self, work: Callable[[], None]) -> Callable[[], None]:
        """What a graph does: undefined where its context is gone, or was told something else. Here it is a fault."""
        place, changes = weakref.ref(self), self._changes

        def checked() -> None:
            context = place()
            if context is None or context._changes != changes:
                raise IllegalAddressError("the context that the graph was recorded of was changed")
            work()

        return checked

    def _bounds(self, kind: str) -> dict[str, Any]:
        profiles = self._engine.about["profiles"]
        return profiles[self._profile or 0][kind] if profiles else {}

    def _problem(self, stream_handle: int) -> str | None:
        return self._unready(stream_handle) or self._misplaced()

    def _unready(self, stream_handle: int) -> str | None:
        """What was not said before the execution."""
        if self._needs_memory:
            return "no device memory was set"
        if self._profile is None:
            return "no optimization profile was set"
        if self.infer_shapes():
            return f"insufficiently specified: {self.infer_shapes()}"
        unbound = [name for name in self._engine.names if name not in self._addresses and name not in self._allocators]
        if unbound:
            return f"no address for {unbound}"
        if self.world.cuda.current != self.world.cuda.streams[stream_handle].device:
            return "the stream is of another device than the one that this thread has chosen"
        return None

    def _misplaced(self) -> str | None:
        """What was said and cannot be: memory of the wrong kind, an output that must lie on its input, a value."""
        engine = self._engine
        for name in self._addresses.keys() - self._allocators.keys():
            wanted = "host" if name in engine.about["hosts"] else "device"
            if self.world.cuda.kind_at(self._addresses[name]) != wanted:
                return f"{name} must be in memory of the {wanted}"
        for output, given in engine.updates.items():
            if self._addresses[output] != self._addresses[given]:
                return f"{output} and {given} must share their memory"
        for name, (smallest, _, largest) in self._bounds("values").items():
            if not (smallest <= self._values()[name].ravel().tolist() <= largest):
                return f"the value of {name} is out of range"
        return None

    def _values(self) -> dict[str, np.ndarray]:
        return {name: self._host_value(name) for name in self._engine.about["hosts"]}

    def _host_value(self, name: str) -> np.ndarray:
        dtype = _NUMPY[self._engine.types[name]]
        size = int(np.prod(self._shapes[name])) * np.dtype(dtype).itemsize
        return np.frombuffer(ctypes.string_at(self._addresses[name], size), dtype).reshape(self._shapes[name])

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs: found by a run on zeros, which keeps to the shapes and to the values that are shapes."""
        engine, values = self._engine, self._values()
        key = (tuple(sorted(self._shapes.items())), tuple((name, value.tobytes()) for name, value in values.items()))
        if key not in engine.shapes:
            feed = {name: np.zeros(self._shapes[name], _NUMPY[engine.types[name]]) for name in engine.inputs} | values
            found = engine.session.run(list(engine.outputs), feed)
            engine.shapes[key] = {name: value.shape for name, value in zip(engine.outputs, found, strict=True)}
        return engine.shapes[key]

    def _execute_now(
        self, stream: int, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], values: dict[str, np.ndarray]
    ) -> bool:
        """Execute at once: only then are the shapes known that the allocators are told."""
        if int(self.world.cuda.module.cudaStreamSynchronize(stream)[0]):
            return False
        try:
            found = self._engine.compute(addresses, shapes, values)
        except IllegalAddressError:
            return False
        for name, value in found.items():
            address = addresses.get(name)
            if name in self._allocators:
                address = self._allocators[name].reallocate_output_async(name, 0, value.nbytes, 256, stream)
                if address is None:
                    return bool(self.world.fail(f"no memory for output {name}"))
                self._allocators[name].notify_shape(name, value.shape)
            self.world.cuda.bytes_at(address, value.nbytes)[:] = np.frombuffer(value.tobytes(), np.uint8)
        return True
