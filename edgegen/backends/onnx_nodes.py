"""The nodes of a serialized ONNX graph: read, and some of them exchanged for others, without the onnx package.

Only what `edgegen.onnx_walk.check` has passed comes here. The wire format: https://protobuf.dev/programming-guides/encoding;
the messages: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Value = int | float | bytes | tuple[int, ...] | None  # None: a graph; other kinds that are not read: b""

_NAME_BYTES = 1 << 12
_MOST_VALUES = 64  # of a constant that is read: a shape, pads, what is sliced
_FORMATS = {1: "f", 6: "i", 7: "q", 11: "d"}  # of a constant's elements, by TensorProto.DataType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT, _INT = 1, 2  # AttributeProto.AttributeType
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_GRAPH_VALUES = (11, 12, 13)  # inputs, outputs, and what is known of other values
_ATTRIBUTE_GRAPHS = (6, 11)
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12


class Node(NamedTuple):
    """A node: what it computes from what, and its serialized bytes."""

    operator: bytes
    domain: bytes
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    attributes: dict[bytes, Value]
    content: bytes


class Constant(NamedTuple):
    """What an initializer is: TensorProto.DataType, its shape, and its elements where they are few numbers in the file."""

    dtype: int
    shape: tuple[int, ...]
    values: tuple[float, ...] | None = None


class Graph(NamedTuple):
    """The nodes of a model's graph in its order, and what else of it decides which of them may change.

    `constants` are its initializers, `shapes` and `dtypes` what is said of values (names are of axes without a size; of
    TensorProto.DataType), `outputs` the names of what the graph gives, `opsets` the version of each domain.
    """

    nodes: tuple[Node, ...]
    constants: dict[bytes, Constant]
    shapes: dict[bytes, tuple[int | bytes, ...]]
    dtypes: dict[bytes, int]
    outputs: frozenset[bytes]
    opsets: dict[bytes, int]


def read(model: bytes) -> Graph:
    """Read a serialized model; IndexError or ValueError where it is cut short or malformed."""
    found = Graph((), {}, {}, {}, frozenset(), {})
    for field, _, start, stop in _fields(model, 0, len(model)):
        if field == _MODEL_OPSET:
            said = dict(_texts(model, start, stop))
            found.opsets[said.get(1, b"")] = dict(_numbers(model, start, stop)).get(2, 0)
        elif field == _MODEL_GRAPH:
            found = _graph(model, start, stop, found)
    return found


def _graph(data: bytes, start: int, stop: int, found: Graph) -> Graph:
    nodes, outputs = [], set()
    for field, _, first, last in _fields(data, start, stop):
        if field == _GRAPH_NODE:
            nodes.append(_node(data, first, last))
        elif field == _GRAPH_INITIALIZER:
            name, dtype = dict(_texts(data, first, last)).get(8, b""), dict(_numbers(data, first, last)).get(2, 0)
            shape = tuple(_integers(data, first, last, 1))
            found.constants[name] = Constant(dtype, shape, _elements(data, first, last, dtype, math.prod(shape)))
        elif field in _GRAPH_VALUES:
            name, found.shapes[name], found.dtypes[name] = _value(data, first, last)
            outputs |= {name} if field == _GRAPH_OUTPUT else set()
    return found._replace(nodes=tuple(nodes), outputs=frozenset(outputs))


def _elements(data: bytes, start: int, stop: int, dtype: int, count: int) -> tuple[float, ...] | None:
    """A TensorProto's elements, from its raw bytes or its repeated integers; None where they are many or kept another way."""
    if dtype not in _FORMATS or count > _MOST_VALUES:
        return None
    form = f"<{count}{_FORMATS[dtype]}"
    for field, _, first, last in _fields(data, start, stop):
        if field == 9 and last - first == struct.calcsize(form):  # raw_data
            return struct.unpack_from(form, data, first)
    integers = tuple(_integers(data, start, stop, 5 if dtype == 6 else 7)) if dtype in (6, 7) else ()
    return integers if integers and len(integers) == count else None


def _value(data: bytes, start: int, stop: int) -> tuple[bytes, tuple[int | bytes, ...], int]:
    """A ValueInfoProto's name, shape and dtype; no axes, or 0, where they are not said."""
    name, shape, dtype = b"", [], 0
    for field, _, first, last in _fields(data, start, stop):
        if field == 1:
            name = data[first:last]
        elif field == 2:
            dtype = next((dict(_numbers(data, *place)).get(1, 0) for place in _inner(data, first, last, (1,))), 0)
            for axis in _inner(data, first, last, (1, 2, 1)):  # TypeProto.tensor_type, its shape, its axes
                sizes: dict[int, int | bytes] = {**dict(_numbers(data, *axis)), **dict(_texts(data, *axis))}
                shape.append(sizes.get(1, sizes.get(2, b"")))
    return name, tuple(shape), dtype


