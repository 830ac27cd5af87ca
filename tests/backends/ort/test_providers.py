"""Providers of ONNX Runtime: what they are told, why one cannot be used, and what happens when one leaves work to the CPU.

The messages are those of onnxruntime-gpu 1.31.1 on a machine without a GPU, and of reports by people who have one.
"""

import collections
import logging
import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from backends.test_session import ADD, AXES, SCATTER, onnx_add

import edgegen.backends
from edgegen.backends import BACKENDS, choose
from edgegen.backends.ort import failures, providers
from edgegen.backends.ort.elf import needed
from edgegen.backends.ort.failures import backend_error, explain
from edgegen.backends.ort.providers import PROVIDERS, check_placement, fault, options_for, start
from edgegen.backends.ort.session import OrtSession
from edgegen.errors import BackendError, InputError, UnknownNameError
from edgegen.manifest import Variant
from edgegen.tensors import Axis, TensorSpec

CUDA = "CUDAExecutionProvider"
NO_CUBLAS = (
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/x/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared "
    "object file: No such file or directory"
)
NO_DRIVER = (
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /x/libonnxruntime_providers_nv_tensorrt_rtx.so with error: "
    "libcuda.so.1: cannot open shared object file: No such file or directory"
)
NO_TENSORRT = (
    "libnvinfer.so.10: cannot open shared object file: No such file or directory\n"
    "libnvonnxparser.so.10: cannot open shared object file: No such file or directory\n"
    "libcudnn.so.9: cannot open shared object file: No such file or directory"
)
CUDA_CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; bool THRW = true] "
)
NO_GPU = CUDA_CALL + (
    "CUDA failure 100: no CUDA-capable device is detected ; GPU=32712 ; hostname=HOME-PC ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=245 ; expr=cudaSetDevice(x);"
)
OLD_DRIVER = CUDA_CALL + (
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=c4327188c000000 ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=336 ; expr=cudaSetDevice(x);"
)
NO_KERNEL = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Relu node. Name:'Relu_1' Status Message: "
    "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"
)


@pytest.fixture(autouse=True)
def no_memory_of_earlier_tries():
    fault.cache_clear()
    yield
    fault.cache_clear()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (NO_CUBLAS, ["libcublasLt.so.13 cannot be found", "pip install nvidia-cublas;", "nvidia-jetpack"]),
        (NO_DRIVER, ["libcuda.so.1 is missing", "driver", "--gpus all"]),
        (NO_TENSORRT, ["libnvinfer.so.10, libnvonnxparser.so.10, libcudnn.so.9", '"tensorrt-cu13==10.*" nvidia-cudnn-cu13']),
        (NO_GPU, ["no NVIDIA GPU is visible here", "nvidia-smi"]),
        (OLD_DRIVER, ["driver is too old", "580"]),
        (NO_KERNEL, ["no code for this GPU", "Jetson"]),
        ("CUDA failure 2: out of memory ; GPU=0", ["memory is full"]),
        (CUDA_CALL + "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=x", ["CUDA failure 719: unspecified"]),
        ("", ["does not say why"]),
    ],
)
def test_a_recorded_failure_says_what_is_missing_and_what_to_do(said, told):
    explained = explain(said)
    assert all(part in explained for part in told), explained
    assert "\n" not in explained
    assert "hostname" not in explained  # and nothing of the machine


def test_wheels_of_cuda_12_have_it_in_their_names(monkeypatch):
    monkeypatch.setattr(failures.ort, "cuda_version", "12.8", raising=False)
    text = "libcublas.so.12: cannot open shared object file\nlibcudnn.so.9: cannot open shared object file"
    assert "pip install nvidia-cublas-cu12 nvidia-cudnn-cu12" in explain(text)


def test_a_failure_in_a_run_keeps_the_word_of_onnxruntime_beside_the_cure():
    error = backend_error("graphs/x.onnx failed", RuntimeError(NO_KERNEL))
    assert "graphs/x.onnx failed: this onnxruntime has no code for this GPU" in str(error)
    assert "NoKernelImage" in str(error)
    assert str(backend_error("it failed", RuntimeError("odd\nmore"))) == "it failed: odd"


