"""Which precisions a device can run, and why not the others; and whether its software can run edgegen at all."""

from typing import NamedTuple

from edgegen.devices.peaks import FIRST_FP4, FIRST_FP8
from edgegen.devices.table import JETPACKS, Device, JetPack, version

EXPORTED = ("fp32", "fp16", "int8", "int4")  # what `edgegen export` makes
OLDEST_PYTHON, OLDEST_TENSORRT = "3.10", "10.3"  # what edgegen runs with
FIRST_CANONICAL = "10.15"  # the first TensorRT that knows the canonical graph's operators
NEW_OPERATORS = ("Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter")


class Verdict(NamedTuple):
    """Whether a precision runs, and why, or why not."""

    runs: bool
    why: str


def precisions(device: Device) -> dict[str, Verdict]:
    """A verdict on every precision, those that edgegen does not export included."""
    obstacle = why_not(device)
    if obstacle is not None:
        return dict.fromkeys((*EXPORTED, "fp8", "fp4"), Verdict(False, obstacle))
    return _on_gpu(device, device.sm) if device.sm is not None else _on_cpu()


def _on_gpu(device: Device, sm: int) -> dict[str, Verdict]:
    return {
        "fp32": Verdict(True, "the slowest: 4 bytes a weight, and half or less of fp16's arithmetic"),
        "fp16": Verdict(True, "tensor cores; 2 bytes a weight"),
        "int8": Verdict(True, "weights of language models: 1 byte a weight, computed in fp16"),
        "int4": Verdict(True, "weights of language models: about half a byte a weight, computed in fp16"),
        "fp8": _missing("fp8", device.fp8, sm, FIRST_FP8, "Ada, Hopper or newer"),
        "fp4": _missing("fp4", device.fp4, sm, FIRST_FP4, "Blackwell"),
    }


def _on_cpu() -> dict[str, Verdict]:
    return {
        "fp32": Verdict(True, "4 bytes a weight"),
        "fp16": Verdict(True, "files of half the size; computed in fp32, so no faster"),
        "int8": Verdict(True, "weights of language models: 1 byte a weight"),
        "int4": Verdict(True, "weights of language models: about half a byte a weight"),
        "fp8": Verdict(False, "fp8 needs an NVIDIA GPU of compute capability 8.9 (Ada) or newer"),
        "fp4": Verdict(False, "fp4 needs an NVIDIA GPU of the Blackwell generation"),
    }


def _missing(name: str, has: bool, sm: int, first: int, generation: str) -> Verdict:
    if has:
        return Verdict(False, f"the GPU has {name}, but edgegen exports none yet")
    return Verdict(False, f"{name} needs compute capability {dotted(first)} ({generation}); this is {dotted(sm)}")


def dotted(sm: int) -> str:
    """A compute capability as NVIDIA writes it: 87 -> "8.7"."""
    return f"{sm // 10}.{sm % 10}"


def releases(device: Device) -> tuple[JetPack, ...]:
    """The JetPack releases of a device that edgegen runs on, oldest first; empty for what is no Jetson."""
    return tuple(jetpack for name in device.software if runs_edgegen(jetpack := JETPACKS[name]))


def runs_edgegen(jetpack: JetPack) -> bool:
    """Whether a release has a Python and a TensorRT that are new enough."""
    new_python = version(jetpack.python) >= version(OLDEST_PYTHON)
    return new_python and version(jetpack.tensorrt) >= version(OLDEST_TENSORRT)


def needs_legacy(jetpack: JetPack) -> bool:
    """Whether its TensorRT is too old for the canonical graph's operators."""
    return version(jetpack.tensorrt) < version(FIRST_CANONICAL)


def why_not(device: Device, jetpack: JetPack | None = None) -> str | None:
    """Why edgegen cannot run there; None where it can."""
    last = jetpack or (JETPACKS[device.software[-1]] if device.software and not releases(device) else None)
    if last is None or runs_edgegen(last):
        return None
    return (
        f"JetPack {last.version} has Python {last.python} and TensorRT {last.tensorrt}; "
        f"edgegen needs Python {OLDEST_PYTHON} and TensorRT {OLDEST_TENSORRT}"
    )
