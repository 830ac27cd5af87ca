"""Builds edgegen's CPU kernels (edgegen/native) into the package: with the machine's C compiler, or else with Zig's.

Without a compiler that works, the package is complete all the same: ONNX Runtime's own kernels do their work, more slowly.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path(__file__).parent / "edgegen" / "native"
LIBRARY = NATIVE / "libedgegen_kernels.so"
KERNELS = [
    "products.c",
    "attend.c",
    "normalize.c",
    "convolve.c",
    "winograd.c",
    "doubling.c",
    "look.c",
    "table.c",
]  # for each set
OPERATORS = [
    "operators.c", "matmul_op.c", "attention_op.c", "group_norm_op.c", "conv_transpose_op.c", "winograd_op.c", "doubling_op.c",
    "look_op.c", "library.c",
]  # fmt: skip
COMMON = ["-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", "-s"]
INSTRUCTION_SETS = {  # of each machine, and what the compiler must be told
    "x86_64": {
        "avx512vnni": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c",
        "avx2": "-mavx2 -mfma -mf16c",
    },
    "aarch64": {"neon": "-march=armv8.2-a+dotprod"},
}
ZIG = [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-gnu.2.28"]
ZIG_WORDS = {"-march=armv8.2-a+dotprod": "-mcpu=generic+dotprod"}  # what it calls otherwise than gcc and clang do


class Hook(BuildHookInterface):
    """Called by hatchling for a wheel and for an editable installation alike."""

    def dependencies(self):
        """Zig brings a whole C compiler as a wheel; it is asked for only where there is none."""
        return ["ziglang>=0.13"] if is_supported() and compiler() is None else []

    def initialize(self, version, build_data):  # noqa: ARG002 - the name is the interface's
        """Build the library, and mark the wheel as one for this machine."""
        LIBRARY.unlink(missing_ok=True)
        if not is_supported():
            return
        try:
            build(compiler() or ZIG)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            self.app.display_warning(f"edgegen is installed without its CPU kernels, which could not be compiled: {reason}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(f"/{LIBRARY.relative_to(Path(__file__).parent)}")


def is_supported():
    """Whether there are kernels for this machine."""
    return sys.platform == "linux" and platform.machine() in INSTRUCTION_SETS


def compiler():
    """The machine's C compiler as the start of a command; None where there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def build(compile_, machine=None, library=LIBRARY):
    """Compile the kernels once for each instruction set of `machine`, and link them; `library` appears whole or not at all."""
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for name, flags in INSTRUCTION_SETS[machine or platform.machine()].items():
            words = [ZIG_WORDS.get(flag, flag) if "ziglang" in compile_ else flag for flag in flags.split()]
            objects += [compiled([*compile_, *COMMON, *words, f"-DISA={name}"], source, name, scratch) for source in KERNELS]
        objects += [compiled([*compile_, *COMMON], source, "any", scratch) for source in OPERATORS]
        linked = f"{scratch}/{library.name}"
        run([*compile_, "-shared", "-o", linked, *objects, "-lm"])
        shutil.copy(linked, f"{library}.new")
        Path(f"{library}.new").replace(library)


def compiled(command, source, name, scratch):
    """The object file of one source."""
    made = f"{scratch}/{Path(source).stem}_{name}.o"
    run([*command, "-c", NATIVE / source, "-o", made])
    return made


def run(command):
    """Run a compiler; CalledProcessError with what it said where it fails."""
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