def test_a_shared_library_tells_what_it_needs():
    if sys.platform != "linux":
        pytest.skip("ELF is of Linux")
    from onnxruntime.capi import onnxruntime_pybind11_state as library

    found = needed(Path(library.__file__))
    assert any(name.startswith("libc.so") for name in found), found


@pytest.mark.parametrize("content", [b"x" * 100, b"\x7fELF\x02\x01" + bytes(200), b"\x7fELF\x02\x01" + b"\xff" * 200])
def test_what_is_no_shared_library_needs_nothing(tmp_path, content):
    (tmp_path / "a.so").write_bytes(content)
    assert needed(tmp_path / "a.so") == []


def test_the_graph_of_the_trial_is_valid_and_runs_on_the_cpu():
    session = start(providers._TRIAL, ort.SessionOptions(), "cpu", {})
    np.testing.assert_array_equal(session.run(None, {"x": np.ones(1, np.float32)})[0], [-1])
    pytest.importorskip("onnx").checker.check_model(pytest.importorskip("onnx").load_from_string(providers._TRIAL))


# ---------------------------------------------------------------------- a provider that is not there


@pytest.mark.parametrize("key", [key for key in PROVIDERS if key != "cpu"])
def test_a_provider_that_is_not_there_is_an_error_that_names_the_cure(key):
    if fault(key) is None:
        pytest.skip(f"{key} works here")
    with pytest.raises(BackendError, match=PROVIDERS[key].name) as caught:
        OrtSession(onnx_add(), {}, ADD, AXES, provider=key)
    assert "pip install" in str(caught.value) or "driver" in str(caught.value) or "GPU" in str(caught.value)
    assert "EDGEGEN_ALLOW_FALLBACK" in str(caught.value)


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_fallback_that_is_asked_for_runs_on_the_cpu_and_is_logged(monkeypatch, caplog, by_environment):
    if fault("cuda") is None:
        pytest.skip("CUDA works here")
    if by_environment:
        monkeypatch.setenv("EDGEGEN_ALLOW_FALLBACK", "1")
    with caplog.at_level(logging.WARNING, logger="edgegen"):
        session = OrtSession(onnx_add(), {}, ADD, AXES, provider="cuda", allow_fallback=None if by_environment else True)
    with session:
        assert session.provider == "cpu"
        np.testing.assert_array_equal(session.run({"x": np.ones((1, 3), np.float32)})["twice"], np.full((1, 3), 2))
    assert "runs on the CPU" in caplog.text


