"""docs/devices.md says what the commands say."""

import re
from pathlib import Path

import pytest
from command_line import run

from edgegen.devices.table import DEVICES, JETPACKS, lookup
from edgegen.export.target import decide, read_target

TEXT = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
TREE = Path(__file__).parent / "trees" / "orin-nano-super-15w"


def quoted(command: str) -> list[str]:
    """The lines that the document shows of this command's output; "..." stands for lines that it leaves out."""
    lines = TEXT.split(f"    $ {command}", 1)[1].splitlines()[1:]
    block = [line[4:] for line in lines[: next(index for index, line in enumerate(lines) if not line)]]
    return [line for line in block if line != "..."]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"--target ([a-z][a-z0-9@.-]*)", TEXT))))
def test_every_target_is_one(target):
    read_target(target)


def test_the_machine_is_shown_as_it_is_printed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("devices", "--root", str(TREE)).stdout.splitlines()
    assert quoted("edgegen devices ") == shown[: shown.index("")]


def test_the_device_is_shown_as_it_is_printed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert set(quoted("edgegen devices orin-nano")) <= set(run("devices", "orin-nano").stdout.splitlines())


def test_the_choice_is_shown_as_it_is_printed():
    printed = decide(lookup("orin-nano"), "decoder_lm").lines()
    for line in quoted("edgegen export checkpoint -o my.bundle --target orin-nano"):
        assert any(told.startswith(line.removesuffix("...")) for told in printed), line


def test_headings_name_what_a_release_brings():
    for release in ("6.2", "7.2"):
        heading = next(line for line in TEXT.splitlines() if line.startswith(f"### JetPack {release} "))
        jetpack = JETPACKS[release]
        tensorrt = ".".join(jetpack.tensorrt.split(".")[:2])
        for part in (jetpack.os, f"Python {jetpack.python}", f"CUDA {jetpack.cuda}", f"TensorRT {tensorrt}"):
            assert part in heading


def test_figures_are_those_of_the_table():
    orin = DEVICES["jetson-agx-orin-64gb"]
    assert "85 dense int8 TOPS" in TEXT
    assert round(orin.mode("MAXN").int8_ops / 1e12) == 85
    assert round(orin.default_mode.int8_ops / 1e12) == 20
    assert [round(DEVICES["jetson-orin-nano-8gb"].mode(name).bandwidth_bytes_s / 1e9) for name in ("15W", "25W")] == [68, 102]
