"""Reads an ONNX file that nobody vouches for, before any inference library does.

A minimal reader of the protobuf wire format (https://protobuf.dev/programming-guides/encoding) that walks the messages of
onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto): every node of every nested graph and function, every
tensor. It is stricter than protobuf so that no two readers can understand a file differently: an unknown field, a field of
the wrong wire type or a repeated singular field is an error. Bytes are never copied and work is bounded by `MAX_FIELDS`.
"""

import mmap
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from edgegen.errors import BundleError
from edgegen.manifest import Variant
from edgegen.tensors import TensorSpec

MAX_MODEL_BYTES = 128 << 20  # weights are external: SmolLM2's graphs have 0.4 and 1.4 MB
MAX_FIELDS = 2_000_000  # two seconds of walking; SmolLM2's graphs have 15,000 and 26,000
MAX_DEPTH = 16
MAX_ELEMENTS = 1 << 40
MAX_RANK = 32

STANDARD_DOMAINS = (b"", b"ai.onnx")
MICROSOFT_OPERATORS = frozenset(
    b"""BiasGelu FastGelu FusedMatMul GatherBlockQuantized Gelu GroupQueryAttention MatMulNBits QuickGelu RotaryEmbedding
    SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization""".split()
)

ELEMENT_BITS = {  # TensorProto.DataType; strings (8) have none
    **dict.fromkeys((25, 26), 2),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
}
DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
_DTYPE_NAMES = {number: name for name, number in DTYPES.items()}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SINGULAR = frozenset({"one", "number", "float32"})
_WIRES = {
    "one": (_BYTES,),
    "many": (_BYTES,),
    "number": (_VARINT,),
    "numbers": (_VARINT, _BYTES),
    "float32": (_FIXED32,),
    "float32s": (_FIXED32, _BYTES),
    "float64s": (_FIXED64, _BYTES),
}


class _Message:
    """The fields of one message: wire tag -> bits. Bit 0: it is walked. Bit `field`: it is singular, and may stand once.

    one, many: fields with a length; number, numbers: integers; float32, float32s, float64s: what they say. A repeated number
    may come in one piece or one by one.
    """

    def __init__(self, name: str, walked: str, **fields: str) -> None:
        self.name = name
        self.tags: dict[int, int] = {}
        for kind, listed in fields.items():
            for field in listed.split():
                bits = (field in walked.split()) | (1 << int(field) if kind in _SINGULAR else 0)
                self.tags |= {int(field) << 3 | wire: bits for wire in _WIRES[kind]}


# Left out on purpose, and so refused: training graphs, sparse tensors (a few bytes become a dense terabyte), tensor segments.
_MODEL = _Message("model", "7 25", one="2 3 4 6 7", many="8 14 25 26", number="1 5")
_GRAPH = _Message("graph", "1 5 11 12", one="2 10", many="1 5 11 12 13 14 16")
_NODE = _Message("node", "4 5 7", one="3 4 6 7 8", many="1 2 5 9 10")
_ATTRIBUTE = _Message(
    "attribute", "5 6 10 11", one="1 4 5 6 13 14 21", many="9 10 11 15", number="3 20", numbers="8", float32="2", float32s="7"
)
_FUNCTION = _Message("function", "1 7 10 11", one="1 8 10 13", many="4 5 6 7 9 11 12 14")
_TENSOR = _Message(
    "tensor", "1 2 8 9 13 14", one="8 9 12", many="6 13 16", number="2 14", numbers="1 5 7 11", float32s="4", float64s="10"
)
_ENTRY = _Message("key-value pair", "1 2", one="1 2")
_VALUE = _Message("value", "1 2", one="1 2 3", many="4")
_TYPE = _Message("type", "1", one="1 6")
_TENSOR_TYPE = _Message("tensor type", "1", one="2", number="1")


Content = bytes | memoryview | mmap.mmap  # of a weights file