def test_a_provider_that_onnxruntime_drops_without_a_word_is_found_out(monkeypatch):
    """As onnxruntime-gpu does where a CUDA library is missing: it lists the provider, and makes a session without it."""
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(providers.ort, "preload_dlls", lambda: print(NO_CUBLAS), raising=False)  # noqa: T201
    monkeypatch.setattr(providers, "start", lambda *_: types.SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"]))
    assert "libcublasLt.so.13 cannot be found" in str(fault("cuda"))


def test_a_provider_that_fails_when_it_starts_is_explained(monkeypatch):
    def refuse(*_):
        raise RuntimeError(OLD_DRIVER)

    monkeypatch.setattr(providers, "start", refuse)
    assert "driver is too old" in str(fault("cuda"))


def test_an_unknown_provider_gets_a_hint():
    with pytest.raises(UnknownNameError, match="cuda"):
        OrtSession(onnx_add(), {}, ADD, AXES, provider="cudo")


# ---------------------------------------------------------------------- a provider that is there


class Stub:
    """onnxruntime, as far as starting a session goes."""

    __version__ = "1.99"

    def __init__(self, providers, devices=()):
        self._providers, self._devices = providers, [types.SimpleNamespace(ep_name=name) for name in devices]
        self.registered, self.sessions, self.given = [], [], []

    def get_available_providers(self):
        return self._providers

    def get_ep_devices(self):
        return self._devices

    def register_execution_provider_library(self, name, path):
        self.registered.append((name, path))
        self._devices = [*self._devices, types.SimpleNamespace(ep_name=name), types.SimpleNamespace(ep_name=name)]

    def add_provider_for_devices(self, devices, options):
        self.given.append((devices, options))

    def InferenceSession(self, model, options, **more):  # noqa: N802 -- onnxruntime's name
        self.sessions.append(more)
        return self


def started(monkeypatch, stub, key, options, *device):
    monkeypatch.setattr(providers, "ort", stub)
    return start(b"", stub, key, options, *device)


def test_a_provider_is_asked_for_by_name_and_onnxruntime_may_not_try_again_without_it(monkeypatch):
    stub = Stub(["TensorrtExecutionProvider", CUDA, "CPUExecutionProvider"])
    started(monkeypatch, stub, "cuda", {"a": "1"})
    started(monkeypatch, stub, "tensorrt", {"b": "2"})
    behind = dict(PROVIDERS["cuda"].options)
    assert stub.sessions == [
        {"providers": [(CUDA, {"a": "1"}), "CPUExecutionProvider"], "enable_fallback": 0},
        {
            "providers": [("TensorrtExecutionProvider", {"b": "2"}), (CUDA, behind), "CPUExecutionProvider"],
            "enable_fallback": 0,
        },
    ]


def test_a_plugin_is_registered_once_and_asked_for_by_its_device(monkeypatch):
    wanted = PROVIDERS["tensorrt-rtx"]
    package = types.ModuleType(wanted.package)
    package.get_library_path = lambda: "/x/plugin.so"
    package.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, wanted.package, package)
    stub = Stub(["CPUExecutionProvider"])
    for _ in range(2):
        started(monkeypatch, stub, "tensorrt-rtx", {"c": "3"})
    assert stub.registered == [(wanted.name, "/x/plugin.so")]
    assert [(len(devices), options) for devices, options in stub.given] == [(1, {"c": "3"})] * 2  # one GPU
    assert stub.sessions == [{"enable_fallback": 0}] * 2


def test_another_gpu_is_told_to_every_provider_of_the_session(monkeypatch):
    stub = Stub(["TensorrtExecutionProvider", CUDA, "CPUExecutionProvider"])
    started(monkeypatch, stub, "tensorrt", PROVIDERS["tensorrt"].options, 3)
    told = [options["device_id"] for _, options in stub.sessions[0]["providers"][:-1]]
    assert told == ["3", "3"]  # its own, and CUDA's behind it
    assert PROVIDERS["cuda"].options["device_id"] == "0"


def test_another_gpu_is_one_of_those_that_a_plugin_finds(monkeypatch):
    monkeypatch.setattr(providers, "_register", lambda wanted: None)
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: types.SimpleNamespace())
    name = PROVIDERS["tensorrt-rtx"].name
    stub = Stub(["CPUExecutionProvider"], devices=[name, CUDA, name])
    started(monkeypatch, stub, "tensorrt-rtx", {}, 1)
    assert stub.given[0][0] == [stub.get_ep_devices()[2]]
    with pytest.raises(InputError, match="no GPU 2; NvTensorRTRTXExecutionProvider finds 2"):
        started(monkeypatch, stub, "tensorrt-rtx", {}, 2)


@pytest.mark.parametrize("device", [-1, True, "cuda:1"])
def test_what_is_no_number_of_a_gpu_is_refused(device, tmp_path):
    with pytest.raises(InputError, match="give the number of a GPU"):
        OrtSession(b"", {}, IMAGE, {}, device=device)


def test_cuda_that_comes_as_a_plugin_is_taken_too(monkeypatch):
    stub = Stub(["CPUExecutionProvider"], devices=[CUDA])
    started(monkeypatch, stub, "cuda", {})
    assert [devices[0].ep_name for devices, _ in stub.given] == [CUDA]


def test_cuda_as_a_plugin_is_there_once_its_libraries_are_loaded(monkeypatch):
    stub = Stub(["CPUExecutionProvider"])
    stub.preload_dlls = lambda: stub.register_execution_provider_library(CUDA, "capi/libonnxruntime_providers_cuda.so")
    monkeypatch.setattr(providers, "ort", stub)
    providers._load_libraries(PROVIDERS["cuda"])
    started(monkeypatch, stub, "cuda", {})
    assert [devices[0].ep_name for devices, _ in stub.given] == [CUDA]


