"""How much memory there is, and how much a process has had at most."""

import os
import re
from pathlib import Path

_HIGH_WATER = re.compile(rb"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_AVAILABLE = re.compile(rb"^MemAvailable:\s+(\d+) kB", re.MULTILINE)
_GROUP = Path("/sys/fs/cgroup")


def peak_bytes(pid: int | None = None) -> int:
    """The most memory that a process (this one if None) had in RAM so far; 0 where the system does not tell.

    Not `ru_maxrss`: that of a child begins with what its parent had when it was forked.
    """
    return _kilobytes(Path(f"/proc/{pid or 'self'}/status"), _HIGH_WATER)


def available_bytes() -> int | None:
    """What a process may take before something must give way, within its container's limit; None where nobody tells."""
    free = _kilobytes(Path("/proc/meminfo"), _AVAILABLE)
    limit, used = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    if limit is not None and used is not None:
        free = min(free or limit, max(limit - used, 0))
    return free or None


def total_bytes() -> int:
    """Of this machine, in RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _kilobytes(path: Path, line: re.Pattern[bytes]) -> int:
    try:
        found = line.search(path.read_bytes())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
