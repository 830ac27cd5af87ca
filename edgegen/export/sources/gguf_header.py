"""Read and check the header of a GGUF file ourselves, before any library maps it.

The layout is that of the GGUF specification (ggml, docs/gguf.md): magic, version, counts, key-value pairs, tensor entries,
padding, tensor data; little-endian. Every count and length is held against the bytes that are left, so a damaged header ends
in one line and not in gigabytes or a hang.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgegen.errors import SourceError

_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_SMALLEST_PAIR = 8 + 4 + 1  # an empty key, a type, one byte
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # an empty name, its rank, one size, a type, an offset


class TensorEntry(NamedTuple):
    """One tensor: its sizes (fastest axis first, as GGUF has them), ggml type, and place in the file in bytes."""

    shape: tuple[int, ...]
    ggml_type: int
    start: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself: metadata by key, tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]


def read_header(path: Path) -> GgufHeader:
    """Read the header of the GGUF file at `path`.

    Raises:
        SourceError: It is no GGUF file, a version or tensor type that is not known, cut, or damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).header()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, struct.error, OverflowError) as error:  # ValueError is _Reader's own, and mmap's for an empty file
        raise SourceError(f"{path} is not a whole GGUF file: {error}") from error


class _Reader:
    """A cursor over the file. Raises ValueError with what is wrong."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def header(self) -> GgufHeader:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self.scalar("<I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}; edgegen reads little-endian versions 2 and 3")
        tensor_count = self.count(_SMALLEST_TENSOR, "tensors")
        pair_count = self.count(_SMALLEST_PAIR, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self.string()
            if key in metadata:
                raise ValueError(f"metadata key {key!r} is there twice")
            metadata[key] = self.value(self.scalar("<I"))
        entries = [self.tensor() for _ in range(tensor_count)]
        return GgufHeader(metadata, self.place(entries, metadata.get("general.alignment", 32)))

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"it ends at byte {len(self.data)}, inside its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def count(self, smallest: int, what: str) -> int:
        count: int = self.scalar("<Q")
        left = len(self.data) - self.at
        if count * smallest > left:
            raise ValueError(f"it claims {count} {what} with {left} bytes left")
        return count

    def string(self) -> str:
        return self.take(self.count(1, "characters")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.scalar("<I"))
        raise ValueError(f"metadata type {kind} is not known")

    def array(self, kind: int) -> list[Any]:
        if kind == _STRING:
            return [self.string() for _ in range(self.count(8, "strings"))]
        if kind not in _SCALARS:  # the specification allows arrays of arrays; no model uses them
            raise ValueError(f"an array of metadata type {kind} is not known")
        layout = _SCALARS[kind]
        size = struct.calcsize(layout)
        count = self.count(size, "numbers")
        return list(struct.unpack(f"<{count}{layout[1]}", self.take(count * size)))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self.string(), self.scalar("<I")
        if not 1 <= rank <= _MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {rank} axes")
        shape = tuple(self.scalar("<Q") for _ in range(rank))
        return name, shape, self.scalar("<I"), self.scalar("<Q")

    def place(self, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: Any) -> dict[str, TensorEntry]:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment!r}, not a power of two")
        base = -(-self.at // alignment) * alignment
        placed: dict[str, TensorEntry] = {}
        for name, shape, kind, offset in entries:
            entry = TensorEntry(shape, kind, base + offset, _size_bytes(name, shape, kind))
            if name in placed or offset % alignment or entry.start + entry.size_bytes > len(self.data):
                raise ValueError(
                    f"tensor {name!r} is there twice, unaligned or out of range: bytes {entry.start} to "
                    f"{entry.start + entry.size_bytes} of {len(self.data)}"
                )
            placed[name] = entry
        return placed


def _size_bytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise ValueError(f"tensor {name!r} has ggml type {kind}, which is not known") from error
    if shape[0] % block or not all(shape):
        raise ValueError(f"tensor {name!r} is {list(shape)}: its rows are not whole blocks of {block}")
    return math.prod(shape) // block * int(block_bytes)
