"""One engine in one file: what it is, then its bytes. It is there whole or not at all, and believed only if all of it fits."""

import contextlib
import fcntl
import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgegen.backends.engines.key import EngineKey

_MAGIC = b"edgegen engine\x00\x01"
_LENGTH = struct.Struct("<Q")
_MAX_RECORD_BYTES = 1 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would wait for who writes to it
_MAGICS = {"tensorrt-rtx": b"vtrt"}  # how a flavour's engines begin, where that is certain


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept beside an engine.

    Attributes:
        key: what it was made of, and for.
        sha256: of its bytes.
        size_bytes: of its bytes.
        built_at: seconds since 1970.
        build_s: how long it took.
        peak_memory_bytes: the most memory that the building process had; 0 where that is not known.
    """

    key: EngineKey
    sha256: str
    size_bytes: int
    built_at: float
    build_s: float
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Engine:
    """A serialized engine, checked, and what is known of it. `is_new` where this call built it."""

    data: bytes
    record: Record
    is_new: bool = False


class StaleEntryError(Exception):
    """An entry that is not what it should be; the message says why. It is removed, never loaded."""


def write(descriptor: int, engine: Engine) -> None:
    """Write an entry to an empty file and flush it to the disk. OSError where that fails."""
    record = msgspec.json.encode(engine.record)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(_MAGIC + _LENGTH.pack(len(record)) + record)
        file.write(engine.data)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, key: EngineKey) -> Engine | None:
    """The engine of `key` at `path`: exactly the bytes that were checked. None where there is no file.

    Raises:
        StaleEntryError: it is another user's, open to others, damaged, made for another key, or no engine.
        OSError: it cannot be read.
    """
    file = _open(path)
    if file is None:
        return None
    with file:
        record = _read_record(file)
        if record.key != key:
            raise StaleEntryError("it was made for another graph, device, version or option")
        data = file.read(record.size_bytes + 1)
    if len(data) != record.size_bytes or hashlib.sha256(data).hexdigest() != record.sha256:
        raise StaleEntryError("its bytes are not those that were written")
    if not data.startswith(_MAGICS.get(key.flavour, b"")):
        raise StaleEntryError("it does not begin as an engine does")
    return Engine(data, record)


def read_key(path: Path) -> EngineKey | None:
    """What the entry at `path` says that it is for, which `read` has still to check. None where there is no file.

    Raises as `read` does.
    """
    file = _open(path)
    if file is None:
        return None
    with file:
        return _read_record(file).key


def is_free(path: Path) -> bool:
    """Whether nobody is reading the entry at `path` now; False where it cannot be opened."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _open(path: Path) -> BinaryIO | None:
    """The file of an entry, which is this user's alone; None where there is none."""
    try:
        file = os.fdopen(os.open(path, _FLAGS), "rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        if path.is_symlink():
            raise StaleEntryError("it is a symbolic link") from error
        raise
    try:
        with contextlib.suppress(BlockingIOError):  # an entry that is being read is not evicted
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _check_owner(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _check_owner(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise StaleEntryError("it is no plain file, or has a second name")
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StaleEntryError("it belongs to another user, or others may write to it")


def _read_record(file: BinaryIO) -> Record:
    size_bytes = os.fstat(file.fileno()).st_size
    head = file.read(len(_MAGIC) + _LENGTH.size)
    if len(head) < len(_MAGIC) + _LENGTH.size or not head.startswith(_MAGIC):
        raise StaleEntryError("it is no entry of this cache")
    (length,) = _LENGTH.unpack_from(head, len(_MAGIC))
    if length > min(_MAX_RECORD_BYTES, size_bytes):
        raise StaleEntryError("its record is longer than a record can be")
    try:
        record = msgspec.json.decode(file.read(length), type=Record)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StaleEntryError("its record cannot be read") from error
    if size_bytes != len(head) + length + record.size_bytes:
        raise StaleEntryError("it is not as long as its record says")
    return record
