"""Real processes that Ctrl-C, a full disk or a barred folder ends: one line, and nothing half made."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")
resource = pytest.importorskip("resource")

from tiny_bundles import export_tiny

ROOT = Path(__file__).resolve().parents[2]
# As `python -m edgegen`, but Ctrl-C is heard where the process that runs the tests ignores it, and a file has a largest size.
CODE = """
import resource, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv[1:2] = []
runpy.run_module("edgegen", run_name="__main__", alter_sys=True)
"""
MODULE = """
from edgegen.models.dcgan import Generator

def generator():
    return Generator(latent=8, size=16, width=4)
"""
MOST_S = 60


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {name: export_tiny(name, "fp32", folder) for name in ("gan", "diffusion")}


def start(*arguments, largest_file=0, folder=ROOT):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(largest_file), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def interrupted(process, is_midway):
    """Exit code and what was said by a command that got Ctrl-C once `is_midway` was true."""
    with process:
        until = time.monotonic() + MOST_S
        while not is_midway() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=MOST_S)
    assert out == ""
    return process.returncode, said.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has loaded is read from /proc")
def test_ctrl_c_while_images_are_made_leaves_none(bundles, tmp_path):
    options = "--class", 1, "--steps", 1000, "--count", 3000, "-o", tmp_path / "sheet.png"
    process = start("generate", bundles["diffusion"], *options)
    mapped = Path(f"/proc/{process.pid}/maps")
    loaded = []

    def runs():
        if not loaded and "onnxruntime_pybind11_state" in mapped.read_text():
            loaded.append(time.monotonic())
        return bool(loaded) and time.monotonic() - loaded[0] > 0.5  # libraries are loaded by then; wherever it is, it must stop

    assert interrupted(process, runs) == (130, "edgegen: stopped")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_folder_is_filled_removes_it(bundles, tmp_path):
    folder = tmp_path / "folder"
    process = start("generate", bundles["gan"], "--class", 1, "--count", 20000, "-o", folder)
    assert interrupted(process, folder.exists) == (130, "edgegen: stopped")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_bundle_is_written_leaves_none(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "tiny_gan.py").write_text(MODULE)
    options = "--family", "gan", "--input", "z float32[batch, 8]", "--axis", "batch=1..1..4", "-o", out / "x.bundle"
    process = start("export", "tiny_gan:generator", *options, folder=tmp_path)
    assert interrupted(process, lambda: any(out.iterdir())) == (130, "edgegen: stopped")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["sheet.png", "folder"])
def test_a_full_disk_is_one_line_and_leaves_nothing(bundles, tmp_path, name):
    done = start("generate", bundles["gan"], "--class", 1, "--count", 64, "-o", tmp_path / name, largest_file=100)
    out, said = done.communicate(timeout=MOST_S)
    assert (done.returncode, out, said.count("\n")) == (1, "", 1)
    assert said.startswith(f"edgegen: cannot write {tmp_path / name}")
    assert "File too large" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder in which not even root may make a file")
@pytest.mark.parametrize(("name", "said"), [("sheet.png", "cannot write"), ("folder", "cannot make the folder")])
def test_a_folder_that_is_barred_is_one_line(bundles, name, said):
    done = start("generate", bundles["gan"], "--class", 1, "--count", 2, "-o", f"/sys/kernel/{name}")
    out, heard = done.communicate(timeout=MOST_S)
    assert (done.returncode, out, heard.count("\n")) == (1, "", 1)
    assert heard.startswith(f"edgegen: {said} /sys/kernel/{name}: ")
