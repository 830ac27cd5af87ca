"""Locks on files: held by whoever has them open, so the death of a process frees them; swept when they are left over."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_LOOKS, _LOOK_S = 20, 0.01


@contextlib.contextmanager
def held(path: Path, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock at `path` within the block; afterwards the file is gone.

    Works between processes, and between threads of one.

    Args:
        path: of a file that is made for the purpose.
        waiting: called once, with who holds the lock ("process 123"), where it is not free.

    Raises:
        OSError: the file cannot be made there: no such folder, read-only, no space.
    """
    descriptor = _acquire(path, waiting)
    try:
        with contextlib.suppress(OSError):  # it only says who to wait for
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def written(path: Path) -> Iterator[int]:
    """A new file at `path`, locked while it is written; unless the block renames it, it is gone afterwards."""
    descriptor = os.open(path, _FLAGS | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not is_at(descriptor, path):  # swept before it was locked
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def sweep(path: Path) -> bool:
    """Remove a file that its owner keeps locked while it lives; False where someone does.

    Whoever opens a file and then locks it must look whether it is still there: see `is_at`.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(descriptor, path):
            path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at `path`: it may have been removed, or replaced."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _acquire(path: Path, waiting: Callable[[str], None] | None) -> int:
    told = waiting is None
    while True:
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told and waiting is not None:
                    told = True
                    waiting(_holder(descriptor))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Who held it removed the file before letting go: then this lock is on a file that nobody else will find.
            if is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    for _ in range(_LOOKS):  # it may have the lock and not have written yet who it is
        said = os.pread(descriptor, 32, 0)
        if said.isdigit():
            return f"process {said.decode()}"
        time.sleep(_LOOK_S)
    return "another process"
