"""Where the files of a bundle lie: in a folder, or in one uncompressed tar. Both are read as a stranger's.

Nothing is followed and nothing is unpacked: a file is opened once, without links, and mapped read-only; its digest is taken
over that mapping, and the same mapping is handed out. So files must not change while they are open.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import re
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from edgegen.errors import BundleError
from edgegen.manifest import check_path

_CHUNK_BYTES = 4 << 20  # a multiple of every page size
_BLOCK_BYTES = 512
_MAX_MEMBERS = 4096
_MEMBER_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"K": "a long name",
    b"L": "a long name",
    b"g": "a pax header",
    b"x": "a pax header",
}
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PK": "zip"}


class Blob:
    """The bytes of one file, mapped."""

    def __init__(self, mapping: mmap.mmap | None, start: int, size_bytes: int) -> None:
        self._mapping = mapping  # None: no byte to map
        self._start = start
        self.size_bytes = size_bytes

    def view(self) -> memoryview:
        """The bytes themselves, read-only and never copied. The view keeps the mapping alive."""
        if self._mapping is None:
            return memoryview(b"")
        return memoryview(self._mapping)[self._start : self._start + self.size_bytes]

    def sha256(self) -> str:
        """The digest of the mapped bytes. Pages are let go behind it: hashing a file costs no memory."""
        digest = hashlib.sha256()
        if self._mapping is None:
            return digest.hexdigest()
        position, end = self._start, self._start + self.size_bytes
        with memoryview(self._mapping) as view:
            while position < end:
                page = position // _CHUNK_BYTES * _CHUNK_BYTES
                stop = min(page + _CHUNK_BYTES, end)
                digest.update(view[position:stop])
                self._mapping.madvise(mmap.MADV_DONTNEED, page, stop - page)
                position = stop
        return digest.hexdigest()


class Folder:
    """A bundle that is a directory: `blob` opens its files one by one, following no link."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._mappings: list[mmap.mmap] = []

    def blob(self, name: str) -> Blob:
        """Open and map one file. Raises BundleError where it is missing, or anything but a regular file with one name."""
        check_path(name)
        try:
            descriptor = self._open(name)
        except OSError as error:
            raise BundleError(f"{self._path}: {name} {_reason(error)}") from None
        try:
            return self._map(descriptor, name)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close everything. Views that are still in use stay valid until they are dropped."""
        _unmap(self._mappings)
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _open(self, name: str) -> int:
        *folders, last = name.split("/")
        parent = os.dup(self._root)
        try:
            for folder in folders:
                inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                os.close(parent)
                parent = inner
            # Not blocking: opening a pipe would wait for a writer.
            return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)

    def _map(self, descriptor: int, name: str) -> Blob:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{self._path}: {name} is not a regular file")
        if status.st_nlink != 1:
            raise BundleError(f"{self._path}: {name} is a hard link: its bytes could change from elsewhere; copy the bundle")
        mapping = _map_file(descriptor, status.st_size, f"{self._path}: {name}")
        if mapping is not None:
            self._mappings.append(mapping)
        return Blob(mapping, 0, status.st_size)


class Tar:
    """A bundle in one uncompressed ustar file, read where it lies.

    The headers are read here, not by the standard library's tarfile: that one acts on the very extensions (links, pax headers,
    sparse maps) that have to be refused, before anyone can look at them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._mapping = _map_file(descriptor, os.fstat(descriptor).st_size, str(path))
        finally:
            os.close(descriptor)
        try:
            self._members = _read_members(Blob(self._mapping, 0, len(self._mapping or b"")).view())
        except BundleError as error:
            self.close()
            raise BundleError(f"{path}: {error}") from None

    def blob(self, name: str) -> Blob:
        """One member. Raises BundleError where there is none of that name."""
        if name not in self._members:
            raise BundleError(f"{self._path}: {name} is missing")
        return Blob(self._mapping, *self._members[name])

    def close(self) -> None:
        """Close the file. Views that are still in use stay valid until they are dropped."""
        _unmap([self._mapping] if self._mapping is not None else [])