class ExternalTensor(NamedTuple):
    """A tensor of the graph whose bytes lie in a weights file: row-major, little-endian, and all of them within the file.

    name: of the initializer; None for a tensor that is no initializer of the outermost graph, which no one can name.
    dtype: numpy's name of it; None where it has none (4-bit integers, bfloat16) or where manifests do not use it.
    """

    name: str | None
    dtype: str | None
    shape: tuple[int, ...]
    location: str
    offset: int
    size_bytes: int


def check(model: bytes, weights_sizes: Mapping[str, int], variant: Variant) -> tuple[ExternalTensor, ...]:
    """Raise BundleError unless `model` is an ONNX file that is safe to hand to an inference library.

    Args:
        model: the whole file.
        weights_sizes: size in bytes of each external-data file, by the location that the graph may name.
        variant: what the manifest says of the graph; names and dtypes of inputs and outputs must agree.

    Returns:
        Every tensor whose bytes lie in a weights file.

    Raises:
        BundleError: damaged or truncated; an operator that onnxruntime does not itself bring (custom operators, EPContext);
            external data elsewhere than in `weights_sizes` or out of its range; absurd sizes; too deep; other inputs, outputs.
    """
    if len(model) > MAX_MODEL_BYTES:
        raise BundleError(
            f"{variant.path} has {len(model)} bytes; the most that is read is {MAX_MODEL_BYTES}: keep weights external"
        )
    if model[4:8] == b"ORTM":  # a flatbuffer to onnxruntime, whatever it is to protobuf
        raise BundleError(f"{variant.path} is in onnxruntime's own format; only ONNX is read")
    try:
        walk = _Walk(model, weights_sizes)
        walk.model(variant)
    except _DamageError as error:
        raise BundleError(f"{variant.path}: {error}") from None
    return tuple(walk.external)


class _DamageError(Exception):
    """What is wrong with the file, said without its path."""


