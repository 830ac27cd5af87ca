"""Small facts that are remembered beside an engine: read with suspicion, written whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

_MAX_BYTES = 1 << 16
_Note = TypeVar("_Note", bound=msgspec.Struct)


def read_note(place: Path, kind: type[_Note]) -> _Note | None:
    """The note at `place`; None where there is none, or what is there is no `kind`."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=kind)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def write_note(place: Path, note: msgspec.Struct) -> None:
    """Remember it. A cache that cannot be written to forgets."""
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    with contextlib.suppress(OSError):
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(note))
            partial.rename(place)
        finally:
            partial.unlink(missing_ok=True)
