"""Builds in a process of their own: however that ends, this one goes on, knows why, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_disk import small_disk

from edgegen.backends.engines.builder import CancelledError, build
from edgegen.backends.engines.key import GraphDigest
from edgegen.backends.engines.refusal import RefusedError
from edgegen.backends.engines.worker import BuildRequest
from edgegen.bundle import Bundle
from edgegen.errors import BackendError, BundleError

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fake_maker(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def request_of(path, maker="fake_maker:make", **options):
    with Bundle.open(path) as bundle:
        digest = GraphDigest.of(bundle, "decoder", "canonical")
    return BuildRequest(str(path), "decoder", "canonical", digest, "tensorrt-rtx", options, maker)


def children():
    return Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()


def test_the_engine_comes_with_the_time_and_the_memory_that_its_process_took(tiny_bundle, tmp_path):
    heard = []
    built = build(request_of(tiny_bundle, how="slowly"), progress=lambda *said: heard.append(said), folder=tmp_path)
    assert built.data.startswith(b"vtrt tensorrt-rtx graphs/decoder.onnx ")
    assert built.seconds >= 0.5
    assert 10 << 20 < built.peak_memory_bytes < 1 << 30  # a Python with msgspec, not this process with pytest and numpy
    assert heard == [("parse", 1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.bundle"]
    assert children() == []


FAILURES = {  # a refusal is remembered; that memory ran out, is not
    "out of memory": (BackendError, r"^graph 'decoder' on tensorrt-rtx: the build ran out of memory \(peak \d+ MB of \d+ MB\)"),
    "crash": (RefusedError, r"crashed \(signal SIGABRT\): terminate called after throwing an instance of 'std::bad_cast'"),
    "refuse": (RefusedError, r"^node 'x' \(Foo\): no such operator$"),
    "bug": (RefusedError, r"crashed \(exit code 1\): ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_build_that_fails_says_why_in_one_line(tiny_bundle, how):
    kind, said = FAILURES[how]
    with pytest.raises(BackendError, match=said) as caught:
        build(request_of(tiny_bundle, how=how))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert children() == []


def test_a_bundle_that_was_replaced_meanwhile_is_not_built(tiny_bundle):
    request = request_of(tiny_bundle)
    other = GraphDigest("0" * 64, request.digest.weights, request.digest.signature)
    with pytest.raises(BundleError, match="was replaced"):
        build(BuildRequest(request.bundle, "decoder", "canonical", other, "tensorrt-rtx", {}, request.maker))


def test_damaged_weights_are_not_built(tiny_bundle):
    request = request_of(tiny_bundle)
    weights = tiny_bundle / "graphs/decoder.weights"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(BundleError, match="damaged"):
        build(request)


def test_a_cancelled_build_is_killed_with_all_that_it_started(tiny_bundle):
    cancelled = threading.Event()
    threading.Timer(0.6, cancelled.set).start()
    with pytest.raises(CancelledError):
        build(request_of(tiny_bundle, how="with a child"), cancelled=cancelled)
    assert children() == []
    found = subprocess.run(["pgrep", "-f", "^sleep 600$"], capture_output=True, text=True, check=False)
    assert found.stdout == ""


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
sys.path.insert(0, {tests!r})
from pathlib import Path
from backends.engines.test_builder import request_of
from edgegen.backends.engines.builder import build
from edgegen.backends.engines.key import EngineKey, Target
from edgegen.backends.engines.store import EngineStore
request = request_of(Path({bundle!r}), how="for ever", marks={marks!r})
key = EngineKey(request.digest, request.flavour, "1", Target(), {{}})
cache = EngineStore({cache!r})
cache.obtain(key, lambda: build(request, folder=cache.root))
"""


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_ends_with_the_process_that_wanted_it_and_leaves_nothing(tiny_bundle, tmp_path, number):
    marks, cache = tmp_path / "marks", tmp_path / "engines"
    marks.mkdir()
    code = PARENT.format(tests=str(TESTS), bundle=str(tiny_bundle), marks=str(marks), cache=str(cache))
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(marks.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    (worker,) = (int(path.name) for path in marks.iterdir())
    assert alive(worker)
    parent.send_signal(number)
    parent.wait(30)
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(worker)
    left = [path.suffix for path in cache.iterdir()]
    assert left == ([".lock"] if number == signal.SIGKILL else [])  # which the next build sweeps


def test_an_engine_that_does_not_fit_on_the_disk_says_where_and_is_no_refusal(tiny_bundle, tmp_path):
    (small := tmp_path / "small").mkdir()
    with small_disk(small, "64k"):
        with pytest.raises(BackendError, match=rf"cannot be written to {small}: No space left .*\$EDGEGEN_ENGINES") as caught:
            build(request_of(tiny_bundle, how="large"), folder=small)
        assert type(caught.value) is BackendError
        assert list(small.iterdir()) == []


def test_a_builder_without_a_place_to_write_says_so(tiny_bundle, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgegen.backends.engines.builder.tempfile.TemporaryFile", full)
    with pytest.raises(BackendError, match="No space left on device; make room"):
        build(request_of(tiny_bundle))
