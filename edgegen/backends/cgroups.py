"""The control groups of Linux: where the limits of this process and its parents are written.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.
"""

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def folders(controller: str, proc: Path = PROC, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """The version (1 or 2) and the folder of each group that limits this process: a parent's limit binds its children."""
    for line in (read(proc) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2 has one hierarchy
            version, mount = 2, root
        elif controller in controllers.split(","):
            version, mount = 1, root / controller
        else:
            continue
        inner = Path(path.strip("/"))
        yield from ((version, mount / folder) for folder in [inner, *inner.parents])


def read(path: Path) -> str | None:
    """The text of a small file; None on another system, or in a container that hides it."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
