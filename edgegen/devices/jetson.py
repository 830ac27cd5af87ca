"""A Jetson: which module, which JetPack, which power mode, and the clocks as they are.

Read from the device tree, /etc/nv_tegra_release, nvpmodel's own files and devfreq, all without root's rights and without a
program of NVIDIA's. The paths differ between releases; a system has one of each.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from edgegen.devices.files import read_first, read_strings, read_text

SOCS = {"tegra194": 72, "tegra234": 87, "tegra264": 110}  # system on chip: compute capability of its GPU
_GPU_FOLDERS = (
    "sys/class/devfreq/17000000.gpu",  # Orin from JetPack 6 on
    "sys/class/devfreq/17000000.ga10b",  # Orin, JetPack 5
    "sys/class/devfreq/17000000.gv11b",  # Xavier
    "sys/class/devfreq/gpu-gpc-0",  # Thor
    "sys/devices/platform/17000000.gpu/devfreq_dev",
    "sys/devices/17000000.ga10b/devfreq/17000000.ga10b",
)
_MEMORY_CAPS = (
    "sys/kernel/nvpmodel_clk_cap/emc",  # JetPack 6 and 7
    "sys/kernel/nvpmodel_emc_cap/emc_iso_cap",  # JetPack 5
    "sys/class/devfreq/bwmgr/max_freq",  # Thor
)
_MEMORY_NOW = ("sys/class/devfreq/bwmgr/cur_freq", "sys/kernel/debug/bpmp/debug/clk/emc/rate")  # the second for root alone
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=([0-9]{1,4})\s+NAME=([A-Za-z0-9_.+-]{1,64})\s*>")
_DEFAULT = re.compile(r"<\s*PM_CONFIG\s+DEFAULT=([0-9]{1,4})\s*>")
_SETTING = re.compile(r"(GPU MAX_FREQ|EMC MAX_FREQ|TPC_POWER_GATING TPC_PG_MASK)\s+(-?[0-9]{1,20})\s*")
_RELEASE = re.compile(r"# R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,3}(?:\.[0-9]{1,3})?)")
_BOARD = re.compile(r"p([0-9]{4})-([0-9]{4})")
_MAX_MODES = 64
_HIGHEST_CLOCK_HZ = 20_000_000_000  # above it, and at 0 or below, a cap means "none"


@dataclass(frozen=True)
class ConfiguredMode:
    """A mode of /etc/nvpmodel.conf. A clock without a cap is None; `gated` pairs of multiprocessors (TPC) are off."""

    id: int
    name: str
    default: bool
    gpu_hz: float | None
    memory_hz: float | None
    gated: int | None


@dataclass(frozen=True)
class Jetson:
    """What a Jetson says of itself. What cannot be read is None, or empty.

    `boards` are the part numbers of the device tree, most exact first ("p3768-0000+p3767-0005" gives p3767-0005 before the
    carrier's). Clocks: `gpu_hz` and `memory_hz` are the caps in force, `gpu_now_hz` and `memory_now_hz` this moment's.
    """

    model: str | None
    soc: str | None
    boards: tuple[str, ...]
    l4t: str | None
    modes: tuple[ConfiguredMode, ...]
    mode_id: int | None
    gpu_hz: float | None
    gpu_now_hz: float | None
    memory_hz: float | None
    memory_now_hz: float | None

    @property
    def sm(self) -> int | None:
        """The compute capability of its GPU."""
        return SOCS.get(self.soc or "")

    @property
    def mode(self) -> ConfiguredMode | None:
        """The mode that it is in."""
        return next((mode for mode in self.modes if mode.id == self.mode_id), None)


def read_jetson(root: Path = Path("/")) -> Jetson | None:
    """Read what the files say; None on a machine that is no Jetson."""
    compatible = read_strings(root, "proc/device-tree/compatible")
    release = _RELEASE.search(read_text(root, "etc/nv_tegra_release") or "")
    soc = next((name.partition(",")[2] for name in compatible if name.startswith("nvidia,tegra")), None)
    if soc is None and release is None:
        return None
    modes = _modes(read_text(root, "etc/nvpmodel.conf") or "")
    status = re.search(r"pmode:\s*([0-9]{1,4})", read_text(root, "var/lib/nvpmodel/status") or "")
    return Jetson(
        model=(read_text(root, "proc/device-tree/model") or "")[:128] or None,
        soc=soc,
        boards=_boards(root, compatible),
        l4t=f"{release[1]}.{release[2]}" if release else None,
        modes=modes,
        mode_id=int(status[1]) if status else next((mode.id for mode in modes if mode.default), None),
        gpu_hz=_clock(read_first(root, tuple(f"{folder}/max_freq" for folder in _GPU_FOLDERS))),
        gpu_now_hz=_clock(read_first(root, tuple(f"{folder}/cur_freq" for folder in _GPU_FOLDERS))),
        memory_hz=_clock(read_first(root, _MEMORY_CAPS)),
        memory_now_hz=_clock(read_first(root, _MEMORY_NOW)),
    )


def _boards(root: Path, compatible: tuple[str, ...]) -> tuple[str, ...]:
    """Part numbers: of the device tree, of its list of boards, and of the file that nvpmodel was told to use."""
    ids = read_text(root, "proc/device-tree/nvidia,boardids") or ""
    found = [f"p{module}-{sku}" for name in compatible for module, sku in reversed(_BOARD.findall(name))]
    found += [f"p{module}-{sku}" for module, sku in re.findall(r"([0-9]{4})[:-]([0-9]{4})", ids)]
    return tuple(dict.fromkeys(found + _configured_board(root)))


def _configured_board(root: Path) -> list[str]:
    """The module that /etc/nvpmodel.conf is for: on a Jetson it is a link to nvpmodel_p3767_0003_super.conf or the like."""
    try:
        target = (root / "etc/nvpmodel.conf").readlink().name
    except OSError:
        return []
    return [f"p{module}-{sku}" for module, sku in re.findall(r"p([0-9]{4})_([0-9]{4})", target)]


def _modes(text: str) -> tuple[ConfiguredMode, ...]:
    """The power modes of nvpmodel's configuration, in its order."""
    default = _DEFAULT.search(text)
    heads = list(_MODE.finditer(text))[:_MAX_MODES]
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return tuple(
        _mode(head, text[head.end() : end], default is not None and head[1] == default[1])
        for head, end in zip(heads, ends, strict=True)
    )


def _mode(head: re.Match[str], body: str, default: bool) -> ConfiguredMode:
    settings = {found[1]: int(found[2]) for line in body.splitlines() if (found := _SETTING.fullmatch(line.strip()))}
    mask = settings.get("TPC_POWER_GATING TPC_PG_MASK")
    return ConfiguredMode(
        id=int(head[1]),
        name=head[2],
        default=default,
        gpu_hz=_clock(settings.get("GPU MAX_FREQ")),
        memory_hz=_clock(settings.get("EMC MAX_FREQ")),
        gated=None if mask is None else bin(mask & 0xFF).count("1"),
    )


def _clock(hz: int | None) -> float | None:
    """A clock in Hz; None where nothing is capped (-1, 0, INT_MAX) or nothing was read."""
    return float(hz) if hz is not None and 0 < hz < _HIGHEST_CLOCK_HZ else None
