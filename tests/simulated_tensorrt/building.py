"""Builder, network, parser and their kin: a graph is parsed by the onnx package, an engine is that graph behind a header.

Rules that the real parser and builder were seen to have are kept: operators by version, the dropped input of Attention, what
a TensorScatter may be, float32 attention that must be decomposable, profiles that must cover every dynamic input.
"""

import ctypes
import json
from collections.abc import Collection
from typing import Any

import onnx

from simulated_tensorrt.world import World

HEADER_BYTES = 64
NEW_OPERATORS = {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"}  # not in 10.3 and 10.13
_UNSUPPORTED = {"DynamicQuantizeLinear", "MatMulInteger", "Compress"}
_TYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}


def magic(world: World) -> bytes:
    """How engines of a library begin."""
    return (b"vtrt" if world.is_rtx else b"ftrt") + world.trt.__version__.encode()


# The inputs of operators that are shapes, by their places; of Range all of it says how long the output is.
_SHAPE_INPUTS = {
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Expand": (1,),
    "Slice": (1, 2, 3, 4),
    "ConstantOfShape": (0,),
    "Tile": (1,),
}


def _shape_values(graph: onnx.GraphProto) -> set[str]:
    """The values that a shape is computed of: the library wants those among the inputs on the host, and in every profile."""
    found: set[str] = set()
    for node in reversed(graph.node):  # what reads a value comes behind what makes it
        if found.intersection(node.output) and node.op_type != "Shape":
            found.update(node.input)
        found.update(node.input[place] for place in _SHAPE_INPUTS.get(node.op_type, ()) if place < len(node.input))
    return found


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto, shape_values: Collection[str] = ()) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim)
        self.is_shape_tensor = value.name in shape_values


class IAttention:
    def __init__(self) -> None:
        self.decomposable = False


class ILayer:
    def __init__(self, node: onnx.NodeProto, kind: Any) -> None:
        self.name, self.type = node.name, kind
        self._attention = IAttention()


class IAttentionInputLayer(ILayer):
    @property
    def attention(self) -> IAttention:
        return self._attention


class INetworkDefinition:
    world: World

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: onnx.ModelProto | None = None
        self.inputs: list[ITensor] = []
        self.layers: list[ILayer] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> ILayer:
        return self.layers[index]

    def add_kv_cache_update(self, *_: Any) -> None:
        raise NotImplementedError("only its presence is asked for")


class ParserError:
    def __init__(self, node: onnx.NodeProto | None, desc: str) -> None:
        self._node, self._desc = node, desc

    def node_name(self) -> str:
        return self._node.name if self._node is not None else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node is not None else ""

    def desc(self) -> str:
        return self._desc


