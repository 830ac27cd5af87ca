"""That a library refused a graph, or crashed on it: remembered, for it would cost the same build with the same end again."""

import contextlib
from pathlib import Path

import msgspec

import edgegen
from edgegen.backends.engines.key import EngineKey
from edgegen.backends.engines.note import read_note, write_note
from edgegen.backends.engines.store import REFUSAL, EngineStore
from edgegen.errors import BackendError


class RefusedError(BackendError):
    """The library refuses the graph, or crashes on it: with the same versions and options it will again."""


class _Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why; and the edgegen that asked, for a later one may ask better."""

    reason: str
    edgegen: str


def read(store: EngineStore, key: EngineKey) -> str | None:
    """Why the engine of `key` could not be built the last time; None where that is not known.

    Raises CacheError where the folder is not to be trusted.
    """
    found = read_note(_place(store, key), _Refusal) if store.is_there() else None
    return found.reason if found is not None and found.edgegen == edgegen.__version__ else None


def write(store: EngineStore, key: EngineKey, reason: str) -> None:
    """Remember it, where the cache can be written to."""
    write_note(_place(store, key), _Refusal(reason, edgegen.__version__))


def forget(store: EngineStore, key: EngineKey) -> None:
    """It can be built after all."""
    with contextlib.suppress(OSError):
        _place(store, key).unlink(missing_ok=True)


def _place(store: EngineStore, key: EngineKey) -> Path:
    return store.path(key).with_suffix(REFUSAL)
