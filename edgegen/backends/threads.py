"""How many threads a CPU backend should use: one for each physical core that this process may really use."""

import os
from pathlib import Path

_PROC_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
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
    return len({_read(root / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in cpus})


def cgroup_quota(proc: Path = _PROC_CGROUP, root: Path = _CGROUPS) -> float | None:
    """CPUs that the cgroup of this process and its parents grant, in cores; None without a limit or without cgroups.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (`cpu.cfs_quota_us`).
    """
    limits: list[float] = []
    for line in (_read(proc) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2 has one hierarchy
            mount, parse = root, _quota_v2
        elif "cpu" in controllers.split(","):
            mount, parse = root / "cpu", _quota_v1
        else:
            continue
        inner = Path(path.strip("/"))
        found = (parse(mount / folder) for folder in [inner, *inner.parents])  # a parent's limit binds its children
        limits += [quota for quota in found if quota is not None]
    return min(limits, default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
    return None if quota == "max" else float(quota) / float(period)


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return None if quota is None or period is None or int(quota) <= 0 else float(quota) / float(period)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # another system, or a container that hides it
        return None
