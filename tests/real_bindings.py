"""What the real Python bindings of TensorRT offer, of versions for which there is no library here.

The bindings are one extension module in a wheel of a megabyte. It needs TensorRT's libraries only to be loaded: stubs that
export the nine functions which it looks up are enough to import it, in a process of its own, and to ask it for its classes,
members, enumerations and signatures.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edgegen.errors import SourceError
from edgegen.export.fetch import fetch_from_wheel

MEMBER = "tensorrt_bindings/tensorrt.so"


class Bindings(NamedTuple):
    """A wheel; `files`: digest and size of its extension module, by version of Python."""

    requirement: str
    libraries: int  # the number in the names of the libraries that it is linked to
    files: dict[str, tuple[str, int]]


BINDINGS = {
    "10.3": Bindings(
        "tensorrt-cu12-bindings==10.3.0",
        10,
        {
            "3.10": ("2df92ce9541c777acf18c1f4b6b4fdb1649b14598d6bd53ee8b1152ef4d21793", 4671344),
            "3.11": ("fc41d01b80e66adaf4c39739033c68fca56d070fbd7ae299d21cf0eb5596651d", 4675800),
            "3.12": ("db31c3bd6032d33568e588506d3f51a8ea9cd45b271cd3428ed9c75dc2bd3dbd", 4658944),
        },
    ),
    "10.13": Bindings(
        "tensorrt-cu12-bindings==10.13.3.9",
        10,
        {
            "3.10": ("e33bd28b6a2ccb7d3f82b3d377e8b2045bc4d3a4bcedb7b2224f22a715d1f2fc", 4549896),
            "3.11": ("e76e4720894c550aa5131e558caac1ca8eac80851b47006e3fd7b6f3e1271f5d", 4553984),
            "3.12": ("88eeecf8f10a74402c48faf9d23e0f0372d0ac412ab45377f0b937788335e028", 4593952),
            "3.13": ("767082b112c1cbc7acd17a3a8ebdf55d7ff593fbb98761e30ee5238287e0ab32", 4593952),
        },
    ),
    "10.16": Bindings(
        "tensorrt-cu13-bindings==10.16.1.11",
        10,
        {
            "3.10": ("605d1563eb1976cd084c52646ad974981e598558448704a1f3c11afa25a5bfc4", 5738448),
            "3.11": ("9bf84a17f9df12e2c907d2f03b57139a8cfc9b034b90f701eec3e495caf8ad15", 5738440),
            "3.12": ("0fab586606e16aa16168f4adefbbdcd09e302bcef979138c0cc6a27d8313ee35", 5778992),
            "3.13": ("fad364759c59810fe9908f5e55b921b36ae219759e37612a020b99fa8c569598", 5779072),
        },
    ),
    "11.4": Bindings(
        "tensorrt-cu13-bindings==11.4.0.106",
        11,
        {
            "3.10": ("29886cc5b724df58505e28585108dd4f7f80b391a3c7cde1429c6e112f89e441", 5379040),
            "3.11": ("d07cb6dfd4300c794285e056633c98ffa54c63e06f828b903fdb4abbe2158938", 5387376),
            "3.12": ("3d96b0fc6feaddb2a979365dff2d3585fee50219d1a1019ac5b12a6253b844ee", 5422248),
            "3.13": ("1adabb289cb0bb924af73f759c880092e45e97b121a6095b9da66ba4bb675c1f", 5422632),
        },
    ),
}
RELEASES = (*BINDINGS, "rtx")
LOOKED_UP = (  # what `nm -D --undefined-only` says of each of the modules, beside the C and C++ libraries
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
DUMP = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])

def members(owner):
    found = {}
    enumerated = getattr(owner, "__members__", {})
    for name in dir(owner):
        if name.startswith("_"):
            continue
        value = enumerated.get(name)
        documented = getattr(owner, name).__doc__ if value is None else None
        found[name] = {"value": None if value is None else int(value), "doc": documented or ""}
    return found

dump = {"": members(module)}
for name in dump[""]:
    owner = getattr(module, name)
    if isinstance(owner, type):
        dump[name] = members(owner)
        dump[""][name]["doc"] = owner.__init__.__doc__ or ""
print(json.dumps(dump))
"""
Dump = dict[
    str, dict[str, dict[str, Any]]
]  # class ("" for the module) -> member -> its number in an enumeration, its docstring


@cache
def dump(release: str) -> Dump:
    """The API of a release. Skips the test, with the reason, where it cannot be had."""
    if release == "rtx":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        return _asked("tensorrt_rtx", {})
    bindings, version = BINDINGS[release], f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version not in bindings.files or sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip(f"no wheel of {bindings.requirement} is known for Python {version} on {sys.platform}")
    try:
        module = fetch_from_wheel(bindings.requirement, MEMBER, *bindings.files[version])
    except SourceError as error:
        pytest.skip(f"no bindings: {error}")
    libraries = _stubs(module.parent, bindings.libraries)
    return _asked("tensorrt", {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(module.parent)})


def _stubs(folder: Path, number: int) -> Path:
    """The folder of the three libraries that a module is linked to, compiled where it is not there yet."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, and the bindings load over stubs of TensorRT's libraries")
    made = folder / "stubs"
    made.mkdir(exist_ok=True)
    source = made / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in LOOKED_UP))
    for library in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
        file = f"{library}.so.{number}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(made / file), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    return made


def _asked(module: str, environment: dict[str, str]) -> Dump:
    command = [sys.executable, "-W", "ignore", "-c", DUMP, module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    found: Dump = json.loads(done.stdout)
    return found


class Signature(NamedTuple):
    """Names of parameters, without `self`; those before `required` have no default."""

    names: tuple[str, ...]
    required: int

    def takes(self, positional: int, keywords: frozenset[str]) -> bool:
        """Whether a call fits: with so many positional arguments, and these by name."""
        left = self.names[positional:]
        needed = set(self.names[positional : self.required])
        return positional <= len(self.names) and keywords <= set(left) and needed <= keywords


def signatures(doc: str, name: str) -> list[Signature]:
    """Every overload that a docstring of pybind11 writes."""
    found = []
    for line in doc.splitlines():
        matched = re.fullmatch(rf"(?:\d+\. )?{name}\((.*)\) -> .+", line.strip())
        if matched is None or "*args" in matched[1]:
            continue
        parts = [part.strip() for part in _split(matched[1])]
        kept = [part for part in parts if part and not part.startswith(("self:", "self "))]
        names = tuple(part.partition(":")[0].strip() for part in kept)
        required = sum(not _has_default(part) for part in kept)
        found.append(Signature(names, required))
    return found


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets and quotes."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}" or (letter == ">" and text[place - 1 : place] != "-"))
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _has_default(parameter: str) -> bool:
    return "=" in re.sub(r"<[^<>]*>", "", parameter)
