"""NVIDIA cards by NVML, through nvidia-ml-py (its module is `pynvml`), which is imported only when asked.

A machine without a card is a normal machine: then there is a reason instead of an error. Nothing is changed on the card.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

PACKAGE = "nvidia-ml-py"


@dataclass(frozen=True)
class Gpu:
    """A card as NVML tells it. What it does not tell is None.

    `sm` is the compute capability without its point. `mig` is whether the card is partitioned: its peaks are then not one
    user's. Clocks are of the multiprocessors (`gpu`) and the memory.
    """

    name: str
    sm: int | None
    cores: int | None
    memory_bytes: int | None
    used_bytes: int | None
    bus_bits: int | None
    gpu_hz: float | None
    gpu_now_hz: float | None
    memory_hz: float | None
    memory_now_hz: float | None
    power_limit_watts: float | None
    mig: bool | None


@dataclass(frozen=True)
class Gpus:
    """The cards of a machine and its driver; `reason` says why there is none, and is empty where there is one."""

    cards: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    reason: str = ""


def read_gpus() -> Gpus:
    """Ask NVML for every card."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return Gpus(reason=f"NVML was not asked: {PACKAGE} is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Gpus(reason=f"NVML: {error}")
    try:
        count = _ask(nvml, nvml.nvmlDeviceGetCount) or 0
        handles = [_ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        cards = tuple(_read(nvml, handle) for handle in handles if handle is not None)
        cuda = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
        return Gpus(
            cards=cards,
            driver=_text(_ask(nvml, nvml.nvmlSystemGetDriverVersion)),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            reason="" if cards else "NVML finds no card",
        )
    finally:
        _ask(nvml, nvml.nvmlShutdown)


def _read(nvml: ModuleType, handle: Any) -> Gpu:
    """One card. A question that it does not answer (a laptop's, a Jetson's, a partition's) leaves its field None."""

    def ask(function: str, *arguments: Any) -> Any:
        return _ask(nvml, getattr(nvml, function, None), handle, *arguments)

    capability, memory, mig = (
        ask("nvmlDeviceGetCudaComputeCapability"),
        ask("nvmlDeviceGetMemoryInfo"),
        ask("nvmlDeviceGetMigMode"),
    )
    limit = ask("nvmlDeviceGetEnforcedPowerLimit")
    return Gpu(
        name=_text(ask("nvmlDeviceGetName")) or "an NVIDIA GPU",
        sm=10 * capability[0] + capability[1] if capability else None,
        cores=ask("nvmlDeviceGetNumGpuCores"),
        memory_bytes=memory.total if memory else None,
        used_bytes=memory.used if memory else None,
        bus_bits=ask("nvmlDeviceGetMemoryBusWidth"),
        gpu_hz=_hz(ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)),
        gpu_now_hz=_hz(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)),
        memory_hz=_hz(ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM)),
        memory_now_hz=_hz(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM)),
        power_limit_watts=limit / 1e3 if limit else None,
        mig=bool(mig[0]) if mig else None,
    )


def _ask(nvml: ModuleType, function: Callable[..., Any] | None, *arguments: Any) -> Any:
    """What NVML answers; None where this version, driver or card has no answer."""
    try:
        return None if function is None else function(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _hz(megahertz: int | None) -> float | None:
    return megahertz * 1e6 if megahertz else None
