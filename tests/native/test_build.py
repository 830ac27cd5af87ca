"""The kernels as C: they compile for every instruction set, compute what they should on a bare machine, and are not needed."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytest.importorskip("hatchling")
_SPEC = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
hatch_build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hatch_build)

FOREIGN = ("aarch64-linux-gnu-gcc", "qemu-aarch64-static")  # apt: gcc-aarch64-linux-gnu, qemu-user-static
CASES = [(machine, name) for machine, sets in hatch_build.INSTRUCTION_SETS.items() for name in sets]


def has(name: str) -> bool:
    """Whether this processor has an instruction set: /proc/cpuinfo, not the kernels' own opinion."""
    flags = {"avx512vnni": "avx512_vnni", "avx2": "avx2", "neon": "asimddp"}[name]
    return flags in Path("/proc/cpuinfo").read_text().split()


@pytest.mark.parametrize(("machine", "name"), CASES, ids=[name for _, name in CASES])
def test_the_kernels_compute_what_plain_loops_do(tmp_path, machine, name):
    command, runner = hatch_build.compiler(), []
    if machine != platform.machine():
        if machine != "aarch64" or not all(map(shutil.which, FOREIGN)):
            pytest.skip(f"to compile and run for {machine} here, {' and '.join(FOREIGN)} are needed")
        command, runner = [FOREIGN[0], "-static"], [FOREIGN[1]]
    elif command is None or not has(name):
        pytest.skip(f"no C compiler, or no {name} here")
    sources = [*(ROOT / "edgegen/native" / source for source in hatch_build.KERNELS), ROOT / "tests/native/check_kernels.c"]
    flags = [*hatch_build.COMMON, "-Werror", *hatch_build.INSTRUCTION_SETS[machine][name].split()]
    hatch_build.run([*command, *flags, f"-DISA={name}", *sources, "-o", tmp_path / "check", "-lm"])
    done = subprocess.run([*runner, tmp_path / "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not hatch_build.is_supported() or hatch_build.compiler() is None, reason="no C compiler here")
def test_the_library_appears_whole_and_a_compiler_that_fails_leaves_the_old_one(tmp_path):
    library = tmp_path / "libedgegen_kernels.so"
    hatch_build.build(hatch_build.compiler(), library=library)
    built = library.read_bytes()
    assert built[:4] == b"\x7fELF"
    with pytest.raises(subprocess.CalledProcessError):
        hatch_build.build(["false"], library=library)
    assert library.read_bytes() == built
    assert list(tmp_path.iterdir()) == [library]


def test_without_a_compiler_zig_is_asked_for_and_without_either_the_package_is_complete(monkeypatch, tmp_path):
    monkeypatch.setattr(hatch_build, "LIBRARY", tmp_path / "libedgegen_kernels.so")
    monkeypatch.setattr(hatch_build, "compiler", lambda: None)
    monkeypatch.setattr(hatch_build, "ZIG", ["false"])
    warnings = []

    class App:
        display_warning = staticmethod(warnings.append)

    hook = object.__new__(hatch_build.Hook)
    monkeypatch.setattr(hatch_build.Hook, "app", App)
    data = {"artifacts": []}
    hook.initialize("standard", data)
    if sys.platform == "linux":
        assert hook.dependencies() == ["ziglang>=0.13"]
        assert "without its CPU kernels" in warnings[0]
    assert data == {"artifacts": []}
