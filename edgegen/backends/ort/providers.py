"""Execution providers of ONNX Runtime: how each is asked for, whether it works here, and whether it got what it was given.

ONNX Runtime goes on with the CPU where a provider cannot be loaded, and puts operators on the CPU for which a provider has no
kernel, both with a line in its log at most. Here both are errors, unless a fallback is asked for.
"""

import collections
import contextlib
import ctypes
import functools
import importlib
import importlib.util
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from edgegen.backends.ort.elf import needed
from edgegen.backends.ort.failures import ERRORS, explain
from edgegen.errors import BackendError, InputError, UnknownNameError
from edgegen.manifest import Variant
from edgegen.tensors import Axis, TensorSpec

_log = logging.getLogger("edgegen")

CPU = "cpu"
GRAPHS = "EDGEGEN_CUDA_GRAPHS"  # "on": what repeats is captured, where the provider can
FALLBACK = "EDGEGEN_ALLOW_FALLBACK"  # "1": a provider that cannot be used, or leaves work to the CPU, is only logged
_CPU_PROVIDER = "CPUExecutionProvider"
_FATAL, _WARNING = 4, 2  # ONNX Runtime's log severities; its own logger starts with warnings
_ASSIGNMENT = "session.record_ep_graph_assignment_info"


class Provider(NamedTuple):
    """How ONNX Runtime is asked for one execution provider.

    Attributes:
        name: ONNX Runtime's name for it.
        options: what it gets for every graph.
        package: the Python package that brings it as a plugin; "" where it is part of onnxruntime.
        behind: providers that may take what it leaves. The CPU may always take arithmetic on shapes.
        config: session config entries, for every graph.
        capture: the option that switches CUDA graphs on; "" where they cannot be kept apart for several shapes.
        half: the option that allows float16; "" where the graph's own types decide.
        profiles: the options for the least, usual and largest shapes, with {} for min, opt, max; "" where none are needed.
        fixed_state: it has to know how long the state is when it builds the graph.
    """

    name: str
    options: Mapping[str, str] = {}
    package: str = ""
    behind: tuple[str, ...] = ()
    config: Mapping[str, str] = {}
    capture: str = ""
    half: str = ""
    profiles: str = ""
    fixed_state: bool = False


# No provider's own cache of engines or kernels is switched on: that is native code, which would be loaded again without a
# look at who wrote it. The backends that build engines themselves keep them by digest.
PROVIDERS: Mapping[str, Provider] = {
    CPU: Provider(_CPU_PROVIDER),
    "cuda": Provider(
        "CUDAExecutionProvider",
        # use_tf32: float32 is to mean float32, else products have 10 bits and the proof's tolerance does not hold.
        # arena: grown by what is asked for; the default doubles, which a board of 8 GB that shares it with the CPU cannot.
        {"device_id": "0", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"},
        # The canonical graph's integer weights go through a Transpose, so nothing is fused with their DequantizeLinear (seen in
        # the optimized graph): it would expand all of them at every step. This expands them once, at load, to float16.
        config={"session.disable_quant_qdq": "1"},
        capture="enable_cuda_graph",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        # True and False: of this provider onnxruntime takes no 1 and 0, and then no session at all.
        {"device_id": "0", "trt_engine_cache_enable": "False", "trt_timing_cache_enable": "False"},
        behind=("cuda",),
        half="trt_fp16_enable",  # it builds weakly typed: without this a float16 graph runs in float32
        profiles="trt_profile_{}_shapes",
        fixed_state=True,
    ),
    "tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider", package="onnxruntime_ep_nv_tensorrt_rtx", fixed_state=True
    ),
}  # fmt: skip

# Operators of which providers have kernels for numbers, and which ONNX Runtime puts on the CPU where they compute shapes.
_SHAPE_WORDS = """
    Add Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Flatten Floor Gather Greater GreaterOrEqual Identity Less
    LessOrEqual Max Min Mod Mul Neg Not And Or Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Shape Size Slice Split
    Squeeze Sub Unsqueeze Where
"""
_SHAPE_OPERATORS = frozenset(_SHAPE_WORDS.split())
# One Neg of one float32, opset 13: a graph to try a provider with.
_TRIAL = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def provider_of(key: str) -> Provider:
    """The provider of that name in `PROVIDERS`; UnknownNameError where there is none."""
    if key not in PROVIDERS:
        raise UnknownNameError("provider", key, PROVIDERS)
    return PROVIDERS[key]


def may_fall_back(asked: bool | None) -> bool:
    """Whether a fallback is allowed: as asked, else as the environment says, else not."""
    return os.environ.get(FALLBACK) == "1" if asked is None else asked


