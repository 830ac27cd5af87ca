"""How much memory a machine has, and how much a process has had at most. What is free: `edgegen.backends.memory`."""

import os
import re
from pathlib import Path

_HIGH_WATER = re.compile(rb"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def peak_bytes(pid: int | None = None) -> int:
    """The most memory that a process (this one if None) had in RAM so far; 0 where the system does not tell.

    Not `ru_maxrss`: that of a child begins with what its parent had when it was forked.
    """
    try:
        found = _HIGH_WATER.search(Path(f"/proc/{pid or 'self'}/status").read_bytes())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def total_bytes() -> int:
    """Of this machine, in RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