def test_a_plugin_that_finds_no_gpu_says_so(monkeypatch):
    monkeypatch.setattr(providers, "_register", lambda wanted: None)
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: types.SimpleNamespace())
    with pytest.raises(BackendError, match="finds no GPU"):
        started(monkeypatch, Stub(["CPUExecutionProvider"]), "tensorrt-rtx", {})


IMAGE = Variant(
    path="graphs/image.onnx",
    weights=(),
    inputs=(TensorSpec("z", "float16", ("batch", 100)), TensorSpec("scale", "float16", (1,))),
    outputs=(TensorSpec("image", "float16", ("batch", 3, 64, 64)),),
)


def test_every_option_is_where_it_is_wanted():
    axes = {"batch": Axis(1, 4, 16)}
    assert options_for("cpu", IMAGE, axes, capture=True) == {}
    assert options_for("cuda", IMAGE, axes, capture=False)["use_tf32"] == "0"
    assert options_for("cuda", IMAGE, axes, capture=True)["enable_cuda_graph"] == "1"
    tensorrt = options_for("tensorrt", IMAGE, axes, capture=True)
    assert tensorrt["trt_fp16_enable"] == "True"
    assert [tensorrt[f"trt_profile_{bound}_shapes"] for bound in ("min", "opt", "max")] == ["z:1x100", "z:4x100", "z:16x100"]
    assert "trt_fp16_enable" not in options_for("tensorrt", ADD, AXES, capture=False)


@pytest.mark.parametrize("variant", [ADD, SCATTER], ids=["a value that may decide a shape", "state"])
def test_profiles_are_only_given_where_every_input_has_one(variant):
    assert not [name for name in options_for("tensorrt", variant, AXES, capture=False) if "profile" in name]


def test_only_the_provider_that_would_expand_integer_weights_at_every_step_expands_them_at_load():
    expanding = [key for key in PROVIDERS if "session.disable_quant_qdq" in providers.config_for(key)]
    assert expanding == ["cuda"]  # the others have kernels for them, or engines
    assert providers.config_for("cpu") == {}


def test_no_provider_keeps_native_code_of_its_own_making():
    for key in PROVIDERS:
        told = options_for(key, IMAGE, {"batch": Axis(1, 4, 16)}, capture=True)
        assert [value for name, value in told.items() if "cache" in name and value not in ("0", "False")] == []


def test_what_tensorrt_is_told_to_do_or_not_is_in_the_words_that_onnxruntime_takes_of_it():
    """Of the CUDA provider it takes 1 and 0; of TensorRT's it says that `True` or `False` is wanted, and makes no session."""
    told = options_for("tensorrt", IMAGE, {"batch": Axis(1, 4, 16)}, capture=True)
    switches = {name: value for name, value in told.items() if name.endswith("_enable")}
    assert switches
    assert set(switches.values()) <= {"True", "False"}


# ---------------------------------------------------------------------- what came to the provider


def session_of(placed, *, providers=(CUDA, "CPUExecutionProvider"), tells=True):
    parts = [
        types.SimpleNamespace(
            ep_name=name, get_nodes=lambda kinds=kinds: [types.SimpleNamespace(op_type=kind) for kind in kinds]
        )
        for name, kinds in placed
    ]
    session = types.SimpleNamespace(get_providers=lambda: list(providers))
    if tells:
        session.get_provider_graph_assignment_info = lambda: parts
    return session


def test_arithmetic_on_shapes_may_be_on_the_cpu():
    check_placement(
        session_of([(CUDA, ["MatMul", "Add"]), ("CPUExecutionProvider", ["Shape", "Gather"])]), "cuda", "g", fallback=False
    )


