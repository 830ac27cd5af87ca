"""The nodes of a serialized ONNX graph: read, and some of them exchanged for others, without the onnx package.

Only what `walk.check` has passed comes here. The wire format: `wire.py`; the messages:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

import math
import struct
from collections.abc import Mapping
from typing import NamedTuple

from edgegen.graphs.wire import fields, float32, inner, integers, message, number, numbers, signed, texts

Value = int | float | bytes | tuple[int, ...] | None  # None: a graph; other kinds that are not read: b""

_MOST_VALUES = 64  # of a constant that is read: a shape, pads, what is sliced
_FORMATS = {1: "f", 6: "i", 7: "q", 11: "d"}  # of a constant's elements, by TensorProto.DataType
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
    for field, _, start, stop in fields(model, 0, len(model)):
        if field == _MODEL_OPSET:
            said = dict(texts(model, start, stop))
            found.opsets[said.get(1, b"")] = dict(numbers(model, start, stop)).get(2, 0)
        elif field == _MODEL_GRAPH:
            found = _graph(model, start, stop, found)
    return found


def _graph(data: bytes, start: int, stop: int, found: Graph) -> Graph:
    nodes, outputs = [], set()
    for field, _, first, last in fields(data, start, stop):
        if field == _GRAPH_NODE:
            nodes.append(_node(data, first, last))
        elif field == _GRAPH_INITIALIZER:
            name, dtype = dict(texts(data, first, last)).get(8, b""), dict(numbers(data, first, last)).get(2, 0)
            shape = tuple(integers(data, first, last, 1))
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
    for field, _, first, last in fields(data, start, stop):
        if field == 9 and last - first == struct.calcsize(form):  # raw_data
            return struct.unpack_from(form, data, first)
    found = tuple(integers(data, start, stop, 5 if dtype == 6 else 7)) if dtype in (6, 7) else ()
    return found if found and len(found) == count else None


def _value(data: bytes, start: int, stop: int) -> tuple[bytes, tuple[int | bytes, ...], int]:
    """A ValueInfoProto's name, shape and dtype; no axes, or 0, where they are not said."""
    name, shape, dtype = b"", [], 0
    for field, _, first, last in fields(data, start, stop):
        if field == 1:
            name = data[first:last]
        elif field == 2:
            dtype = next((dict(numbers(data, *place)).get(1, 0) for place in inner(data, first, last, (1,))), 0)
            for axis in inner(data, first, last, (1, 2, 1)):  # TypeProto.tensor_type, its shape, its axes
                sizes: dict[int, int | bytes] = {**dict(numbers(data, *axis)), **dict(texts(data, *axis))}
                shape.append(sizes.get(1, sizes.get(2, b"")))
    return name, tuple(shape), dtype


def write(model: bytes, changed: Mapping[int, bytes], opsets: Mapping[bytes, int]) -> bytes:
    """The model with nodes exchanged.

    Args:
        model: the serialized model.
        changed: serialized nodes by their place among the graph's nodes; an empty one is left out.
        opsets: domains that the model is to import besides its own, and their versions.
    """
    parts, copied = [], 0
    for field, begin, start, stop in fields(model, 0, len(model)):
        if field == _MODEL_GRAPH:
            parts += [model[copied:begin], message(_MODEL_GRAPH, _exchanged(model, start, stop, changed))]
            copied = stop
    parts.append(model[copied:])
    parts += [message(_MODEL_OPSET, message(1, domain) + number(2, version)) for domain, version in opsets.items()]
    return b"".join(parts)


def encode(
    operator: bytes,
    domain: bytes,
    inputs: tuple[bytes, ...],
    outputs: tuple[bytes, ...],
    attributes: Mapping[bytes, int | float],
) -> bytes:
    """A serialized node."""
    parts = [message(1, name) for name in inputs] + [message(2, name) for name in outputs]
    for name, value in attributes.items():
        said = float32(2, value) if isinstance(value, float) else number(3, value)
        parts.append(message(5, message(1, name) + said + number(20, _FLOAT if isinstance(value, float) else _INT)))
    return b"".join([*parts, message(4, operator), message(7, domain)])


def with_domain(node: Node, domain: bytes) -> bytes:
    """A node's bytes with another domain: of a field that stands twice, the last counts."""
    return node.content + message(7, domain)


def _exchanged(model: bytes, start: int, stop: int, changed: Mapping[int, bytes]) -> bytes:
    parts, copied, place = [], start, -1
    for part, begin, _, last in fields(model, start, stop):
        if part != _GRAPH_NODE:
            continue
        place += 1
        if place in changed:
            parts.append(model[copied:begin])
            if changed[place]:
                parts.append(message(_GRAPH_NODE, changed[place]))
            copied = last
    return b"".join([*parts, model[copied:stop]])


def _node(data: bytes, start: int, stop: int) -> Node:
    inputs, outputs, attributes = [], [], {}
    names = {4: b"", 7: b""}
    for field, _, first, last in fields(data, start, stop):
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
    for field, _, first, last in fields(data, start, stop):
        if field == 1:
            name = data[first:last]
        elif field == 2:
            value = struct.unpack_from("<f", data, first)[0]
        elif field == 3:
            value = signed(first)
        elif field == 4:
            value = data[first:last]
        elif field in _ATTRIBUTE_GRAPHS:
            value = None
        elif field == 8:
            value = tuple(integers(data, start, stop, 8))
    return name, value
