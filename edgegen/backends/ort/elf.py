"""Which libraries a shared library needs: the part of an ELF file that says so (System V ABI, chapter 5, "Dynamic Linking")."""

import mmap
import struct
from pathlib import Path

_LOAD, _DYNAMIC = 1, 2  # kinds of segments
_END, _NEEDED, _STRINGS = 0, 1, 5  # tags of the dynamic section


def needed(path: Path) -> list[str]:
    """The libraries that the loader looks for with this one, in order; none where it is no 64-bit little-endian ELF file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != b"\x7fELF\x02\x01":
            return []
        try:
            return _needed(data)
        except (struct.error, OverflowError, IndexError, StopIteration):  # cut off, or not what it says
            return []


def _needed(data: mmap.mmap) -> list[str]:
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, start + place * size) for place in range(count)]
    offset, length = next((segment[2], segment[5]) for segment in segments if segment[0] == _DYNAMIC)
    entries = []
    for place in range(offset, offset + length, 16):
        tag, value = struct.unpack_from("<QQ", data, place)
        if tag == _END:
            break
        entries.append((tag, value))
    address = next(value for tag, value in entries if tag == _STRINGS)
    strings = next(
        address - virtual + where
        for kind, _, where, virtual, _, held in segments
        if kind == _LOAD and virtual <= address < virtual + held
    )
    names = [strings + value for tag, value in entries if tag == _NEEDED]
    return [data[name : data.find(b"\0", name)].decode("ascii", "replace") for name in names]
