"""A device as it is now: a row of the table with this machine's memory, power mode and clocks; or one made of its facts."""

import re

import msgspec

from edgegen.devices import peaks
from edgegen.devices.cpu import Cpu
from edgegen.devices.jetson import ConfiguredMode, Jetson
from edgegen.devices.nvidia import Gpu
from edgegen.devices.table import DEVICES, Device, PowerMode

_GIB = 1 << 30
_TPCS = 8  # of a whole GA10B, the GPU of every Orin; each is two multiprocessors
_CORES_PER_SM = {72: 64, 75: 64, 80: 64}  # 128 from then on
_FP32_PER_CLOCK = (("avx512f", 64), ("avx2", 32), ("asimd", 16), ("avx", 16))  # of one core, two units of multiply-adds
_INT8_PER_CLOCK = (
    *(("amx_int8", 2048), ("avx512_vnni", 256), ("avx_vnni", 128), ("avx2", 64)),
    *(("i8mm", 128), ("asimddp", 64)),
)
_CONTEXT_BYTES = 3 * _GIB // 4  # a CUDA context and a screen
_LINUX_BYTES = 2 * _GIB


def jetson_mode(jetson: Jetson, row: Device) -> PowerMode:
    """The power mode of a Jetson as its live caps have it; what they do not tell comes from nvpmodel's file, then the table."""
    configured = jetson.mode
    listed = _listed(configured, row)
    gpu_hz = jetson.gpu_hz or (configured and configured.gpu_hz) or listed.gpu_hz or _most(row, "gpu_hz")
    memory_hz = jetson.memory_hz or (configured and configured.memory_hz) or listed.memory_hz or _most(row, "memory_hz")
    sms = _sms(configured, listed, row)
    return msgspec.structs.replace(
        listed,
        name=_plain(configured.name) if configured else listed.name,
        watts=_watts(configured) if configured else listed.watts,
        id=configured.id if configured else listed.id,
        default=True,
        sms=sms,
        gpu_hz=gpu_hz,
        memory_hz=memory_hz,
        bandwidth_bytes_s=peaks.bandwidth(row.bus_bits, memory_hz) if row.bus_bits and memory_hz else listed.bandwidth_bytes_s,
        fp16_flops=(row.sm and sms and gpu_hz and peaks.fp16_flops(row.sm, sms, gpu_hz)) or listed.fp16_flops,
        int8_ops=(row.sm and sms and gpu_hz and peaks.int8_ops(row.sm, sms, gpu_hz)) or listed.int8_ops,
    )


def jetson_device(jetson: Jetson, row: Device, memory_bytes: int | None) -> Device:
    """The row of a Jetson in its live mode, with the memory that is built in."""
    return _with_mode(row, jetson_mode(jetson, row), _installed(row, memory_bytes))


def board_device(row: Device, memory_bytes: int | None) -> Device:
    """The row of a board without a GPU, with the memory that is built in."""
    return _with_mode(row, row.default_mode, _installed(row, memory_bytes))


def gpu_device(gpu: Gpu) -> Device | None:
    """The row of a card, or one made of what NVML tells; None for a card whose peaks cannot be known."""
    row = next((row for row in DEVICES.values() if gpu.name in row.gpu_names), None)
    if row is not None:
        return msgspec.structs.replace(row, memory_bytes=gpu.memory_bytes or row.memory_bytes)
    if gpu.sm is None or not (gpu.cores and gpu.gpu_hz and gpu.memory_bytes and gpu.bus_bits and gpu.memory_hz):
        return None
    sms = gpu.cores // _CORES_PER_SM.get(gpu.sm, 128)
    fp16, int8 = peaks.fp16_flops(gpu.sm, sms, gpu.gpu_hz), peaks.int8_ops(gpu.sm, sms, gpu.gpu_hz)
    if fp16 is None or int8 is None:
        return None
    mode = PowerMode(
        name="default",
        watts=gpu.power_limit_watts,
        default=True,
        bandwidth_bytes_s=peaks.bandwidth(gpu.bus_bits, gpu.memory_hz),
        fp16_flops=fp16,
        int8_ops=int8,
        sms=sms,
        gpu_hz=gpu.gpu_hz,
        memory_hz=gpu.memory_hz,
    )
    return _made("gpu", gpu.name, gpu.sm, gpu.memory_bytes, mode, "NVML: cores, clocks and bus of this card; peaks by formula")


