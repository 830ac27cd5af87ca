"""Protobuf's wire format: the fields of a serialized message are read, written and changed, without its schema.

Source: https://protobuf.dev/programming-guides/encoding.
"""

import struct
from collections.abc import Callable, Iterator, Mapping

Edit = Callable[[bytes, int, int], "bytes | None"]

_NAME_BYTES = 1 << 12
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def inner(data: bytes, start: int, stop: int, path: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where the messages begin and end that are reached by one field after the other."""
    for field, _, first, last in fields(data, start, stop):
        if field == path[0] and last >= 0:
            yield from inner(data, first, last, path[1:]) if len(path) > 1 else ((first, last),)


def _packed(data: bytes, start: int, stop: int) -> list[int]:
    found = []
    while start < stop:
        value, start = _varint(data, start)
        found.append(signed(value))
    return found


def signed(value: int) -> int:
    """An integer of 64 bits, as the wire carries it, with its sign."""
    return value - (1 << 64) if value >> 63 else value


def texts(data: bytes, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The fields that are short enough to be names."""
    return ((field, data[first:last]) for field, _, first, last in fields(data, start, stop) if -1 < last < first + _NAME_BYTES)


def numbers(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The fields that are integers."""
    return ((field, signed(first)) for field, _, first, last in fields(data, start, stop) if last < 0)


def integers(data: bytes, start: int, stop: int, wanted: int) -> Iterator[int]:
    """A repeated integer: one by one, or packed."""
    for field, _, first, last in fields(data, start, stop):
        if field == wanted:
            yield from [signed(first)] if last < 0 else _packed(data, first, last)


def fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field, begin, start, stop) of each field: where its tag and its content begin; of an integer its value and -1."""
    while start < stop:
        begin = start
        key, start = _varint(data, start)
        kind = key & 7
        if kind == _VARINT:
            value, start = _varint(data, start)
            yield key >> 3, begin, value, -1
            continue
        if kind == _BYTES:
            size, start = _varint(data, start)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        if start + size > stop:
            raise ValueError("a field ends behind its message")
        yield key >> 3, begin, start, start + size
        start += size


def _varint(data: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while data[start] > 0x7F:
        value |= (data[start] & 0x7F) << shift
        start, shift = start + 1, shift + 7
    return value | data[start] << shift, start + 1


def _encode_varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _tag(field: int, kind: int) -> bytes:
    return _encode_varint(field << 3 | kind)


def number(field: int, value: int) -> bytes:
    """A serialized integer field."""
    return _tag(field, _VARINT) + _encode_varint(value)


def float32(field: int, value: float) -> bytes:
    """A serialized float field."""
    return _tag(field, _FIXED32) + struct.pack("<f", value)


def message(field: int, *parts: bytes | memoryview) -> bytes:
    """A serialized field of bytes, which may be text or a message: `parts`, one after the other."""
    return b"".join((_tag(field, _BYTES), _encode_varint(sum(map(len, parts))), *parts))


def edited(data: bytes, start: int, stop: int, edits: Mapping[int, Edit]) -> bytes:
    """A message with some of its fields changed.

    Args:
        data: where the message lies, from `start` to `stop`.
        start: of the message.
        stop: of the message.
        edits: by field: a function of (data, start, stop) of its content that gives the new content, or None to leave it out.
    """
    parts, copied = [], start
    for field, begin, first, last in fields(data, start, stop):
        if field in edits and last >= 0:
            changed = edits[field](data, first, last)
            parts += [data[copied:begin], b"" if changed is None else message(field, changed)]
            copied = last
    return b"".join([*parts, data[copied:stop]])