def _inner(data: bytes, start: int, stop: int, path: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where the messages begin and end that are reached by one field after the other."""
    for field, _, first, last in _fields(data, start, stop):
        if field == path[0] and last >= 0:
            yield from _inner(data, first, last, path[1:]) if len(path) > 1 else ((first, last),)


def write(model: bytes, changed: Mapping[int, bytes], opsets: Mapping[bytes, int]) -> bytes:
    """The model with nodes exchanged.

    Args:
        model: the serialized model.
        changed: serialized nodes by their place among the graph's nodes; an empty one is left out.
        opsets: domains that the model is to import besides its own, and their versions.
    """
    parts, copied = [], 0
    for field, begin, start, stop in _fields(model, 0, len(model)):
        if field == _MODEL_GRAPH:
            parts += [model[copied:begin], _message(_MODEL_GRAPH, _exchanged(model, start, stop, changed))]
            copied = stop
    parts.append(model[copied:])
    parts += [_message(_MODEL_OPSET, _message(1, domain) + _number(2, version)) for domain, version in opsets.items()]
    return b"".join(parts)


def encode(
    operator: bytes,
    domain: bytes,
    inputs: tuple[bytes, ...],
    outputs: tuple[bytes, ...],
    attributes: Mapping[bytes, int | float],
) -> bytes:
    """A serialized node."""
    parts = [_message(1, name) for name in inputs] + [_message(2, name) for name in outputs]
    for name, value in attributes.items():
        said = _tag(2, _FIXED32) + struct.pack("<f", value) if isinstance(value, float) else _number(3, value)
        parts.append(_message(5, _message(1, name) + said + _number(20, _FLOAT if isinstance(value, float) else _INT)))
    return b"".join([*parts, _message(4, operator), _message(7, domain)])


def with_domain(node: Node, domain: bytes) -> bytes:
    """A node's bytes with another domain: of a field that stands twice, the last counts."""
    return node.content + _message(7, domain)


def _exchanged(model: bytes, start: int, stop: int, changed: Mapping[int, bytes]) -> bytes:
    parts, copied, place = [], start, -1
    for part, begin, _, last in _fields(model, start, stop):
        if part != _GRAPH_NODE:
            continue
        place += 1
        if place in changed:
            parts.append(model[copied:begin])
            if changed[place]:
                parts.append(_message(_GRAPH_NODE, changed[place]))
            copied = last
    return b"".join([*parts, model[copied:stop]])


def _node(data: bytes, start: int, stop: int) -> Node:
    inputs, outputs, attributes = [], [], {}
    names = {4: b"", 7: b""}
    for field, _, first, last in _fields(data, start, stop):
        if field == 1:
            inputs.append(data[first:last])
        elif field == 2:
            outputs.append(data[first:last])
        elif field in names:
            names[field] = data[first:last]
        elif field == 5:
            name, value = _attribute(data, first, last)
            attributes[name] = value
    return Node(names[4], names[7], tuple(inputs), tuple(outputs), attributes, data[start:stop])


def _attribute(data: bytes, start: int, stop: int) -> tuple[bytes, Value]:
    """An attribute's name and value: an integer, a float, bytes, or integers."""
    name = b""
    value: Value = b""
    for field, _, first, last in _fields(data, start, stop):
        if field == 1:
            name = data[first:last]
        elif field == 2:
            value = struct.unpack_from("<f", data, first)[0]
        elif field == 3:
            value = _signed(first)
        elif field == 4:
            value = data[first:last]
        elif field in _ATTRIBUTE_GRAPHS:
            value = None
        elif field == 8:
            value = tuple(_integers(data, start, stop, 8))
    return name, value


def _packed(data: bytes, start: int, stop: int) -> list[int]:
    found = []
    while start < stop:
        value, start = _varint(data, start)
        found.append(_signed(value))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _texts(data: bytes, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The fields that are short enough to be names."""
    return (
        (field, data[first:last]) for field, _, first, last in _fields(data, start, stop) if -1 < last < first + _NAME_BYTES
    )


def _numbers(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The fields that are integers."""
    return ((field, _signed(first)) for field, _, first, last in _fields(data, start, stop) if last < 0)


def _integers(data: bytes, start: int, stop: int, wanted: int) -> Iterator[int]:
    """A repeated integer: one by one, or packed."""
    for field, _, first, last in _fields(data, start, stop):
        if field == wanted:
            yield from [_signed(first)] if last < 0 else _packed(data, first, last)


def _fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field, begin, start, stop) of each field: where its tag and its content begin; of an integer its value and -1."""
    while start < stop:
        begin = start
        tag, start = _varint(data, start)
        kind = tag & 7
        if kind == _VARINT:
            value, start = _varint(data, start)
            yield tag >> 3, begin, value, -1
            continue
        if kind == _BYTES:
            size, start = _varint(data, start)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        if start + size > stop:
            raise ValueError("a field ends behind its message")
        yield tag >> 3, begin, start, start + size
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


def _number(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _encode_varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _tag(field, _BYTES) + _encode_varint(len(content)) + content
