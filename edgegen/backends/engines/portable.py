"""Engines in a folder of one's own, to be carried elsewhere: each by the graph's name, and their digests beside them.

An engine is native code. Nothing here loads one because it lies in some folder: whoever wants it says its digest.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgegen.backends.engines.entry import Engine
from edgegen.backends.trt.open import for_gpu
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.errors import BackendError, InputError

if TYPE_CHECKING:
    from edgegen.backends.trt.cuda import Gpu
    from edgegen.backends.trt.flavours import Flavour

LIST = "engines.json"


def check_place(output: str | os.PathLike[str], backend: str, *, force: bool = False) -> Path:
    """Where engines may be written. InputError: taken (unless `force`), no folder, or a backend whose engines cannot travel."""
    folder = Path(output)
    if backend != "tensorrt-rtx":
        raise InputError(f"an engine of {backend} runs on this machine only: leave -o out, it is kept in the cache")
    if not folder.parent.is_dir():
        raise InputError(f"cannot write {folder}: the folder {folder.parent} does not exist")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write {folder}: it is no folder")
    if (folder / LIST).exists() and not force:
        raise InputError(f"{folder} already holds engines; use --force to replace them, or choose another place")
    return folder


def write_portable(folder: Path, bundle: str, engines: Mapping[str, Engine]) -> None:
    """Write `<name>.engine` for each engine, and `engines.json` with what they are. InputError where that cannot be."""
    listed = {}
    try:
        folder.mkdir(exist_ok=True)
        for graph, engine in engines.items():
            _write(folder / f"{graph}.engine", engine.data)
            listed[graph] = {"file": f"{graph}.engine", **msgspec.to_builtins(engine.record)}
        said = json.dumps({"bundle": bundle, "engines": listed}, indent=2, sort_keys=True)
        _write(folder / LIST, said.encode() + b"\n")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error


def read_portable(path: str | os.PathLike[str], sha256: str) -> bytes:
    """An engine from anywhere, for one who knows its digest and trusts where that came from.

    Raises BackendError: it cannot be read, or its digest is another.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BackendError(f"the engine {path} cannot be read: {error.strerror or error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise BackendError(f"the engine {path} is not the one that was asked for: its SHA-256 is {found}, not {sha256}")
    return data


def trusted(path: str | os.PathLike[str], sha256: str) -> Callable[..., Any]:
    """What to open a session with, instead of the cache: `open_session(backend, bundle, graph, engines=trusted(path, sha256))`.

    The digest is the caller's word that this native code may run. Opening raises BackendError as `read_portable` does, and
    where the library refuses the engine, or it is of another graph. What it was built for is said as `build=BuildOptions(...)`
    where that is not the default.
    """

    def open_it(flavour: "Flavour", build: BuildOptions | None, gpu: "Gpu", start: Callable[[bytes, BuildOptions], Any]) -> Any:
        return start(read_portable(path, sha256), for_gpu(flavour, build or BuildOptions(), gpu))

    return open_it


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
