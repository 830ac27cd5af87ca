"""Keeping the memory of a process small while an inference library reads mapped weights; and how much there is."""

import contextlib
import ctypes
import mmap
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgegen.backends import cgroups
from edgegen.backends.cgroups import read
from edgegen.graphs.walk import Content

_MEMINFO = Path("/proc/meminfo")
_PERIOD_S = 0.005  # a library packs 1 to 2 GB/s: 5 to 10 MB between two looks


@contextlib.contextmanager
def pages_let_go(contents: Iterable[Content]) -> Iterator[None]:
    """Within the block, and once more at its end, take the pages of mapped files out of this process's memory.

    For a library that reads the files once and keeps what it makes of them. A page that is read again comes back from the
    system's file cache: that takes a microsecond, and nothing goes wrong.
    """
    mapped = list(filter(None, map(_mapping, contents)))
    is_over = threading.Event()

    def let_go() -> None:
        while not is_over.wait(_PERIOD_S):
            for mapping in mapped:
                mapping.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=let_go, name="edgegen pages", daemon=True)
    if mapped:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if mapped:
            thread.join()
        for mapping in mapped:
            mapping.madvise(mmap.MADV_DONTNEED)


def give_back() -> None:
    """Hand memory that was freed back to the system. Does something with glibc only, which else keeps much of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def available_bytes(meminfo: Path = _MEMINFO, proc: Path = cgroups.PROC, root: Path = cgroups.ROOT) -> int | None:
    """What this process may still take: of the machine, and within the limits of its control groups; None where nobody tells.

    Files that the system keeps in memory, and would let go, count as free.
    """
    free = _number(meminfo, r"^MemAvailable:\s+(\d+) kB$")
    found = [] if free is None else [free << 10]
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), 2: ("memory.max", "memory.current", "")}
    for version, folder in cgroups.folders("memory", proc, root):
        limit_name, used_name, prefix = names[version]
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:  # "max" is no limit
            files = _number(folder / "memory.stat", rf"^{prefix}inactive_file (\d+)$") or 0
            found.append(max(limit - used + files, 0))
    return min(found, default=None)


def _number(path: Path, pattern: str = r"^(\d+)$") -> int | None:
    found = re.search(pattern, read(path) or "", re.MULTILINE)
    return int(found[1]) if found else None


def _mapping(content: Content) -> mmap.mmap | None:
    """The mapped file behind `content` if its pages may be dropped: it is read-only, so they are as the file has them."""
    mapped = content.obj if isinstance(content, memoryview) else content
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    with memoryview(mapped) as view:
        return mapped if view.readonly else None