class OnnxParser:
    world: World

    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []
        self._model: onnx.ModelProto | None = None
        self._given: dict[str, tuple[int, int]] = {}

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        assert path is None, "the backend never gives a path: the parser follows links"
        return self.load_model(model) and self._import()

    def load_model_proto(self, model: bytes, path: str | None = None) -> bool:
        assert path is None, "the backend never gives a path: the parser follows links"
        return self.load_model(model)

    def load_initializer(self, name: str, data: int, size: int) -> bool:
        found = {tensor.name: tensor for tensor in self._model.graph.initializer}.get(name)
        length = {entry.key: entry.value for entry in found.external_data}.get("length") if found is not None else None
        if length is None or int(length) != size:
            return False
        self._given[name] = (data, size)
        return True

    def parse_model_proto(self) -> bool:
        return self._import()

    def load_model(self, model: bytes) -> bool:
        try:
            self._model = onnx.load_model_from_string(model)
        except Exception:
            return self._refuse(None, "Failed to parse the ONNX model.")
        return True

    def _refuse(self, node: onnx.NodeProto | None, desc: str) -> bool:
        self._errors.append(ParserError(node, desc))
        self.world.fail(f"ModelImporter.cpp:151: ERROR: {desc}")
        return False

    def _import(self) -> bool:
        graph = self._model.graph
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                if tensor.name not in self._given:
                    return self._refuse(None, f"Failed to open file for initializer {tensor.name}")
                tensor.raw_data = ctypes.string_at(*self._given[tensor.name])
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
        constants = {tensor.name for tensor in graph.initializer}
        said = _shape_values(graph)
        self._network.inputs = [ITensor(value, said) for value in graph.input if value.name not in constants]
        for tensor in graph.input:
            if _TYPES.get(tensor.type.tensor_type.elem_type) == "INT64":
                self.world.log("WARNING", f"ModelImporter.cpp:1071: Make sure input {tensor.name} has Int64 binding.")
        if not all(self._import_node(node) for node in graph.node):
            return False
        self._network.model = self._model
        return True

    def _import_node(self, node: onnx.NodeProto) -> bool:
        kinds = self.world.trt.LayerType
        if node.op_type in _UNSUPPORTED or (node.op_type in NEW_OPERATORS and self.world.preset in ("10.3", "10.13")):
            return self._refuse(node, "false")
        if node.op_type == "Attention" and not self._import_attention(node):
            return False
        if node.op_type == "TensorScatter" and not self._import_scatter(node):
            return False
        is_attention = node.op_type == "Attention"
        kind = kinds.ATTENTION_INPUT if is_attention else kinds.ELEMENTWISE
        self._network.layers.append(self.world.trt.ILayer(node, kind))
        return True

    def _import_attention(self, node: onnx.NodeProto) -> bool:
        if any(attribute.name == "softcap" for attribute in node.attribute):
            return self._refuse(node, 'softcap == 0.0 && "Setting softcap is not supported in TensorRT Attention."')
        if len(node.input) > 6 and node.input[6]:
            self.world.log("WARNING", f"Unused Input: {node.input[6]}")
        return True

    def _import_scatter(self, node: onnx.NodeProto) -> bool:
        cache = {tensor.name: tensor for tensor in self._network.inputs}.get(node.input[0])
        outputs = {value.name for value in self._model.graph.output}
        if cache is None or node.output[0] not in outputs:
            return self._refuse(node, "cache must be a network input, output must be a network output")
        if cache.shape[2] < 0:
            return self._refuse(node, "the cache's length must be static")
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}
        self.values: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002  # the bindings' own names
        self.shapes[input] = _range(min, opt, max)

    def set_shape_input(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        self.values[input] = _range(min, opt, max)


def _range(smallest: Any, usual: Any, largest: Any) -> list[list[int]]:
    found = [list(map(int, bounds)) for bounds in (smallest, usual, largest)]
    if not all(a <= b <= c for a, b, c in zip(*found, strict=True)):
        raise ValueError(f"min <= opt <= max does not hold: {found}")
    return found


class IBuilderConfig:
    world: World

    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.capabilities: list[str] = []
        self.num_compute_capabilities = 0
        self.progress_monitor: Any = None
        self.limits: dict[Any, int] = {}
        self.flags = {"TF32"}  # what is on by default

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.limits[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        assert index < self.num_compute_capabilities, "set num_compute_capabilities first"
        self.capabilities.append(capability.name)
        return True


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class Builder:
    world: World

    def __init__(self, logger: Any) -> None:
        self.world.register(self, logger)
        if not self.world.is_rtx and not self.world.cuda.devices:
            self.world.fail("CUDA initialization failure with error: 35.")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return self.world.trt.INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return self.world.trt.IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return self.world.trt.IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        problem = self.world.faults.build or _problem(network, config)
        if problem is None and not _told(config.progress_monitor):
            problem = "the build was cancelled"
        if problem is not None:
            return self.world.fail(f"IBuilder::buildSerializedNetwork: Error Code 4: {problem}")
        typed = network.flags >> int(self.world.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1
        about = {
            "strongly_typed": bool(typed) or self.world.preset in ("11.4", "rtx"),
            "profiles": [{"shapes": profile.shapes, "values": profile.values} for profile in config.profiles],
            "capabilities": config.capabilities,
            "flags": sorted(config.flags),
            "device": self.world.cuda.current,
            "limits": {pool.name: size for pool, size in config.limits.items()},
            "hosts": [tensor.name for tensor in network.inputs if tensor.is_shape_tensor],
        }
        said, header = json.dumps(about).encode(), magic(self.world).ljust(HEADER_BYTES, b"\0")
        return IHostMemory(header + len(said).to_bytes(8, "little") + said + network.model.SerializeToString())


def _problem(network: INetworkDefinition, config: IBuilderConfig) -> str | None:
    if any(layer.type.name == "ATTENTION_INPUT" and not layer._attention.decomposable for layer in network.layers):
        return "the attention is not supported by a dedicated kernel; set decomposable"  # true of float32, asked of all here
    for tensor in network.inputs:
        held = "values" if tensor.is_shape_tensor else "shapes" if -1 in tensor.shape else None
        if held and (not config.profiles or any(tensor.name not in getattr(profile, held) for profile in config.profiles)):
            return f"API Usage Error ({tensor.name}: dynamic, but not in every optimization profile)"
    return None


def _told(monitor: Any) -> bool:
    if monitor is None:
        return True
    monitor.phase_start("Building engine", None, 2)
    going_on = all(monitor.step_complete("Building engine", step) for step in range(2))
    monitor.phase_finish("Building engine")
    return going_on
