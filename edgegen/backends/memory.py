"""Keeping the memory of a process small while an inference library reads mapped weights."""

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterable, Iterator

Content = bytes | memoryview | mmap.mmap

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


def _mapping(content: Content) -> mmap.mmap | None:
    """The mapped file behind `content` if its pages may be dropped: it is read-only, so they are as the file has them."""
    mapped = content.obj if isinstance(content, memoryview) else content
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    with memoryview(mapped) as view:
        return mapped if view.readonly else None