class _Walk:
    def __init__(self, data: bytes, weights_sizes: Mapping[str, int]) -> None:
        self.data = data
        self.weights_sizes = {name.encode(): size for name, size in weights_sizes.items()}
        self.fields_left = MAX_FIELDS
        self.external: list[ExternalTensor] = []

    def model(self, variant: Variant) -> None:
        graphs = 0
        for number, start, stop in self._fields(0, len(self.data), _MODEL):
            if number == 7:
                graphs += 1
                self._graph(start, stop, 0, variant)
            elif number == 25:
                self._function(start, stop)
        if not graphs:
            raise _DamageError("there is no graph in it")

    def _graph(self, start: int, stop: int, depth: int, variant: Variant | None = None) -> None:
        if depth > MAX_DEPTH:
            raise _DamageError(f"graphs are nested deeper than {MAX_DEPTH}")
        values: dict[int, dict[bytes, int]] = {11: {}, 12: {}}
        tensors: set[bytes] = set()
        for number, first, last in self._fields(start, stop, _GRAPH):
            if number == 1:
                self._node(first, last, depth)
            elif number == 5:
                name = self._tensor(first, last, is_named=variant is not None)
                if name in tensors:
                    raise _DamageError(f"the initializer {_text(name)} stands twice")
                tensors.add(name)
            elif variant and number in values:
                name, dtype = self._value(first, last)
                values[number][name] = dtype
        if variant:
            _check_values("inputs", values[11], variant.inputs)
            _check_values("outputs", values[12], variant.outputs)

    def _function(self, start: int, stop: int) -> None:
        name = domain = b""
        for number, first, last in self._fields(start, stop, _FUNCTION):
            if number == 7:
                self._node(first, last, 0)
            elif number == 11:
                self._attribute(first, last, 0)
            elif number == 1:
                name = self.data[first:last]
            elif number == 10:
                domain = self.data[first:last]
        _check_operator(name, domain)

    def _node(self, start: int, stop: int, depth: int) -> None:
        operator = domain = b""
        for number, first, last in self._fields(start, stop, _NODE):
            if number == 5:
                self._attribute(first, last, depth)
            elif number == 4:
                operator = self.data[first:last]
            elif number == 7:
                domain = self.data[first:last]
        _check_operator(operator, domain)

    def _attribute(self, start: int, stop: int, depth: int) -> None:
        for number, first, last in self._fields(start, stop, _ATTRIBUTE):
            if number in (6, 11):
                self._graph(first, last, depth + 1)
            elif number in (5, 10):
                self._tensor(first, last)

    def _tensor(self, start: int, stop: int, *, is_named: bool = False) -> bytes:
        """Check a tensor; return its name."""
        name, raw_bytes = b"", -1
        shape: list[int] = []
        numbers = {2: 0, 14: 0}  # data type, data location
        entries: dict[bytes, bytes] = {}
        for number, first, last in self._fields(start, stop, _TENSOR):
            if number == 1:
                shape += [first] if last < 0 else self._packed(first, last)
            elif number in numbers:
                numbers[number] = first
            elif number == 8:
                name = self.data[first:last]
            elif number == 13:
                self._entry(first, last, entries)
            elif number == 9:
                raw_bytes = last - first
        elements = _elements(shape)
        dtype, location = numbers.values()
        if location > 1:  # protobuf would cut it to 32 bits, and might then read "external"
            raise _DamageError(f"a tensor has an unknown data location {location}")
        if location:
            self._check_external(entries, name if is_named else None, dtype, shape, elements)
        else:
            _check_inline(elements, dtype, raw_bytes, stop - start)
        return name

    def _packed(self, start: int, stop: int) -> Iterator[int]:
        while start < stop:
            value, start = self._varint(start, stop)
            self.fields_left -= 1
            if self.fields_left < 0:
                raise _DamageError(f"more than {MAX_FIELDS} fields")
            yield value

    def _entry(self, start: int, stop: int, entries: dict[bytes, bytes]) -> None:
        pair = {number: self.data[first:last] for number, first, last in self._fields(start, stop, _ENTRY)}
        key = pair.get(1, b"")
        if key not in (b"location", b"offset", b"length", b"checksum") or key in entries:
            raise _DamageError(f"external data has an unknown or repeated key {_text(key)}")
        entries[key] = pair.get(2, b"")

    def _check_external(
        self, entries: Mapping[bytes, bytes], name: bytes | None, dtype: int, shape: list[int], elements: int
    ) -> None:
        location = entries.get(b"location", b"")
        size = self.weights_sizes.get(location)
        if size is None:
            raise _DamageError(f"external data in {_text(location)}, which is not one of the graph's weight files")
        expected = _size_bytes(elements, dtype)
        offset = _decimal(entries.get(b"offset", b"0"))
        length = _decimal(entries.get(b"length", b"%d" % expected))
        if length != expected:
            raise _DamageError(f"external data of {length} bytes for a tensor of {expected} bytes")
        if offset + length > size:
            raise _DamageError(
                f"external data out of range: bytes {offset} to {offset + length} of {_text(location)}, which has {size}"
            )
        self.external.append(
            ExternalTensor(
                None if name is None else _utf8(name),
                _DTYPE_NAMES.get(dtype),
                tuple(shape),
                _utf8(location),
                offset,
                length,
            )
        )

    def _value(self, start: int, stop: int) -> tuple[bytes, int]:
        """Read the name and dtype of a graph's input or output."""
        name, dtype = b"", 0
        for number, first, last in self._fields(start, stop, _VALUE):
            if number == 1:
                name = self.data[first:last]
            elif number == 2:
                for _, begin, end in self._fields(first, last, _TYPE):
                    for _, value, _ in self._fields(begin, end, _TENSOR_TYPE):
                        dtype = value
        return name, dtype

    def _fields(self, start: int, stop: int, message: _Message) -> Iterator[tuple[int, int, int]]:
        """Yield (number, start, stop) of each walked field with a length, (number, value, -1) of each walked number."""
        data, tags, seen = self.data, message.tags, 0
        while start < stop:
            tag, start = (data[start], start + 1) if data[start] < 0x80 else self._varint(start, stop)
            bits = tags.get(tag)
            self.fields_left -= 1
            if bits is None or bits & seen or self.fields_left < 0:
                raise self._bad_field(message, tag, bits)
            seen |= bits & ~1
            wire = tag & 7
            if wire == _BYTES:
                size, start = (data[start], start + 1) if start < stop and data[start] < 0x80 else self._varint(start, stop)
                end, value, last = start + size, start, start + size
            elif wire == _VARINT:
                value, end = self._varint(start, stop)
                last = -1
            else:
                end = start + (4 if wire == _FIXED32 else 8)
            if end > stop:
                raise _DamageError(f"truncated {message.name}")
            if bits & 1:
                yield tag >> 3, value, last
            start = end

    def _bad_field(self, message: _Message, tag: int, bits: int | None) -> _DamageError:
        if bits is None:
            return _DamageError(f"unknown or mistyped field {tag >> 3} in a {message.name}")
        if self.fields_left < 0:
            return _DamageError(f"more than {MAX_FIELDS} fields")
        return _DamageError(f"field {tag >> 3} stands twice in a {message.name}")

    def _varint(self, start: int, stop: int) -> tuple[int, int]:
        """Read an unsigned number of 64 bits; return it and where it ends."""
        value = shift = 0
        for position in range(start, min(start + 10, stop)):
            byte = self.data[position]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
            shift += 7
        raise _DamageError("truncated or overlong number")