def cpu_device(cpu: Cpu, memory_bytes: int | None, bandwidth_bytes_s: float | None = None) -> Device | None:
    """A device made of a processor's facts; without a measured bandwidth, that of the table's example stands in for it.

    None where its cores or its clock are not told. float16 is computed in float32, but on an ARM that has it (asimdhp).
    """
    if not (cpu.cores and cpu.max_hz and memory_bytes):
        return None
    rate = cpu.cores * cpu.max_hz
    fp32 = _first(cpu, _FP32_PER_CLOCK, 8) * rate
    fp16 = 2 * fp32 if "asimdhp" in cpu.instructions else fp32
    measured = "bandwidth measured" if bandwidth_bytes_s else "bandwidth NOT measured: that of the table's example"
    mode = PowerMode(
        name="default",
        watts=None,
        default=True,
        bandwidth_bytes_s=bandwidth_bytes_s or DEVICES["x86-cpu"].bandwidth_bytes_s,
        fp16_flops=fp16,
        int8_ops=max(_first(cpu, _INT8_PER_CLOCK, 16) * rate, fp16),
    )
    source = f"/proc/cpuinfo and sysfs; peaks by formula; {measured}"
    return _made("cpu", cpu.name or "a processor without a name", None, memory_bytes, mode, source)


def _made(kind: str, title: str, sm: int | None, memory_bytes: int, mode: PowerMode, source: str) -> Device:
    return Device(
        name="this-machine",
        title=title,
        kind="gpu" if kind == "gpu" else "cpu",
        sm=sm,
        memory_bytes=memory_bytes,
        unified_memory=kind == "cpu",
        bandwidth_bytes_s=mode.bandwidth_bytes_s,
        fp16_flops=mode.fp16_flops,
        int8_ops=mode.int8_ops,
        fp8=sm is not None and sm >= peaks.FIRST_FP8,
        fp4=sm is not None and sm >= peaks.FIRST_FP4,
        modes=(mode,),
        reserved_bytes=_CONTEXT_BYTES if kind == "gpu" else min(_LINUX_BYTES, memory_bytes // 4),
        source=source,
        confidence="low",
    )


def _with_mode(row: Device, mode: PowerMode, memory_bytes: int) -> Device:
    return msgspec.structs.replace(
        row,
        memory_bytes=memory_bytes,
        modes=(mode,),
        bandwidth_bytes_s=mode.bandwidth_bytes_s,
        fp16_flops=mode.fp16_flops,
        int8_ops=mode.int8_ops,
    )


def _installed(row: Device, total_bytes: int | None) -> int:
    """The memory that is built in: the kernel tells less, so the next power of two in GiB; the row's where nothing was read."""
    if total_bytes is None:
        return row.memory_bytes
    return next((size * _GIB for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size * _GIB >= total_bytes), row.memory_bytes)


def _listed(configured: ConfiguredMode | None, row: Device) -> PowerMode:
    """The table's mode of that name; else the one with the most arithmetic, whose clocks stand for "no cap"."""
    if configured is None:
        return row.default_mode
    named = [mode for mode in row.modes if mode.name == _plain(configured.name)]
    return named[0] if named else max(row.modes, key=lambda mode: mode.fp16_flops)


def _sms(configured: ConfiguredMode | None, listed: PowerMode, row: Device) -> int | None:
    most = _most(row, "sms")
    if row.sm == 87 and configured is not None and configured.gated is not None and most is not None:
        return min(2 * (_TPCS - configured.gated), int(most))
    return listed.sms


def _most(row: Device, field: str) -> float | None:
    return max((value for mode in row.modes if (value := getattr(mode, field)) is not None), default=None)


def _plain(name: str) -> str:
    return name.removeprefix("MODE_")


def _watts(configured: ConfiguredMode) -> float | None:
    found = re.match(r"(?:MODE_)?([0-9]{1,3})W", configured.name)
    return float(found[1]) if found else None


def _first(cpu: Cpu, rates: tuple[tuple[str, int], ...], other: int) -> int:
    return next((rate for name, rate in rates if name in cpu.instructions), other)
