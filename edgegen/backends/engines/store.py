"""The cache of engines on disk.

An engine is native code: whoever can put one there runs in this process. So the folder is this user's alone, an entry is
loaded only as the very bytes whose digest was just checked, and whatever does not fit is removed and built again.
"""

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgegen.backends.engines import entry, lock
from edgegen.backends.engines.entry import Engine, Record, StaleEntryError
from edgegen.backends.engines.key import EngineKey
from edgegen.errors import BackendError, InputError

_log = logging.getLogger("edgegen")

PLACE, LIMIT = "EDGEGEN_ENGINES", "EDGEGEN_ENGINES_LIMIT"  # environment variables
DEFAULT_LIMIT_BYTES = 20 << 30
VERDICT = ".verdict"  # beside an engine: see verdict.py
KERNELS = ".kernels"  # beside an engine: what TensorRT-RTX compiled while it ran
REFUSAL = ".refusal"  # in an engine's place: see refusal.py
_SUFFIX, _PARTIAL, _LOCK = ".engine", ".partial", ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP)  # a file where a folder is needed
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Built:
    """What a maker gives: a serialized engine, how long it took, and the most memory that was used."""

    data: bytes
    seconds: float
    peak_memory_bytes: int = 0


class CacheError(BackendError):
    """The cache cannot keep an engine (which is there all the same), or is no place to keep one."""


