"""Whether an engine gave the right answers on this device: found out once, and remembered beside it."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgegen.backends.engines.driver import driver_version
from edgegen.backends.engines.note import read_note, write_note
from edgegen.backends.engines.store import VERDICT, EngineStore
from edgegen.backends.engines.wanted import Wanted

if TYPE_CHECKING:
    from edgegen.backends.trt.cuda import Gpu


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
    verdict = read_note(_place(store, want), Verdict)
    if verdict is None or verdict.device != device:
        return None
    engine = store.get(want.key)
    return verdict if engine is not None and engine.record.sha256 == verdict.sha256 else None


def write(store: EngineStore, want: Wanted, verdict: Verdict) -> None:
    """Remember it. A cache that cannot be written to forgets: the proof is replayed the next time."""
    write_note(_place(store, want), verdict)


def _place(store: EngineStore, want: Wanted) -> Path:
    return store.path(want.key).with_suffix(VERDICT)
