"""Changes to a serialized ONNX graph that TensorRT's parser needs, without the onnx package.

Only what `edgegen.graphs.walk.check` has passed comes here. The messages: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from edgegen.errors import BackendError
from edgegen.graphs.walk import Content, ExternalTensor
from edgegen.graphs.wire import Edit, edited, fields, inner, integers, message, number, numbers, texts
from edgegen.tensors import Tensor

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT = 5, 11
_GRAPH_VALUES = (11, 12, 13)  # inputs, outputs, and what is known of other values
_AXIS_PATH = (1, 2, 1, 2)  # an axis, in a shape, in a tensor_type, in a type: from the inside out
_TENSOR_INT32S, _TENSOR_INT64S, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 5, 7, 4, 8, 9
_TENSOR_ENTRIES, _TENSOR_PLACE = 13, 14  # external data: what says where, and that it is external
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}  # TensorProto.DataType
_MAX_MESSAGE_BYTES = (1 << 31) - 1  # protobuf reads no longer message


def with_sizes(model: bytes, sizes: Mapping[str, int]) -> bytes:
    """The model with named axes of inputs, outputs and other values replaced by fixed sizes."""
    encoded = {name.encode(): number(1, size) for name, size in sizes.items()}

    def axis(data: bytes, start: int, stop: int) -> bytes:
        name = dict(texts(data, start, stop)).get(2, b"")
        return encoded.get(name, data[start:stop])

    value: Edit = axis
    for field in _AXIS_PATH:
        value = _inside(value, field)
    return _edit_graph(model, dict.fromkeys(_GRAPH_VALUES, value))


def without_defaults(model: bytes) -> tuple[bytes, dict[str, Tensor]]:
    """The model whose inputs have no default any more, and the defaults that they had.

    An initializer with the name of an input is that input's default. TensorRT's parser takes it for a constant instead: such
    an input would silently be none.
    """
    names = {
        dict(texts(model, first, last)).get(1, b"")
        for start, stop in inner(model, 0, len(model), (_MODEL_GRAPH,))
        for field, _, first, last in fields(model, start, stop)
        if field == _GRAPH_INPUT
    }
    defaults: dict[str, Tensor] = {}

    def drop(data: bytes, start: int, stop: int) -> bytes | None:
        name = _name(data, start, stop)
        if name not in names:
            return data[start:stop]
        defaults[name.decode()] = _tensor(data, start, stop)
        return None

    return _edit_graph(model, {_GRAPH_INITIALIZER: drop}), defaults


def with_weights(model: bytes, external: Sequence[ExternalTensor], weights: Mapping[str, Content]) -> bytes:
    """The model with the values of its initializers in it, for a parser that takes them from nowhere else but files.

    Raises BackendError where that makes more than 2 GiB, which protobuf does not read, or where a tensor has no name.
    """
    check_named(external)
    size_bytes = len(model) + sum(tensor.size_bytes for tensor in external)
    if size_bytes > _MAX_MESSAGE_BYTES:
        raise BackendError(
            f"this TensorRT reads weights only within the graph, at most 2 GiB; these make {size_bytes >> 20} MiB: "
            "export in a lower precision, or update TensorRT to 10.13 or newer"
        )
    values = {str(tensor.name).encode(): content_of(tensor, weights) for tensor in external}

    def fill(data: bytes, start: int, stop: int) -> bytes:
        value = values.get(_name(data, start, stop))
        if value is None:
            return data[start:stop]
        kept = edited(data, start, stop, {_TENSOR_ENTRIES: lambda *_: None})
        return kept + number(_TENSOR_PLACE, 0) + message(_TENSOR_RAW, value)  # of a number that stands twice, the last counts

    return _edit_graph(model, {_GRAPH_INITIALIZER: fill})


def check_named(external: Sequence[ExternalTensor]) -> None:
    """Raise BackendError where weights of an inner graph lie outside: no parser can be told which ones they are."""
    if any(tensor.name is None for tensor in external):
        raise BackendError(
            "weights of an inner graph (If, Loop, Scan) lie outside the graph; TensorRT cannot take these from memory"
        )


def content_of(tensor: ExternalTensor, weights: Mapping[str, Content]) -> memoryview:
    """The bytes of a tensor, where they lie."""
    return memoryview(weights[tensor.location])[tensor.offset : tensor.offset + tensor.size_bytes]


def _inside(edit: Edit, field: int) -> Edit:
    """An edit of a message that edits `field` within it."""
    return lambda data, start, stop: edited(data, start, stop, {field: edit})


def _edit_graph(model: bytes, edits: Mapping[int, Edit]) -> bytes:
    return edited(model, 0, len(model), {_MODEL_GRAPH: lambda data, start, stop: edited(data, start, stop, edits)})


def _name(data: bytes, start: int, stop: int) -> bytes:
    return next((data[first:last] for field, _, first, last in fields(data, start, stop) if field == _TENSOR_NAME), b"")


def _tensor(data: bytes, start: int, stop: int) -> Tensor:
    """The value of a TensorProto. BackendError for external data or a dtype that no input has."""
    said = dict(numbers(data, start, stop))
    dtype, name = _DTYPES.get(said.get(2, 0)), _name(data, start, stop).decode()
    if dtype is None or said.get(_TENSOR_PLACE):
        raise BackendError(f"the default of input {name!r} cannot be read; export the bundle again")
    shape = tuple(integers(data, start, stop, 1))
    pieces = {field: data[first:last] for field, _, first, last in fields(data, start, stop) if last >= 0}
    if _TENSOR_RAW in pieces or _TENSOR_FLOATS in pieces:
        flat = np.frombuffer(pieces.get(_TENSOR_RAW, pieces.get(_TENSOR_FLOATS, b"")), dtype)
    else:
        found = list(integers(data, start, stop, _TENSOR_INT64S if dtype == "int64" else _TENSOR_INT32S))
        flat = np.array(found, np.uint16).view(dtype) if dtype == "float16" else np.array(found, dtype)
    return flat.reshape(shape)