class EngineStore:
    """Engines in one folder, each in a file that is named by the digest of its key.

    Several processes and threads may use one folder. Of those that want the same engine, one builds it and the others wait.

    Attributes:
        root: the folder; it is made, for this user alone, when the first engine is kept.
        limit_bytes: of all entries together; those that were not used for longest go first.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, limit_bytes: int | None = None) -> None:
        """Nothing is made or looked at yet.

        Args:
            root: `$EDGEGEN_ENGINES` if None, else `$XDG_CACHE_HOME/edgegen/engines`, else `~/.cache/edgegen/engines`.
            limit_bytes: `$EDGEGEN_ENGINES_LIMIT` if None ("20G", "500M", bytes), else 20 GiB.

        Raises:
            InputError: the limit in the environment is no size.
        """
        self.root = Path(os.path.abspath(default_root() if root is None else root))  # noqa: PTH100 (links are refused below)
        self.limit_bytes = default_limit() if limit_bytes is None else limit_bytes

    def path(self, key: EngineKey) -> Path:
        """Where the engine of `key` is, or would be."""
        return self.root / f"{key.digest}{_SUFFIX}"

    def kernels(self, key: EngineKey) -> Path:
        """Where the library keeps what it compiles while it runs that engine: native code, so the folder must be trusted."""
        return self.path(key).with_suffix(KERNELS)

    def get(self, key: EngineKey) -> Engine | None:
        """The engine of `key`, checked, or None. What does not fit is removed, with a line in the log.

        Raises CacheError where the folder is not to be trusted.
        """
        if not self.is_there():
            return None
        path = self.path(key)
        try:
            found = entry.read(path, key)
        except StaleEntryError as stale:
            _log.warning("the engine %s is not used, and built again: %s", path, stale)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except OSError as error:
            _log.warning("the engine %s cannot be read (%s), and is built again", path, error.strerror)
            return None
        if found is not None:
            self._mark_used(path)
        return found

    def latest(self, key: EngineKey, having: Mapping[str, Any] = {}) -> EngineKey | None:
        """The key of the engine that was built or used last of those that differ from `key` in the options of the build alone.

        `having` are options that it must have been built with. Raises CacheError where the folder is not to be trusted.
        """
        if not self.is_there():
            return None
        for path in reversed(self.entries()):
            with contextlib.suppress(StaleEntryError, OSError):  # `get` says what is wrong with what is really wanted
                found = entry.read_key(path)
                if (
                    found is not None
                    and msgspec.structs.replace(found, options=key.options) == key
                    and path == self.path(found)
                    and having.items() <= found.options.items()
                ):
                    return found
        return None

    def obtain(self, key: EngineKey, make: Callable[[], Built], *, waiting: Callable[[str], None] | None = None) -> Engine:
        """The engine of `key`: from the cache, else made, and kept.

        Where the cache cannot keep it (a full disk, a folder that cannot be written to), the log says so in one line and the
        engine is used all the same.

        Args:
            key: what is wanted.
            make: builds it; called at most once, and by one process at a time.
            waiting: called with who is building it ("process 123"), where another does.

        Raises:
            CacheError: the folder is not to be trusted.
            BackendError: whatever `make` raises.
        """
        found = self.get(key)
        if found is not None:
            return found
        with contextlib.ExitStack() as stack:
            try:
                self._prepare()
                stack.enter_context(lock.held(self.root / f".{key.digest}{_LOCK}", waiting=waiting))
            except OSError as error:
                _log.warning("%s", _not_kept(self.root, error))
                return _engine(key, make())
            found = self.get(key)  # who held the lock may have built it
            if found is not None:
                return found
            self._sweep()
            engine = _engine(key, make())
            try:
                self.keep(engine)
            except CacheError as error:
                _log.warning("%s", error)
            return engine

    def keep(self, engine: Engine) -> Path:
        """Write an engine to the cache, whole or not at all, and make room for it. Returns where it is.

        Raises CacheError: the disk is full, the folder cannot be written to, or is not to be trusted.
        """
        path = self.path(engine.record.key)
        try:
            self._prepare()
            self._make_room(path, engine.record.size_bytes)
            self._publish(path, engine)
        except OSError as error:
            raise _not_kept(self.root, error) from error
        return path

    def prepare(self) -> None:
        """Make the folder where there is none. CacheError where engines cannot be kept there."""
        try:
            self._prepare()
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise _not_kept(self.root, error) from error

    def discard(self, key: EngineKey) -> None:
        """Forget an engine that the library refused."""
        with contextlib.suppress(OSError):
            self.path(key).unlink(missing_ok=True)

    def entries(self) -> list[Path]:
        """Every entry, the one that was not used for longest first."""
        return [path for _, path in self._uses()]

    def _uses(self) -> list[tuple[int, Path]]:
        """When each entry was used last, in nanoseconds, in that order."""
        used = []
        for path in self.root.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                used.append((path.lstat().st_mtime_ns, path))
        return sorted(used)

    def _mark_used(self, path: Path) -> None:
        """Make an entry the last in the order of use: a file's clock ticks in milliseconds, and a board's may be set back."""
        with contextlib.suppress(OSError):  # a cache that cannot be written to has no order of use
            last_ns = max((used_ns for used_ns, _ in self._uses()), default=0)
            now_ns = max(time.time_ns(), last_ns + 1)
            os.utime(path, ns=(now_ns, now_ns))

    def is_there(self) -> bool:
        """Whether the folder exists. CacheError where others could have put something into it."""
        try:
            found = self.root.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise CacheError(f"the engine cache {self.root} cannot be looked at: {error.strerror}") from error
        cure = f"make it a folder of your own (chmod 700), or name another in ${PLACE}"
        if not stat.S_ISDIR(found.st_mode):
            raise CacheError(f"the engine cache {self.root} is a link or no folder; {cure}")
        if found.st_uid != os.geteuid():
            raise CacheError(f"the engine cache {self.root} belongs to another user (id {found.st_uid}); {cure}")
        if found.st_mode & 0o022:
            raise CacheError(f"others may write to the engine cache {self.root}; {cure}")
        return True

    def _prepare(self) -> None:
        if not self.is_there():
            self.root.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.root.mkdir(mode=0o700)
            self.is_there()

    def _publish(self, path: Path, engine: Engine) -> None:
        partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{_PARTIAL}")
        with lock.written(partial) as descriptor:
            entry.write(descriptor, engine)
            partial.rename(path)
        self._mark_used(path)
        _flush_folder(self.root)

    def _make_room(self, path: Path, size_bytes: int) -> None:
        """Remove what was not used for longest until `size_bytes` more fit; never what someone is reading."""
        sizes = {}
        for other in self.entries():
            with contextlib.suppress(FileNotFoundError):
                sizes[other] = other.lstat().st_size
        sizes.pop(path, None)
        excess = sum(sizes.values()) + size_bytes - self.limit_bytes
        for other, size in sizes.items():
            if excess <= 0:
                return
            if entry.is_free(other):
                other.unlink(missing_ok=True)
                excess -= size
                _log.info("the engine %s made room for another (limit %d MiB)", other.name, self.limit_bytes >> 20)

    def _sweep(self) -> None:
        """Remove what processes left that were killed while they built or wrote, and what was said of engines that are gone."""
        for pattern in (f".*{_PARTIAL}", f".*{_LOCK}"):
            for path in self.root.glob(pattern):
                with contextlib.suppress(OSError):
                    lock.sweep(path)
        for path in (*self.root.glob(f"*{VERDICT}"), *self.root.glob(f"*{KERNELS}")):
            if not path.with_suffix(_SUFFIX).exists():
                path.unlink(missing_ok=True)


def default_root() -> Path:
    """Where engines are kept, unless a store is told otherwise."""
    if place := os.environ.get(PLACE):
        return Path(place)
    cache = os.environ.get("XDG_CACHE_HOME")
    base = Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache"
    return base / "edgegen" / "engines"


def default_limit() -> int:
    """The limit in bytes, unless a store is told otherwise. InputError where the environment names no size."""
    said = os.environ.get(LIMIT)
    return DEFAULT_LIMIT_BYTES if not said else parse_size(said, f"${LIMIT}")


def parse_size(text: str, what: str) -> int:
    """Read "20G", "500M" or a number of bytes; InputError, which names `what`, for anything else."""
    number, unit = (text[:-1], _UNITS[text[-1:].upper()]) if text[-1:].upper() in _UNITS else (text, 1)
    if not (number.isascii() and number.isdigit()):
        raise InputError(f"{what} is {text[:40]!r}; give bytes, or a number with K, M, G or T: 20G")
    return int(number) * unit


def _engine(key: EngineKey, built: Built) -> Engine:
    digest = hashlib.sha256(built.data).hexdigest()
    record = Record(key, digest, len(built.data), time.time(), built.seconds, built.peak_memory_bytes)
    return Engine(built.data, record, is_new=True)


def _not_kept(root: Path, error: OSError) -> CacheError:
    why = error.strerror or str(error)
    cure = "make room, or " if error.errno in _FULL else "" if error.errno in _IN_THE_WAY else "make it writable, or "
    return CacheError(f"engines are not kept in {root}: {why}; {cure}name another folder in ${PLACE}")


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
