"""One simulated library as a module: the classes of a version, without the members that this version lacks."""

import enum
import types
from typing import Any

from simulated_tensorrt import building, running
from simulated_tensorrt.api import API, PRESETS, offers
from simulated_tensorrt.cuda_runtime import Cuda
from simulated_tensorrt.world import Faults, World

__all__ = ["PRESETS", "Faults", "make"]

_VERSIONS = {"10.3": "10.3.0", "10.13": "10.13.3.9", "10.16": "10.16.1.11", "11.4": "11.4.0.106", "rtx": "1.7.1.116"}
_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
_ENUMERATIONS = {  # in the order of the bindings, where the order says the value
    "BuilderFlag": ("TF32",),
    "DataType": ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "INT64"),
    "TensorIOMode": ("NONE", "INPUT", "OUTPUT"),
    "TensorLocation": ("DEVICE", "HOST"),
    "LayerType": ("ELEMENTWISE", "ATTENTION_INPUT"),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
    "ExecutionContextAllocationStrategy": ("STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"),
    "ComputeCapability": ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "CudaGraphStrategy": ("DISABLED", "WHOLE_GRAPH_CAPTURE"),
    "DynamicShapesKernelSpecializationStrategy": ("LAZY", "EAGER", "NONE"),
    "EngineValidity": ("VALID", "SUBOPTIMAL", "INVALID"),
}

# Members whose number is not their place: the real enumerations have others between them, which the backend does not use.
_NUMBERS = {
    "BuilderFlag.TF32": 6,
    "DataType.INT64": 8,
    "LayerType.ELEMENTWISE": 9,
    "LayerType.ATTENTION_INPUT": 51,
    **{f"ComputeCapability.SM{sm}": sm for sm in (75, 80, 86, 89, 120, 121)},
}


class ILogger:
    Severity = enum.IntEnum("Severity", {name: place for place, name in enumerate(_SEVERITIES)})

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IOutputAllocator:
    def __init__(self) -> None:
        pass


class IProgressMonitor:
    def __init__(self) -> None:
        pass


_CLASSES = {
    name: vars(place)[name]
    for place in (building, running)
    for name in API
    if isinstance(vars(place).get(name), type) and vars(place)[name].__module__ == place.__name__
}


def make(preset: str, cuda: Cuda, faults: Faults) -> types.ModuleType:
    """The module of a preset. Without a member that a version lacks, an enumeration is numbered anew, as the real one is."""
    world = World(preset, cuda, faults)
    module = types.ModuleType("tensorrt_rtx" if preset == "rtx" else "tensorrt")
    module.__version__ = _VERSIONS[preset]
    world.trt = module
    for name, members in _ENUMERATIONS.items():
        kept = [member for member in members if offers(preset, f"{name}.{member}")]
        _offer(module, preset, name, enum.IntEnum(name, _numbered(name, kept)))
    for kind in (ILogger, IOutputAllocator, IProgressMonitor):
        _offer(module, preset, kind.__name__, kind)
    made: dict[type, type] = {}
    for name, kind in _CLASSES.items():
        bases = tuple(made.get(base, base) for base in kind.__bases__)
        body = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
        kept_body = {key: value for key, value in body.items() if offers(preset, f"{name}.{key}")}
        made[kind] = type(name, bases, {**kept_body, "world": world})
        _offer(module, preset, name, made[kind])
    return module


def _numbered(enumeration: str, members: list[str]) -> dict[str, int]:
    return {member: _NUMBERS.get(f"{enumeration}.{member}", place) for place, member in enumerate(members)}


def _offer(module: types.ModuleType, preset: str, name: str, value: Any) -> None:
    if offers(preset, f".{name}"):
        setattr(module, name, value)