def open_archive(path: Path) -> Folder | Tar:
    """Open a bundle's folder or tar. Raises BundleError where there is neither."""
    try:
        if path.is_dir():
            return Folder(path)
        if path.is_file():
            return Tar(path)
    except OSError as error:
        raise BundleError(f"bundle {path} {_reason(error)}") from None
    raise BundleError(f"no bundle at {path}: neither a folder nor a .tar file")


def write_tar(file: BinaryIO, members: Iterable[tuple[str, memoryview]]) -> None:
    """Write an uncompressed tar that holds the names and the bytes, and nothing else: no times, no owners."""
    for name, view in members:
        header = tarfile.TarInfo(check_path(name))
        header.size = len(view)
        file.write(header.tobuf(tarfile.GNU_FORMAT, "ascii", "strict"))
        file.write(view)
        file.write(bytes(-len(view) % _BLOCK_BYTES))
    file.write(bytes(2 * _BLOCK_BYTES))


def _map_file(descriptor: int, size_bytes: int, where: str) -> mmap.mmap | None:
    if not size_bytes:
        return None
    try:
        return mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError, OverflowError) as error:
        raise BundleError(f"{where} cannot be mapped: {error}") from None


def _unmap(mappings: list[mmap.mmap]) -> None:
    for mapping in mappings:
        with contextlib.suppress(BufferError):  # a session still uses it: unmapped with its last view
            mapping.close()


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "is missing"
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return "is a symbolic link"
    if error.errno == errno.ENOTDIR:
        return "lies in something that is no folder, or a symbolic link"
    return f"cannot be opened: {error.strerror}"


def _read_members(view: memoryview) -> dict[str, tuple[int, int]]:
    """Read (start, size) of every file. Raises BundleError for anything but regular files and folders."""
    for magic, compression in _COMPRESSIONS.items():
        if bytes(view[: len(magic)]) == magic:
            raise BundleError(f"this is {compression}; only an uncompressed tar is read: unpack it first")
    members: dict[str, tuple[int, int]] = {}
    start = 0
    for _ in range(_MAX_MEMBERS):
        header = bytes(view[start : start + _BLOCK_BYTES])
        if len(header) < _BLOCK_BYTES:
            raise BundleError("truncated, or not a tar file")
        if not any(header):
            return members
        name, kind, size = _read_header(header)
        start += _BLOCK_BYTES
        if size > len(view) - start:
            raise BundleError(f"truncated: {name!r} has {size} bytes, {len(view) - start} are there")
        if kind != b"5":  # folders say nothing
            path = check_path(name.removeprefix("./"))
            if path in members:
                raise BundleError(f"{path} is there twice")
            members[path] = (start, size)
        start += -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
    raise BundleError(f"more than {_MAX_MEMBERS} members")


def _read_header(header: bytes) -> tuple[str, bytes, int]:
    """Read name, kind and size (POSIX.1-1988 ustar; sizes from 8 GiB on as GNU writes them)."""
    if header[257:262] != b"ustar":
        raise BundleError("not a tar file, or a damaged one")
    if _octal(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise BundleError("damaged: a header's checksum is wrong")
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:265] == b"ustar\00000" else b""
    text = b"/".join(filter(None, (prefix, name))).decode("ascii", "backslashreplace")
    kind = header[156:157]
    if kind not in (b"0", b"\0", b"5"):
        what = _MEMBER_KINDS.get(kind, f"of the unknown type {kind!r}")
        raise BundleError(f"{text!r} is {what}; only regular files are read; pack with `tar --format=ustar`")
    large = header[124] == 0x80
    size = int.from_bytes(header[125:136], "big") if large else _octal(header[124:136])
    if kind == b"5" and size:
        raise BundleError(f"{text!r} is a folder with {size} bytes")
    return text, kind, size


def _octal(field: bytes) -> int:
    match = re.fullmatch(rb" *([0-7]+)[ \0]*", field)
    if match is None:
        raise BundleError("damaged: a header has no number where one belongs")
    return int(match[1], 8)
