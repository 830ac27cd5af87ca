"""edgegen's own CPU kernels for ONNX Runtime: where they are, and which nodes of a graph they take.

`edgegen/native` has their source and says how they work. A graph in a bundle knows only ONNX Runtime's operators; nodes that
the kernels can take are renamed when a session is made, in memory. Without the kernels the same graph runs as it is.
"""

import ctypes
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from edgegen.errors import BackendError

VARIABLE = "EDGEGEN_KERNELS"  # "off", or the name of an instruction set
BLOCK, MAX_HEAD, MAX_GROUP = 32, 256, 32  # kernels.h: BLOCK, MAX_HEAD, MAX_ROWS

_LIBRARY = Path(__file__).parent.parent / "native" / "libedgegen_kernels.so"
_FROM, _TO = b"com.microsoft", b"ai.edgegen.v1"  # of one length, so that no byte of the graph moves
_OPERATOR_SET = b"\x42\x11\x0a\x0d" + _TO + b"\x10\x01"  # ModelProto.opset_import: this domain, version 1
_ATTENTION_ATTRIBUTES = {
    b"num_heads", b"kv_num_heads", b"do_rotary", b"rotary_interleaved", b"scale", b"softcap", b"local_window_size"
}  # fmt: skip


class Kernels(NamedTuple):
    """The kernels' shared library and the instruction set that it will use here."""

    path: Path
    instructions: str


@functools.cache
def kernels() -> Kernels | None:
    """The kernels, or None where they were not built, are switched off, or the processor has none of their instruction sets.

    Raises:
        BackendError: the environment asks for an instruction set that is not there.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off" or not _LIBRARY.exists():
        return None
    try:
        choose = ctypes.CDLL(str(_LIBRARY)).edgegen_kernels_choose
    except OSError:  # built for another machine
        return None
    choose.argtypes, choose.restype = [ctypes.c_char_p], ctypes.c_char_p
    chosen = choose(wanted.encode())
    if chosen is None and wanted:
        raise BackendError(f'{VARIABLE} is {wanted!r}, which this machine does not have; unset it, or set it to "off"')
    return Kernels(_LIBRARY, chosen.decode()) if chosen else None


def rename(model: bytes, head_sizes: Mapping[str, int]) -> tuple[bytes, int]:
    """Give the nodes that the kernels can take to them.

    Args:
        model: a serialized ONNX graph that `onnx_walk.check` has passed.
        head_sizes: the last axis of each state input, by name.

    Returns:
        The graph, and how many of its nodes were renamed. A graph that cannot be read comes back as it was.
    """
    changed, count = bytearray(model), 0
    try:
        for graph in _lengths(model, 0, len(model), 7):
            for node in _lengths(model, *graph, 1):
                place = _taken(model, *node, head_sizes)
                if place:
                    changed[place : place + len(_TO)] = _TO
                    count += 1
    except (IndexError, ValueError):
        return model, 0
    return (bytes(changed + _OPERATOR_SET), count) if count else (model, 0)


def _taken(data: bytes, start: int, stop: int, head_sizes: Mapping[str, int]) -> int:
    """Where the domain of a node stands that the kernels can take; 0 for any other."""
    place, operator, inputs, attributes = 0, b"", [], {}
    for number, first, last in _fields(data, start, stop):
        if number == 1:
            inputs.append(data[first:last])
        elif number == 4:
            operator = data[first:last]
        elif number == 5:
            name, value = _attribute(data, first, last)
            attributes[name] = value
        elif number == 7 and data[first:last] == _FROM:
            place = first
    if operator == b"MatMulNBits":
        return place if _is_product(inputs, attributes) else 0
    return place if operator == b"GroupQueryAttention" and _is_attention(inputs, attributes, head_sizes) else 0


def _is_product(inputs: list[bytes], attributes: Mapping[bytes, int | None]) -> bool:
    """A graph that asks for exact arithmetic (accuracy_level below 4) keeps it."""
    form = [attributes.get(name, 0) for name in (b"bits", b"block_size", b"accuracy_level")]
    columns = attributes.get(b"K") or 1
    return form in ([4, BLOCK, 4], [8, BLOCK, 4]) and columns % BLOCK == 0 and len(inputs) <= 6 and not any(inputs[3:5])


def _is_attention(inputs: list[bytes], attributes: Mapping[bytes, int | None], head_sizes: Mapping[str, int]) -> bool:
    size = head_sizes.get(inputs[3].decode(), 0) if len(inputs) > 4 else 0
    group = (attributes.get(b"num_heads") or 0) // (attributes.get(b"kv_num_heads") or 1)
    return (
        attributes.keys() <= _ATTENTION_ATTRIBUTES
        and not attributes.get(b"rotary_interleaved")
        and 0 < size <= MAX_HEAD
        and size % 16 == 0
        and 0 < group <= MAX_GROUP
        and 7 <= len(inputs) <= 9
    )


def _attribute(data: bytes, start: int, stop: int) -> tuple[bytes, int | None]:
    """An attribute's name, and its value if it is an integer."""
    name, value = b"", None
    for number, first, last in _fields(data, start, stop):
        if number == 1:
            name = data[first:last]
        elif number == 3:
            value = first
    return name, value


def _lengths(data: bytes, start: int, stop: int, wanted: int) -> Iterator[tuple[int, int]]:
    return ((first, last) for number, first, last in _fields(data, start, stop) if number == wanted and last >= 0)


def _fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, stop) of each field with a length, (number, value, -1) of each integer."""
    while start < stop:
        tag, start = _varint(data, start)
        kind = tag & 7
        if kind == 0:
            value, start = _varint(data, start)
            yield tag >> 3, value, -1
        elif kind == 2:
            size, start = _varint(data, start)
            yield tag >> 3, start, start + size
            start += size
        elif kind in (1, 5):
            start += 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(data: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while data[start] > 0x7F:
        value |= (data[start] & 0x7F) << shift
        start, shift = start + 1, shift + 7
    return value | data[start] << shift, start + 1
