"""Small files of the system below a root folder, read with bounds: whatever lies there, reading never raises and never waits.

What cannot be read is None. Detection runs on recorded trees and on machines that it knows nothing of, so a file may be
missing, empty, binary, without end, a pipe, or a link out of the tree.
"""

import os
import re
import stat
from pathlib import Path

MAX_BYTES = 1 << 20  # /proc/cpuinfo of a machine with several hundred processors
_NUMBER = re.compile(r"-?[0-9]{1,19}")


def read_bytes(root: Path, path: str) -> bytes | None:
    """The first MAX_BYTES of a regular file below `root`."""
    try:
        place = (root / path.lstrip("/")).resolve()
        if not place.is_relative_to(root.resolve()):
            return None
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            return file.read(MAX_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links; ValueError: a name with a zero byte
        return None


def read_text(root: Path, path: str) -> str | None:
    """The file's text without the white space and zero bytes around it; None also where nothing is left."""
    data = read_bytes(root, path)
    return None if data is None else data.decode("utf-8", "replace").strip("\0 \t\r\n") or None


def read_strings(root: Path, path: str) -> tuple[str, ...]:
    """The strings of a device-tree property, which end in a zero byte each."""
    data = read_bytes(root, path) or b""
    return tuple(part.decode("utf-8", "replace") for part in data.split(b"\0") if part)


def read_number(root: Path, path: str) -> int | None:
    """The whole number that the file holds."""
    text = read_text(root, path)
    return int(text) if text and _NUMBER.fullmatch(text) else None


def read_first(root: Path, paths: tuple[str, ...]) -> int | None:
    """The number of the first of these files that holds one."""
    numbers = (read_number(root, path) for path in paths)
    return next((number for number in numbers if number is not None), None)


def read_blocks(root: Path, path: str) -> list[dict[str, str]]:
    """The lines `name : value` of a file, as /proc has them; an empty line begins the next block."""
    return [dict(map(_pair, block.splitlines())) for block in (read_text(root, path) or "").split("\n\n")]


def read_size(root: Path, path: str, field: str) -> int | None:
    """A field in kB of a file of /proc (`MemTotal: 8123456 kB`), in bytes."""
    number, _, unit = read_blocks(root, path)[0].get(field, "").partition(" ")
    return int(number) << 10 if _NUMBER.fullmatch(number) and unit == "kB" else None


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
