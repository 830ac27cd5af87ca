"""How many threads a CPU backend should use: one for each physical core that this process may really use."""

import os
from pathlib import Path

from edgegen.backends import cgroups
from edgegen.backends.cgroups import read

_CPUS = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """The physical cores in this process's affinity mask, but no more than its cgroup's CPU quota allows; at least 1.

    Two hardware threads of one core share its multipliers, and threads beyond the quota are stopped in the middle of a
    kernel while the others spin: both make a decode step slower.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = physical_cores(cpus)
    quota = cgroup_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def physical_cores(cpus: set[int], root: Path = _CPUS) -> int:
    """Distinct cores behind these logical CPUs (sysfs `thread_siblings_list`); one for each CPU where that is not known."""
    return len({read(root / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in cpus})


def cgroup_quota(proc: Path = cgroups.PROC, root: Path = cgroups.ROOT) -> float | None:
    """CPUs that the cgroup of this process and its parents grant, in cores; None without a limit or without cgroups.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (`cpu.cfs_quota_us`).
    """
    parse = {1: _quota_v1, 2: _quota_v2}
    found = (parse[version](folder) for version, folder in cgroups.folders("cpu", proc, root))
    return min((quota for quota in found if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (read(folder / "cpu.max") or "max").partition(" ")
    return None if quota == "max" else float(quota) / float(period)


def _quota_v1(folder: Path) -> float | None:
    quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
    return None if quota is None or period is None or int(quota) <= 0 else float(quota) / float(period)
