"""The table of devices and of JetPack releases: `devices.json`, read strictly.

A row is data, with its `source` and how far to trust it; to add a device is to add a row. Peaks are those of dense arithmetic
on the GPU alone (NVIDIA's headline TOPS are sparse and count the DLA), or of the CPU where there is no GPU.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from edgegen.errors import UnknownNameError

_PATH = Path(__file__).parent / "devices.json"

Confidence = Literal["high", "medium", "low"]


class PowerMode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a device may do in one power mode. A Jetson has several (nvpmodel), any other device one, named "default".

    `id` is nvpmodel's number, which two setups of one module may both use; `watts` is None for a mode without a budget;
    `setup` is "super" or "standard" for a mode that only a module flashed so has. `sms` are the streaming multiprocessors
    that are on, at most `gpu_hz` fast; `memory_hz` is the memory's clock (EMC), at two transfers a clock. The peaks follow
    from these (`edgegen.devices.peaks`).
    """

    name: str
    watts: float | None
    default: bool
    bandwidth_bytes_s: float
    fp16_flops: float
    int8_ops: float
    id: int | None = None
    setup: Literal["", "standard", "super"] = ""
    sms: int | None = None
    gpu_hz: float | None = None
    memory_hz: float | None = None


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One device. `bandwidth_bytes_s`, `fp16_flops` (dense) and `int8_ops` (dense) are those of the default mode.

    `sm` is the compute capability without its point: 87 for Orin; None without an NVIDIA GPU. `memory_bytes` is what is built
    in, or, of a card, what its driver reports; `reserved_bytes` of it the system keeps for itself: carve-outs and Linux on
    unified memory, a CUDA context and a screen on a card. `boards` are the part numbers in the device tree, or their
    beginnings, and `gpu_names` what NVML calls a card. `dla` counts the deep-learning accelerators; `software` names JetPack
    releases.
    """

    name: str
    title: str
    kind: Literal["jetson", "gpu", "cpu"]
    sm: int | None
    memory_bytes: int
    unified_memory: bool
    bandwidth_bytes_s: float
    fp16_flops: float
    int8_ops: float
    fp8: bool
    fp4: bool
    modes: tuple[PowerMode, ...]
    reserved_bytes: int
    source: str
    confidence: Confidence
    software: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    gpu_names: tuple[str, ...] = ()
    bus_bits: int | None = None
    dla: int = 0
    note: str = ""

    @property
    def default_mode(self) -> PowerMode:
        """The mode that the device starts in."""
        return next(mode for mode in self.modes if mode.default)

    def mode(self, name: str) -> PowerMode:
        """The mode of that name, as here or as nvpmodel has it ("30W" or "MODE_30W").

        Raises:
            UnknownNameError: the device has none of that name.
        """
        named = {mode.name: mode for mode in self.modes}
        plain = name.upper().removeprefix("MODE_")
        if plain not in named and name not in named:
            raise UnknownNameError(f"power mode of {self.name}", name, named)
        return named.get(plain) or named[name]


class JetPack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One JetPack release: what it brings, and the beginnings of the names of the devices that it runs on.

    `l4t` are the Jetson Linux releases that it was shipped with, the first one first.
    """

    version: str
    l4t: tuple[str, ...]
    os: str
    python: str
    cuda: str
    tensorrt: str
    cudnn: str
    modules: tuple[str, ...]
    source: str
    confidence: Confidence
    note: str = ""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    devices: tuple[Device, ...]
    jetpacks: tuple[JetPack, ...]


_TABLE = msgspec.json.decode(_PATH.read_bytes(), type=_Table)

DEVICES: Mapping[str, Device] = {device.name: device for device in _TABLE.devices}
JETPACKS: Mapping[str, JetPack] = {jetpack.version: jetpack for jetpack in _TABLE.jetpacks}

_BY_ALIAS = {alias: device for device in DEVICES.values() for alias in (device.name, *device.aliases)}


def lookup(name: str) -> Device:
    """The device of that name or alias, however it is spelt: "orin-nano", "RTX 4090", "rtx4090".

    Raises:
        UnknownNameError: the table has none; the message suggests the nearest.
    """
    plain = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    if plain not in _BY_ALIAS:
        raise UnknownNameError("device", name, _BY_ALIAS if difflib.get_close_matches(name, _BY_ALIAS) else DEVICES)
    return _BY_ALIAS[plain]


def jetpack_of(l4t: str) -> JetPack | None:
    """The JetPack that a Jetson Linux release ("36.4.7") belongs to; a later patch counts as its nearest; None if unknown."""
    series = l4t.rpartition(".")[0]
    same = [jetpack for jetpack in JETPACKS.values() if any(known.rpartition(".")[0] == series for known in jetpack.l4t)]
    return next((jetpack for jetpack in same if l4t in jetpack.l4t), same[-1] if same else None)


def version(text: str) -> tuple[int, ...]:
    """The numbers of a version, to be compared: "10.16.2" -> (10, 16, 2)."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())
