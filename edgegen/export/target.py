"""What to export for a device: the precision and the graph variants that it can run, and why.

`decide` is a pure function of the table of devices; nothing is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgegen.devices import precisions
from edgegen.devices.precisions import NEW_OPERATORS, needs_legacy, releases, why_not
from edgegen.devices.table import JETPACKS, Device, JetPack, lookup
from edgegen.errors import InputError, UnknownNameError

LEGACY = "tensorrt-legacy"
QUANTIZED = ("int8", "int4")
LANGUAGE_MODELS = ("decoder_lm",)  # the families whose weights may be quantized


@dataclass(frozen=True)
class Decision:
    """What to export for `device`: `precision`, the extra graph `variants`, and a sentence of `reasons` for each choice."""

    device: str
    jetpack: str | None
    family: str
    precision: str
    variants: tuple[str, ...]
    reasons: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        release = f" with JetPack {self.jetpack}" if self.jetpack else ""
        return [
            f"target {self.device}{release}: {', '.join((self.precision, *self.variants))}",
            *(f"  {why}" for why in self.reasons),
        ]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "device": self.device,
            "jetpack": self.jetpack,
            "precision": self.precision,
            "variants": list(self.variants),
            "reasons": list(self.reasons),
        }


def read_target(text: str) -> tuple[Device, JetPack | None]:
    """Read `DEVICE` or `DEVICE@JETPACK`, as --target has it: "jetson-orin-nano-8gb@6.2".

    Raises:
        InputError: there is no such device or release, the device does not run that release, or edgegen does not run there.
    """
    name, _, release = text.partition("@")
    device = lookup(name)
    jetpack = _release(device, release) if release or text.endswith("@") else None
    obstacle = why_not(device, jetpack)
    if obstacle is not None:
        raise InputError(f"cannot export for {device.name}: {obstacle}")
    return device, jetpack


def decide(device: Device, family: str, precision: str | None = None, jetpack: JetPack | None = None) -> Decision:
    """Choose precision and variants for a model of `family` on `device`; `precision` was asked for, None leaves the choice.

    Raises:
        InputError: the device, or the family, cannot run the precision that was asked for; or edgegen does not run there.
    """
    obstacle = why_not(device, jetpack)
    if obstacle is not None:
        raise InputError(f"cannot export for {device.name}: {obstacle}")
    chosen, reasons = _choose(device, family) if precision is None else _check(device, family, precision)
    variants, more = _variants(device, jetpack)
    return Decision(device.name, jetpack.version if jetpack else None, family, chosen, variants, (*reasons, *more))


def _release(device: Device, text: str) -> JetPack:
    """The release of that name, of which a patch may be given: 6.2.1 is a 6.2."""
    if not device.software:
        raise InputError(f"{device.name} runs no JetPack: give --target {device.name}")
    named = [name for name in JETPACKS if text == name or text.startswith(f"{name}.")]
    if not named:
        raise UnknownNameError("JetPack", text, JETPACKS)
    found = max(named, key=len)
    if found not in device.software:
        raise InputError(f"{device.name} does not run JetPack {text}; it runs {', '.join(device.software)}")
    return JETPACKS[found]


def _choose(device: Device, family: str) -> tuple[str, list[str]]:
    """The precision that serves best, why, and why not the ones that one might expect."""
    verdicts = precisions.precisions(device)
    others = [f"not {name}: {verdicts[name].why}" for name in ("fp8", "fp4") if device.sm is not None]
    if family in LANGUAGE_MODELS:
        bound = "int4: each token reads all weights once, so their bytes set the pace, and int4 has the fewest"
        return "int4", [f"{bound} ({device.bandwidth_bytes_s / 1e9:.0f} GB/s)", *others]
    no_codes = f"not int8 or int4: {_no_quantized(family)}"
    if device.sm is None:
        return "fp32", [f"fp32: on a CPU fp16 is computed in fp32, so it would be no faster, {no_codes}"]
    return "fp16", ["fp16: what the tensor cores compute in, at half of fp32's memory", no_codes, *others]


def _check(device: Device, family: str, precision: str) -> tuple[str, list[str]]:
    """The precision that was asked for, if it can be had."""
    verdicts: Mapping[str, precisions.Verdict] = precisions.precisions(device)
    if precision not in verdicts:
        raise UnknownNameError("precision", precision, precisions.EXPORTED)
    runs, why = verdicts[precision]
    if not runs:
        raise InputError(f"{device.name} cannot run {precision}: {why}; it runs {_running(verdicts, family)}")
    if precision in QUANTIZED and family not in LANGUAGE_MODELS:
        raise InputError(
            f"no {precision} for {family}: {_no_quantized(family)}; {device.name} runs it in {_running(verdicts, family)}"
        )
    return precision, [f"{precision}, as asked: {why}"]


def _running(verdicts: Mapping[str, precisions.Verdict], family: str) -> str:
    names = [
        name for name, verdict in verdicts.items() if verdict.runs and (name not in QUANTIZED or family in LANGUAGE_MODELS)
    ]
    return ", ".join(names)


def _no_quantized(family: str) -> str:
    return f"edgegen quantizes the weights of language models, and has no such operator for {family} models' convolutions"


def _variants(device: Device, jetpack: JetPack | None) -> tuple[tuple[str, ...], list[str]]:
    """The variants that the TensorRT of the device's releases needs beside those that every bundle has."""
    candidates = (jetpack,) if jetpack else releases(device)
    old = [release for release in candidates if needs_legacy(release)]
    if old:
        names = " or ".join(release.version for release in old)
        versions = " and ".join(dict.fromkeys(release.tensorrt for release in old))
        hint = f"; {device.name}@{candidates[-1].version} leaves it out" if len(old) < len(candidates) else ""
        return (LEGACY,), [f"{LEGACY}: JetPack {names} has TensorRT {versions}, which lacks {', '.join(NEW_OPERATORS)}{hint}"]
    return (), [f"no {LEGACY}: TensorRT {candidates[-1].tensorrt} parses the graph as it is"] if candidates else []