def may_capture(key: str, asked: bool | None) -> bool:
    """Whether runs that repeat become CUDA graphs: as asked, else as the environment says, where the provider can do it."""
    return bool(provider_of(key).capture) and (os.environ.get(GRAPHS) == "on" if asked is None else asked)


def usable(key: str, path: str, *, fallback: bool) -> str:
    """`key` where that provider works here; else "cpu" with a line in the log if `fallback`.

    Raises BackendError where it does not work and no fallback is allowed.
    """
    reason = fault(key)
    if reason is None:
        return key
    what = f"{path} cannot run on {provider_of(key).name}, which was asked for: {reason}"
    if not fallback:
        raise BackendError(f"{what}. Take another backend, or set {FALLBACK}=1 to run on the CPU")
    _log.warning("%s. It runs on the CPU, for a fallback is allowed", what)
    return CPU


@functools.cache
def fault(key: str) -> str | None:
    """Why a provider cannot be used on this machine, with a cure; None where it runs a graph of one operator."""
    wanted = provider_of(key)
    if key == CPU:
        return None
    said = ""
    try:
        with _without_log():
            said = _load_libraries(wanted)
            session = start(_TRIAL, ort.SessionOptions(), key, wanted.options)
            if wanted.name not in session.get_providers():
                return explain(f"{said}\n{_load_error(wanted)}".strip())
            session.run(None, {"x": np.ones(1, np.float32)})
    except BackendError as error:
        return str(error)
    except ERRORS as error:
        return explain(f"{said}\n{error}\n{_load_error(wanted)}".strip())
    return None


def start(model: bytes, options: Any, key: str, provider_options: Mapping[str, str], device: int = 0) -> Any:
    """A session on a provider, on the GPU of that number. ONNX Runtime's own second try on the CPU is off.

    Raises BackendError where the provider is not there; else what ONNX Runtime raises.
    """
    wanted = provider_of(key)
    if key == CPU:
        return ort.InferenceSession(model, options, providers=[_CPU_PROVIDER])
    names = ort.get_available_providers()
    if wanted.package or (wanted.name not in names and wanted.name in _plugin_names()):  # CUDA itself may come as a plugin
        options.add_provider_for_devices(_devices(wanted, device), dict(provider_options))
        return ort.InferenceSession(model, options, enable_fallback=0)
    if wanted.name not in names:
        raise BackendError(
            f"this onnxruntime ({ort.__version__}) was built without {wanted.name}; it has {', '.join(names)}: "
            "pip uninstall onnxruntime && pip install onnxruntime-gpu (on a Jetson: the wheel for its JetPack)"
        )
    told = [(wanted.name, provider_options), *((PROVIDERS[other].name, PROVIDERS[other].options) for other in wanted.behind)]
    listed = [(name, {**given, "device_id": str(device)} if "device_id" in given else dict(given)) for name, given in told]
    return ort.InferenceSession(model, options, providers=[*listed, _CPU_PROVIDER], enable_fallback=0)


def options_for(key: str, variant: Variant, axes: Mapping[str, Axis], *, capture: bool) -> dict[str, str]:
    """What a provider is told about one graph."""
    wanted = provider_of(key)
    found = dict(wanted.options)
    if capture and wanted.capture:
        found[wanted.capture] = "1"
    if wanted.half and any(spec.dtype == "float16" for spec in (*variant.inputs, *variant.outputs)):
        found[wanted.half] = "True"
    # With profiles every input must have one, and a value that decides a shape has none: then it learns them from the runs.
    if wanted.profiles and not variant.state and all(spec.axes for spec in variant.inputs):
        for place, bound in enumerate(("min", "opt", "max")):
            shapes = [_profile(spec, axes, place) for spec in variant.inputs if any(isinstance(a, str) for a in spec.axes)]
            if shapes:
                found[wanted.profiles.format(bound)] = ",".join(shapes)
    return found


def config_for(key: str) -> dict[str, str]:
    """The session config entries that go with a provider; beside the CPU it also remembers which provider took what."""
    return {**provider_of(key).config, **({} if key == CPU else {_ASSIGNMENT: "1"})}


def check_placement(session: Any, key: str, path: str, *, fallback: bool) -> None:
    """Hold a session to the provider that was asked for: it is there, and no operator that computes was left to the CPU.

    Arithmetic on shapes is on the CPU by ONNX Runtime's own choice. Raises BackendError, or logs it if `fallback`.
    """
    wanted = provider_of(key)
    if key == CPU:
        return
    what = _misplaced(session, wanted)
    if what and not fallback:
        raise BackendError(
            f"{path} was to run on {wanted.name}, but {what}. Take another backend or precision, or set {FALLBACK}=1"
        )
    if what:
        _log.warning("%s was to run on %s, but %s; it goes on, for a fallback is allowed", path, wanted.name, what)


