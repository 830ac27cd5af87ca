"""Whether an engine gave the right answers on this device: found out once, and remembered beside it."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgegen.backends.engines.driver import driver_version
from edgegen.backends.engines.store import VERDICT, EngineStore
from edgegen.backends.engines.wanted import Wanted

if TYPE_CHECKING:
    from edgegen.backends.trt.cuda import Gpu

_MAX_BYTES = 1 << 16


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the proof said of an engine: `reason` says what was wrong, empty where nothing was.

    It holds for the engine of that `sha256` on that `device` (`device_of`), and for no other.
    """

    sha256: str
    device: str
    reason: str = ""


def device_of(gpu: "Gpu") -> str:
    """A GPU and its driver: TensorRT-RTX finishes its engines with them, so that one engine may answer otherwise on another."""
    return f"{gpu.name}, driver {driver_version()} {gpu.driver}".strip()


def read(store: EngineStore, want: Wanted, device: str) -> Verdict | None:
    """What is known of the engine that is in the cache now, on `device`; None where nothing is."""
    try:
        with _place(store, want).open("rb") as file:
            verdict = msgspec.json.decode(file.read(_MAX_BYTES), type=Verdict)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
    if verdict.device != device:
        return None
    engine = store.get(want.key)
    return verdict if engine is not None and engine.record.sha256 == verdict.sha256 else None


def write(store: EngineStore, want: Wanted, verdict: Verdict) -> None:
    """Remember it. A cache that cannot be written to forgets: the proof is replayed the next time."""
    place = _place(store, want)
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    with contextlib.suppress(OSError):
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(verdict))
            partial.rename(place)
        finally:
            partial.unlink(missing_ok=True)


def _place(store: EngineStore, want: Wanted) -> Path:
    return store.path(want.key).with_suffix(VERDICT)