def _check_operator(operator: bytes, domain: bytes) -> None:
    if operator == b"EPContext":
        raise _DamageError("an EPContext node holds code for another machine; such graphs are refused")
    known = operator in MICROSOFT_OPERATORS if domain == b"com.microsoft" else domain in STANDARD_DOMAINS
    if not known:
        raise _DamageError(f"operator {_text(operator)} of domain {_text(domain)} is not allowed: custom operators are refused")


def _check_values(what: str, found: Mapping[bytes, int], specs: tuple[TensorSpec, ...]) -> None:
    stated = {spec.name.encode(): DTYPES[spec.dtype] for spec in specs}
    if found != stated:
        differing = sorted(name for name in found.keys() | stated.keys() if found.get(name) != stated.get(name))
        raise _DamageError(f"its {what} are not those of the manifest: {', '.join(map(_text, differing[:3]))} differ(s)")


def _check_inline(elements: int, dtype: int, raw_bytes: int, message_bytes: int) -> None:
    if raw_bytes >= 0 and raw_bytes != _size_bytes(elements, dtype):
        raise _DamageError(f"a tensor of {elements} elements has {raw_bytes} bytes")
    if raw_bytes < 0 and elements > 4 * message_bytes:  # 2-bit numbers are the smallest: four in a byte
        raise _DamageError(f"a tensor of {elements} elements lies in {message_bytes} bytes")


def _elements(shape: list[int]) -> int:
    elements = 1
    for size in shape:
        elements *= size
        if size > MAX_ELEMENTS or elements > MAX_ELEMENTS:  # a negative size is a huge varint
            raise _DamageError(f"a tensor has an absurd axis size: {size}")
    if len(shape) > MAX_RANK:
        raise _DamageError(f"a tensor has {len(shape)} axes; at most {MAX_RANK} are read")
    return elements


def _size_bytes(elements: int, dtype: int) -> int:
    bits = ELEMENT_BITS.get(dtype)
    if bits is None:
        raise _DamageError(f"a tensor of type {dtype} cannot be stored as bytes")
    return (elements * bits + 7) // 8


def _decimal(text: bytes) -> int:
    # The bound on the length keeps the number below 2**64, and int() fast.
    if not text.isdigit() or len(text) > 19:
        raise _DamageError(f"external data: {_text(text)} is not an offset or length")
    return int(text)


def _utf8(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise _DamageError(f"the name {_text(name)} is not UTF-8") from None


def _text(name: bytes) -> str:
    """Quote a name that a stranger chose: escaped, and never longer than a line."""
    return repr(name[:60].decode(errors="backslashreplace"))
