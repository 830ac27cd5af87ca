"""Both directions: what stays offline passes, and what does not is caught, from Python and from native code."""

import base64
import socket
import sys
import threading
from pathlib import Path

import pytest

from edgegen.errors import BundleError, OfflineError
from edgegen.offline import check_offline, deny_sockets, watch

SUSPECTS = """
import ctypes, os, pathlib, socket, sys, tempfile

def good(text):
    return text.upper()

def home():
    pathlib.Path("~/left.txt").expanduser().touch()

def python_write(path):
    with open(path, "w") as file:
        file.write("x")

def native_write(path):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.write(libc.open(path.encode(), os.O_CREAT | os.O_WRONLY, 0o600), b"x", 1)

def python_socket():
    try:
        socket.create_connection(("127.0.0.1", 9))
    except Exception:
        pass  # hidden, but not from the audit hook

def native_socket():
    ctypes.CDLL(None).socket(2, 1, 0)

def raises():
    raise ValueError("no such thing")

def session(model, forget):
    import edgegen
    if forget:
        # onnxruntime keeps still on build servers too, which it knows by these: here it must show itself everywhere.
        for name in ("ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "GITHUB_ACTIONS", "TRAVIS", "JENKINS_URL"):
            os.environ.pop(name, None)
    import base64, time, onnxruntime
    session = onnxruntime.InferenceSession(base64.b64decode(model), providers=["CPUExecutionProvider"])
    time.sleep(0.5)  # telemetry works in a thread of its own
    return onnxruntime.__version__
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")


@pytest.fixture
def call(tmp_path):
    (tmp_path / "suspects.py").write_text(SUSPECTS)

    def run(function: str, *arguments, **options):
        root = str(Path(__file__).resolve().parent.parent)
        path = {"PYTHONPATH": f"{root}:{tmp_path}"}
        return watch(f"suspects:{function}", list(arguments), timeout_s=60, environment=path, **options)

    return run


def test_a_function_that_keeps_to_itself_passes(call):
    report = call("good", "fine")
    assert report.passed, report.lines()
    assert report.output == "FINE"
    assert report.as_dict()["files"] == ()


@linux
def test_the_kernel_takes_part(call):
    text = "\n".join(call("good", "fine").evidence)
    assert "not stopped by the kernel" not in text


def test_a_file_left_in_the_home_directory_is_reported(call):
    report = call("home")
    assert not report.passed
    assert "HOME/left.txt" in report.files


def test_a_file_written_from_python_is_reported_by_name(call, tmp_path):
    report = call("python_write", str(tmp_path / "stray.txt"))
    assert not report.passed
    assert str(tmp_path / "stray.txt") in report.files


@linux
def test_a_file_written_from_native_code_is_caught_wherever_it_lies(call, tmp_path):
    report = call("native_write", str(tmp_path / "stray.txt"))
    assert not report.passed
    assert any("SIGXFSZ" in line for line in report.files)


def test_a_socket_from_python_is_reported_even_if_the_error_is_swallowed(call):
    report = call("python_socket")
    assert not report.passed
    assert any("socket." in line for line in report.sockets)


@linux
def test_a_socket_from_native_code_is_caught(call):
    report = call("native_socket")
    assert not report.passed
    assert any("SIGSYS" in line for line in report.sockets)


def test_a_function_that_raises_does_not_pass(call):
    report = call("raises")
    assert not report.passed
    assert "ValueError: no such thing" in report.failure
    assert any(line.startswith("failed: ") for line in report.lines())


def identity_model() -> str:
    onnx = pytest.importorskip("onnx")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return base64.b64encode(model.SerializeToString()).decode()


def test_onnxruntime_leaves_nothing_behind_when_edgegen_comes_first(call):
    pytest.importorskip("onnxruntime")
    report = call("session", identity_model(), False)
    assert report.passed, report.lines()


@linux
def test_the_telemetry_of_onnxruntime_would_be_caught(call):
    ort = pytest.importorskip("onnxruntime")
    if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 29):
        pytest.skip("this onnxruntime has no telemetry on Linux")
    report = call("session", identity_model(), True)
    assert not report.passed
    assert report.files or report.sockets


def test_a_bundle_generates_offline(tiny_bundle):
    pytest.importorskip("onnxruntime")
    report = check_offline(tiny_bundle, "abc", max_new_tokens=4)
    assert report.passed, report.lines()
    assert report.output


def test_a_bundle_that_is_missing_is_refused_before_anything_is_watched(tmp_path):
    with pytest.raises(BundleError, match=r"none\.bundle"):
        check_offline(tmp_path / "none.bundle")


def test_a_bundle_that_is_damaged_does_not_pass(tiny_bundle):
    for graph in (tiny_bundle / "graphs").glob("*.onnx"):
        graph.write_bytes(b"x" * graph.stat().st_size)
    report = check_offline(tiny_bundle)
    assert not report.passed
    assert "SHA-256" in report.failure


def test_sockets_are_denied_inside_and_allowed_after():
    with deny_sockets():
        with pytest.raises(OfflineError):
            socket.socket()
        with pytest.raises(OfflineError):
            socket.getaddrinfo("localhost", 80)
    socket.socket().close()


def test_sockets_are_denied_in_other_threads_and_when_nested():
    seen = []

    def work() -> None:
        try:
            socket.socket().close()
        except OfflineError as error:
            seen.append(error)

    with deny_sockets():
        with deny_sockets():
            pass
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(seen) == 1
