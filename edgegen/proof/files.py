"""A proof's files in a bundle: bounded, and read as untrusted bytes."""

from typing import TypeVar

import msgspec

from edgegen.bundle import Bundle
from edgegen.errors import BundleError

MAX_PROOF_BYTES = 1 << 20
MAX_REFERENCE_BYTES = 256 << 20
_T = TypeVar("_T")


def read_bounded(bundle: Bundle, path: str, limit: int) -> bytes:
    """A file of the bundle; BundleError where it is not listed, or larger than `limit` bytes."""
    entry = bundle.manifest.files.get(path)
    if entry is None or entry.size_bytes > limit:
        raise BundleError(f"the proof's {path} is {'missing' if entry is None else 'too large'}; export the model again")
    return bytes(bundle.read(path))


def decode_json(data: bytes, kind: type[_T], path: str) -> _T:
    """Strictly decode JSON; BundleError where it does not fit `kind`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{path}: {error}") from error