def placement(session: Any) -> dict[str, collections.Counter[str]] | None:
    """How many operators of each kind each provider took; None where this onnxruntime (before 1.24 or so) does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for part in session.get_provider_graph_assignment_info():
        found[part.ep_name].update(node.op_type for node in part.get_nodes())
    return dict(found)


def _misplaced(session: Any, wanted: Provider) -> str:
    """What did not come to the provider, as the end of a sentence; "" where all did."""
    present = session.get_providers()
    if wanted.name not in present:
        return f"onnxruntime left it out and took {', '.join(present)}"
    placed = placement(session)
    if placed is None:
        _log.info("onnxruntime %s does not tell where operators run; only the provider's presence was checked", ort.__version__)
        return ""
    if not placed.get(wanted.name):
        return f"it took none of the {sum(sum(counts.values()) for counts in placed.values())} operators"
    strays = {name: n for name, n in placed.get(_CPU_PROVIDER, {}).items() if name not in _SHAPE_OPERATORS}
    shapes = sum(placed.get(_CPU_PROVIDER, {}).values()) - sum(strays.values())
    others = {name: sum(counts.values()) for name, counts in placed.items() if name not in (wanted.name, _CPU_PROVIDER)}
    _log.info(
        "%s: %d operators; on the CPU %d of shapes; on others %s", wanted.name, placed[wanted.name].total(), shapes, others
    )
    if not strays:
        return ""
    listed = ", ".join(f"{n} {name}" for name, n in sorted(strays.items()))
    return f"{sum(strays.values())} operators that compute are on the CPU, for it has no kernel for them: {listed}"


def _profile(spec: TensorSpec, axes: Mapping[str, Axis], place: int) -> str:
    sizes = [axis if isinstance(axis, int) else _bounds(axes.get(axis))[place] for axis in spec.axes]
    return f"{spec.name}:{'x'.join(map(str, sizes))}"


def _bounds(axis: Axis | None) -> tuple[int, int, int]:
    return (1, 1, 1) if axis is None else (axis.min, axis.opt, axis.max)


def _devices(wanted: Provider, number: int) -> Sequence[Any]:
    """The GPU of that number, for a plugin's provider.

    Raises BackendError where its package is missing or it finds no GPU, InputError where it finds fewer.
    """
    if wanted.package:
        if importlib.util.find_spec(wanted.package) is None:
            raise BackendError(f"{wanted.name} is not installed: pip install {wanted.package.replace('_', '-')}-cu13")
        _register(wanted)
    found = [device for device in ort.get_ep_devices() if device.ep_name == wanted.name]
    if not found:
        raise BackendError(f"{wanted.name} finds no GPU that it can use; look at nvidia-smi, and at what its version supports")
    if not 0 <= number < len(found):
        raise InputError(f"no GPU {number}; {wanted.name} finds {len(found)}, counted from 0")
    return found[number : number + 1]


def _register(wanted: Provider) -> None:
    if wanted.name in _plugin_names():
        return
    library = importlib.import_module(wanted.package).get_library_path()
    try:
        ort.register_execution_provider_library(wanted.name, library)
    except ERRORS as error:
        raise BackendError(explain(str(error))) from error


def _plugin_names() -> set[str]:
    """The providers that have devices; `get_available_providers` never lists a plugin's."""
    return {device.ep_name for device in ort.get_ep_devices()} if hasattr(ort, "get_ep_devices") else set()


def _load_libraries(wanted: Provider) -> str:
    """Load the CUDA libraries of wheels, where nothing else would find them. Returns what onnxruntime said of those missing."""
    if wanted.package:
        return ""
    if "tensorrt" in wanted.name.lower() and importlib.util.find_spec("tensorrt_libs") is not None:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt_libs")
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):  # a CUDA that comes as a plugin is only registered when they are there
        with contextlib.redirect_stdout(said):  # it prints what it does not find
            ort.preload_dlls()
    return said.getvalue()


def _load_error(wanted: Provider) -> str:
    """What the system says of each library that the provider's own needs; ONNX Runtime tells of the first to its log alone."""
    stem = wanted.name.removesuffix("ExecutionProvider").lower()
    file = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{stem}.so"
    libraries = needed(file) if not wanted.package and file.exists() else []
    return "\n".join(filter(None, map(_refusal, libraries)))


def _refusal(library: str) -> str:
    """What the system says when it cannot load a library; "" where it can."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Keep ONNX Runtime's own log quiet: what it would say there is told as an error."""
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)
