"""Devices for people: this machine, the table, and one row in full."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from edgegen.devices.detect import Machine
from edgegen.devices.nvidia import Gpu
from edgegen.devices.precisions import dotted, needs_legacy, precisions, runs_edgegen, why_not
from edgegen.devices.table import DEVICES, JETPACKS, Device, JetPack, PowerMode

_GIB = 1 << 30
_WIDE = 110  # columns of a terminal from which on the table shows more
_KINDS = {"jetson": "Jetson", "gpu": "NVIDIA GPUs", "cpu": "CPUs"}
_TRUST = {"high": "", "medium": "~", "low": "?"}


def table_lines(width: int = 80) -> list[str]:
    """All rows, grouped by kind; with power modes and JetPack releases where the terminal is wide enough."""
    heads = ["device", "GiB", "GB/s", "TFLOPS", "mode", *(["GPU", "JetPack", "other modes"] if width >= _WIDE else []), ""]
    devices = sorted(DEVICES.values(), key=lambda device: list(_KINDS).index(device.kind))
    head, *rows = _table([heads, *(_row(device, width) for device in devices)])
    lines = [head]
    for kind, group in itertools.groupby(zip(devices, rows, strict=True), key=lambda pair: pair[0].kind):
        lines += ["", _KINDS[kind], *(row for _, row in group)]
    return [*lines, "", *_legend(width)]


def device_lines(device: Device, width: int = 80) -> list[str]:
    """One row in full."""
    gpu = f"compute capability {dotted(device.sm)}{_dla(device)}" if device.sm is not None else "none that edgegen uses"
    fields = [("memory", _memory(device)), ("GPU", gpu), ("also", ", ".join(device.aliases))]
    ends = [("note", device.note), ("source", device.source), ("confidence", device.confidence)]
    return [
        f"{device.name}: {device.title}",
        *(line for label, text in fields for line in _field(label, text, width)),
        "",
        *_mode_lines(device.modes),
        "",
        *_precision_lines(device, width),
        *(["", *(f"  {_release(JETPACKS[name])}" for name in device.software)] if device.software else []),
        "",
        *(line for label, text in ends for line in _field(label, text, width)),
    ]


def machine_lines(machine: Machine, bandwidths: Mapping[int, float] | None = None, width: int = 80) -> list[str]:
    """This machine, and what was measured on it: bytes a second by how many threads."""
    known = f" ({machine.row.name})" if machine.row else ""
    gpus = machine.gpus
    reads = [f"{rate / 1e9:.1f} GB/s with {_count(threads, 'thread')}" for threads, rate in (bandwidths or {}).items()]
    fields = [
        *_jetson_fields(machine),
        *(("card", _card(card)) for card in gpus.cards),
        ("driver", f"{gpus.driver}, CUDA {gpus.cuda}" if gpus.driver else ""),
        ("processor", _processor(machine)),
        ("memory", f"{_size(machine.memory_bytes)}, {_size(machine.available_bytes)} of it free"),
        ("reads", ", ".join(reads)),
        ("peaks now", _peaks_now(machine.device(max(bandwidths.values()) if bandwidths else None))),
        ("no card", gpus.reason if machine.kind == "cpu" else ""),
    ]
    return [f"This machine: {machine.title}{known}", *(line for label, text in fields for line in _field(label, text, width))]


def device_dict(device: Device) -> dict[str, Any]:
    """One row in full, for machines."""
    verdicts = {name: verdict._asdict() for name, verdict in precisions(device).items()}
    return {"device": device, "precisions": verdicts, "jetpacks": [JETPACKS[name] for name in device.software]}


def _row(device: Device, width: int) -> list[str]:
    mode = device.default_mode
    others = ", ".join(other.name for other in device.modes if not other.default)
    more = [dotted(device.sm) if device.sm else "", ", ".join(device.software), others] if width >= _WIDE else []
    numbers = [f"{device.memory_bytes / _GIB:.0f}", f"{mode.bandwidth_bytes_s / 1e9:.0f}", _tera(mode.fp16_flops)]
    return [f"  {device.name}", *numbers, "" if mode.name == "default" else mode.name, *more, _TRUST[device.confidence]]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the first of them the heads, as lines; columns of numbers stand right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell.replace(".", "").isdigit() for cell in column[1:] if cell) for column in columns]
    return ["  ".join(map(_padded, row, widths, right)).rstrip() for row in rows]


def _padded(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def _legend(width: int) -> list[str]:
    lines = [
        "GB/s and TFLOPS (float16, dense, the GPU alone) are peaks of the default mode.",
        "~ medium, ? low confidence. edgegen devices NAME: modes, precisions, sources.",
    ]
    return [" ".join(lines)] if width >= 2 * max(map(len, lines)) else lines


def _memory(device: Device) -> str:
    kind = "shared by CPU and GPU" if device.unified_memory and device.sm is not None else "of its own" if device.sm else ""
    rest = f"about {_size(device.reserved_bytes)} of it kept by the system"
    return ", ".join(part for part in (_size(device.memory_bytes), kind, rest) if part)


def _dla(device: Device) -> str:
    return f"; {_count(device.dla, 'DLA')}, which edgegen does not use" if device.dla else ""


def _mode_lines(modes: Sequence[PowerMode]) -> list[str]:
    """The power modes as a small table, the default one marked; columns that no mode fills are left out."""
    heads = ["  power mode", "GB/s", "TFLOPS fp16", "TOPS int8", "SMs", "GPU MHz", "memory MHz", "flashed"]
    rows = [_mode_cells(mode) for mode in modes]
    kept = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    return _table([[row[column] for column in kept] for row in (heads, *rows)])


def _mode_cells(mode: PowerMode) -> list[str]:
    return [
        f"{'*' if mode.default else ' '} {mode.name}",
        f"{mode.bandwidth_bytes_s / 1e9:.0f}",
        _tera(mode.fp16_flops),
        _tera(mode.int8_ops),
        str(mode.sms or ""),
        f"{mode.gpu_hz / 1e6:.0f}" if mode.gpu_hz else "",
        f"{mode.memory_hz / 1e6:.0f}" if mode.memory_hz else "",
        mode.setup,
    ]


def _precision_lines(device: Device, width: int) -> list[str]:
    obstacle = why_not(device)
    if obstacle is not None:
        return _field("no edgegen", obstacle, width)
    return [
        line
        for name, verdict in precisions(device).items()
        for line in _field(f"{name} {'yes' if verdict.runs else 'no'}", verdict.why, width)
    ]


def _peaks_now(device: Device | None) -> str:
    if device is None:
        return "not known"
    mode = device.default_mode
    assumed = "; the bandwidth is assumed: see --measure" if "NOT measured" in device.source else ""
    rates = f"{_tera(mode.fp16_flops)} TFLOPS fp16, {_tera(mode.int8_ops)} TOPS int8"
    return f"{mode.bandwidth_bytes_s / 1e9:.0f} GB/s, {rates}{assumed}"


def _release(jetpack: JetPack) -> str:
    brings = f"JetPack {jetpack.version}: Python {jetpack.python}, CUDA {jetpack.cuda}, TensorRT {jetpack.tensorrt}"
    if not runs_edgegen(jetpack):
        return f"{brings}: too old for edgegen"
    return f"{brings}{', variant tensorrt-legacy' if needs_legacy(jetpack) else ''}"


def _jetson_fields(machine: Machine) -> list[tuple[str, str]]:
    jetson = machine.jetson
    if jetson is None:
        return []
    release = machine.jetpack
    clocks = [
        f"GPU at most {jetson.gpu_hz / 1e6:.0f} MHz" if jetson.gpu_hz else "",
        f"now {jetson.gpu_now_hz / 1e6:.0f}" if jetson.gpu_now_hz else "",
        f"memory at most {jetson.memory_hz / 1e6:.0f} MHz" if jetson.memory_hz else "",
    ]
    mode = jetson.mode.name if jetson.mode else "not known"
    return [
        ("software", f"{_release(release) if release else 'an unknown JetPack'} (Jetson Linux {jetson.l4t or 'unknown'})"),
        ("power mode", ", ".join(part for part in (mode, *clocks) if part)),
    ]


def _card(card: Gpu) -> str:
    facts = [
        card.name,
        f"compute capability {dotted(card.sm)}" if card.sm else "",
        f"{_size(card.memory_bytes)}, {_size(card.used_bytes)} of it used",
        f"GPU at most {card.gpu_hz / 1e6:.0f} MHz" if card.gpu_hz else "",
        f"memory {card.memory_hz / 1e6:.0f} MHz" if card.memory_hz else "",
        f"{card.power_limit_watts:.0f} W" if card.power_limit_watts else "",
        "partitioned (MIG): peaks are of the whole card" if card.mig else "",
    ]
    return ", ".join(fact for fact in facts if fact)


def _processor(machine: Machine) -> str:
    cpu = machine.cpu
    facts = [
        cpu.name if machine.kind != "cpu" or machine.row is not None else "",
        _count(cpu.cores, "core") if cpu.cores else "cores not known",
        f"at most {cpu.max_hz / 1e9:.1f} GHz" if cpu.max_hz else "",
        f"{cpu.last_level_cache_bytes / (1 << 20):.0f} MiB cache" if cpu.last_level_cache_bytes else "",
        " ".join(cpu.instructions[-3:]),
    ]
    return ", ".join(fact for fact in facts if fact)


def _field(label: str, text: str, width: int) -> list[str]:
    """A label and its text, broken where the terminal ends; nothing where there is no text."""
    return textwrap.wrap(
        text, max(width, 40), initial_indent=f"  {label:<11} ", subsequent_indent=" " * 14, break_on_hyphens=False
    )


def _size(size_bytes: int | None) -> str:
    return "an unknown amount" if size_bytes is None else f"{size_bytes / _GIB:.1f} GiB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.1f}" if rate < 1e14 else f"{rate / 1e12:.0f}"
