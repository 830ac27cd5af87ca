"""`edgegen devices`: what it prints at each width of a terminal, and as JSON."""

import json
from pathlib import Path

import pytest
from command_line import run

from edgegen.devices.table import DEVICES, JETPACKS

TREES = Path(__file__).parent.parent / "devices" / "trees"


@pytest.fixture(params=[80, 128])
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def test_this_machine_comes_first_and_every_row_follows(width):
    result = run("devices", "--root", str(TREES / "orin-nano-super-15w"))
    assert result.exit_code == 0, result.stderr
    head, *_ = result.stdout.split("\n\n")
    assert head.startswith("This machine: NVIDIA Jetson Orin Nano")
    for part in ("JetPack 6.2", "15W, GPU at most 612 MHz", "memory at most 2133 MHz", "68 GB/s, 10.0 TFLOPS fp16"):
        assert part in " ".join(head.split())
    shown = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ") and line.split()[0] in DEVICES]
    assert sorted(shown) == sorted(DEVICES)


def test_no_line_is_wider_than_the_terminal(width):
    for arguments in (["--root", str(TREES / "thor-jetpack-7")], *([name] for name in DEVICES)):
        result = run("devices", *arguments)
        assert max(map(len, result.stdout.splitlines())) <= width, arguments


def test_a_wide_terminal_shows_modes_and_releases(width):
    text = run("devices", "--root", str(TREES / "x86-host")).stdout
    assert ("7W, 15W, MAXN_SUPER" in text) == (width == 128)


def test_one_device_is_told_in_full():
    text = run("devices", "orin-nano").stdout
    device = DEVICES["jetson-orin-nano-8gb"]
    assert text.startswith("jetson-orin-nano-8gb: Jetson Orin Nano 8GB (Super)\n")
    for part in (
        *(mode.name for mode in device.modes),
        "* 25W",
        "int4 yes",
        "fp8 no",
        "JetPack 6.2: Python 3.10",
        "confidence  high",
    ):
        assert part in text
    assert device.source in " ".join(text.split())


def test_a_device_that_is_too_old_says_so_once():
    text = run("devices", "xavier-nx").stdout
    assert text.count("edgegen needs") == 1
    assert "too old for edgegen" in text


def test_an_unknown_name_is_one_line_with_a_suggestion():
    result = run("devices", "orin-nan")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "edgegen: no device named 'orin-nan'; did you mean 'orin-nano'?\n"


def test_json_has_the_machine_and_all_rows():
    told = json.loads(run("devices", "--json", "--root", str(TREES / "agx-orin-64gb-30w")).stdout)
    assert told["machine"]["row"] == "jetson-agx-orin-64gb"
    assert told["machine"]["device"]["modes"][0]["name"] == "30W"
    assert told["machine"]["jetpack"]["tensorrt"] == JETPACKS["6.2"].tensorrt
    assert told["machine"]["jetson"]["gpu_hz"] == 612e6
    assert [row["name"] for row in told["devices"]] == list(DEVICES)


def test_json_of_one_device_has_its_precisions_and_software():
    told = json.loads(run("devices", "thor", "--json").stdout)
    assert told["device"]["name"] == "jetson-thor-t5000"
    assert told["precisions"]["fp8"] == {"runs": False, "why": "the GPU has fp8, but edgegen exports none yet"}
    assert [release["version"] for release in told["jetpacks"]] == ["7.0", "7.1", "7.2", "7.2.2"]


def test_bandwidth_is_measured_only_when_asked(monkeypatch):
    counts = []
    monkeypatch.setattr("edgegen.bench.machine.read_bandwidth", lambda threads: counts.append(threads) or threads * 1e10)
    monkeypatch.setattr("edgegen.backends.threads.default_threads", lambda: 4)
    tree = str(TREES / "x86-host")
    assert "see --measure" in run("devices", "--root", tree).stdout
    assert counts == []
    text = run("devices", "--root", tree, "--measure").stdout
    assert counts == [1, 4]
    assert "10.0 GB/s with 1 thread, 40.0 GB/s with 4 threads" in text
    assert "peaks now   40 GB/s" in text
    told = json.loads(run("devices", "--root", tree, "--measure", "--json").stdout)
    assert told["machine"]["read_bandwidths"] == {"1": 1e10, "4": 4e10}
    assert told["machine"]["device"]["bandwidth_bytes_s"] == 4e10


def test_only_this_machine_is_measured():
    done = run("devices", "rtx-4090", "--measure")
    assert (done.exit_code, "--measure is of this machine" in done.stderr) == (2, True)
