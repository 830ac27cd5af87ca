"""The processor: cores, instruction set, caches and clocks, as Linux tells them below a root folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from edgegen.devices.files import read_blocks, read_number, read_text

_CPU0 = "sys/devices/system/cpu/cpu0"
_INSTRUCTIONS = (  # those that decide which kernels run, by their names in /proc/cpuinfo
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_ARM_PARTS = {  # "CPU part" of /proc/cpuinfo, which names no model on ARM; Arm's main ID register
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd42": "Cortex-A78AE",
    "0xd83": "Neoverse-V3AE",
    "0xd87": "Cortex-A725",
    "0xd85": "Cortex-X925",
}


@dataclass(frozen=True)
class Cpu:
    """A processor. What is not told is None, or empty.

    `cores` are physical, `threads` logical; `max_hz` is the greatest clock that is known of.
    """

    name: str | None
    threads: int | None
    cores: int | None
    instructions: tuple[str, ...]
    max_hz: float | None
    last_level_cache_bytes: int | None


def read_cpu(root: Path = Path("/")) -> Cpu:
    """Read what /proc/cpuinfo and sysfs say."""
    blocks = read_blocks(root, "proc/cpuinfo")
    processors = [block for block in blocks if "processor" in block]
    fields, clocks = blocks[0], clock_hz(blocks[0], root)
    return Cpu(
        name=fields.get("model name") or _ARM_PARTS.get(fields.get("CPU part", "")),
        threads=len(processors) or None,
        cores=len({_core(processor) for processor in processors}) or None,
        instructions=instructions(fields),
        max_hz=clocks["max"] or clocks["now"],
        last_level_cache_bytes=last_level_cache_bytes(root / _CPU0 / "cache"),
    )


def instructions(fields: dict[str, str]) -> tuple[str, ...]:
    """The instruction sets that matter here, of the fields of /proc/cpuinfo."""
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return tuple(name for name in _INSTRUCTIONS if name in flags)


def clock_hz(fields: dict[str, str], root: Path = Path("/")) -> dict[str, float | None]:
    """The clock of CPU 0 as it is now, and at most."""
    now, most = (read_number(root, f"{_CPU0}/cpufreq/{name}") for name in ("scaling_cur_freq", "cpuinfo_max_freq"))
    seen = fields.get("cpu MHz", "")
    return {
        "now": now * 1e3 if now else float(seen) * 1e6 if re.fullmatch(r"[0-9]{1,6}(\.[0-9]*)?", seen) else None,
        "max": most * 1e3 if most else None,
    }


def last_level_cache_bytes(folder: Path = Path("/") / _CPU0 / "cache") -> int | None:
    """The size of the largest cache that CPU 0 sees (sysfs), in bytes; None where it is not told."""
    sizes = [read_text(folder, f"index{index}/size") or "" for index in range(8)]
    return max((int(size[:-1]) << 10 for size in sizes if re.fullmatch(r"[0-9]{1,9}K", size)), default=None)


def _core(processor: dict[str, str]) -> str:
    """The name of a processor's core; one that says none is a core of its own."""
    package, core = processor.get("physical id", "0"), processor.get("core id")
    return f"core {package}.{core}" if core is not None else f"processor {processor['processor']}"
