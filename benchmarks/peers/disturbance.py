"""How much processor time others took while we measured: a comparison on a busy machine is worth nothing."""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6, 7)  # of the "cpu" line of /proc/stat (proc(5)): user, nice, system, irq, softirq, steal


class Disturbance:
    """Between its making and `share()`: the part of all processors' time that neither this process nor `pids` used."""

    def __init__(self, pids):
        self._pids = pids
        self._busy_s, self._own_s, self._all_s = _busy_s(), self._own(), _all_s()

    def share(self):
        """0 to 1. Steal, which another virtual machine took, counts as used by others."""
        others_s = (_busy_s() - self._busy_s) - (self._own() - self._own_s)
        return max(0.0, others_s / (_all_s() - self._all_s))

    def _own(self):
        here = os.times()
        return here.user + here.system + sum(map(_process_s, self._pids))


def _cpu_ticks():
    return [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]


def _busy_s():
    ticks = _cpu_ticks()
    return sum(ticks[place] for place in _BUSY) / _TICKS_PER_S


def _all_s():
    return sum(_cpu_ticks()) / _TICKS_PER_S


def _process_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