@pytest.mark.parametrize(
    ("session", "told"),
    [
        (
            session_of([(CUDA, ["MatMul"]), ("CPUExecutionProvider", ["Shape", "Foo", "Foo", "Conv"])]),
            "3 operators.*1 Conv, 2 Foo",
        ),
        (session_of([("CPUExecutionProvider", ["Add"])]), "took none of the 1 operators"),
        (session_of([], providers=["CPUExecutionProvider"]), "left it out and took CPUExecutionProvider"),
    ],
    ids=["no kernel", "nothing", "dropped"],
)
def test_an_operator_left_to_the_cpu_is_an_error_unless_it_is_allowed(session, told, caplog):
    with pytest.raises(BackendError, match=rf"graphs/g\.onnx was to run on {CUDA}, but .*{told}"):
        check_placement(session, "cuda", "graphs/g.onnx", fallback=False)
    with caplog.at_level(logging.WARNING, logger="edgegen"):
        check_placement(session, "cuda", "graphs/g.onnx", fallback=True)
    assert "it goes on, for a fallback is allowed" in caplog.text


def test_an_onnxruntime_that_does_not_tell_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="edgegen"):
        check_placement(session_of([], tells=False), "cuda", "g", fallback=False)
    assert "does not tell where operators run" in caplog.text


def test_this_onnxruntime_tells_where_its_operators_run():
    options = ort.SessionOptions()
    for name, value in providers.config_for("cuda").items():
        options.add_session_config_entry(name, value)
    session = start(onnx_add(), options, "cpu", {})
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip(f"onnxruntime {ort.__version__} does not")
    assert providers.placement(session) == {"CPUExecutionProvider": collections.Counter(Mul=1, Add=1)}


# ---------------------------------------------------------------------- the choice


@pytest.mark.parametrize(("reason", "chosen"), [(None, "onnxruntime-cuda"), ("no GPU", "onnxruntime")])
def test_auto_takes_a_gpu_only_where_it_really_works(monkeypatch, caplog, reason, chosen):
    monkeypatch.setattr(edgegen.backends, "present_backends", lambda: list(BACKENDS))
    monkeypatch.setattr(providers, "fault", lambda key: reason)
    with caplog.at_level(logging.INFO, logger="edgegen"):
        assert choose("auto") == chosen
    assert ("auto does not take onnxruntime-cuda: no GPU" in caplog.text) == bool(reason)


def test_auto_never_takes_a_backend_that_builds_an_engine_at_every_load(monkeypatch):
    monkeypatch.setattr(edgegen.backends, "present_backends", lambda: ["onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"])
    monkeypatch.setattr(providers, "fault", lambda key: None)
    with pytest.raises(BackendError, match=r"edgegen\[cpu\]"):
        choose("auto")


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("onnxruntime-cuda", r"pip uninstall onnxruntime && pip install .edgegen\[gpu\]"),
        ("onnxruntime-tensorrt-rtx", "rtx-cu13"),
    ],
)
def test_a_backend_whose_part_is_missing_names_what_installs_it(monkeypatch, name, cure):
    monkeypatch.setattr(edgegen.backends, "present_backends", lambda: ["onnxruntime"])
    with pytest.raises(BackendError, match=cure):
        choose(name)


def test_the_options_of_a_backend_reach_its_session(monkeypatch):
    from edgegen.backends import open_session

    told = {}
    files = types.SimpleNamespace(model=b"", weights={}, variant=ADD, axes=AXES, external=(), folder=None)
    graphs = {"g": types.SimpleNamespace(variants={"canonical": ADD, "onnxruntime": ADD})}
    asked = []
    bundle = types.SimpleNamespace(
        manifest=types.SimpleNamespace(graphs=graphs), graph=lambda *names: asked.append(names) or files
    )
    monkeypatch.setattr(edgegen.backends, "present_backends", lambda: list(BACKENDS))
    monkeypatch.setattr(edgegen.backends, "_load", lambda backend: lambda *files, **options: told.update(options))
    open_session("onnxruntime-cuda", bundle, "g")
    assert told["provider"] == "cuda"
    assert asked == [("g", "canonical")]  # the other variant has operators that CUDA lacks in float32
    assert fault.__wrapped__("cpu") is None
