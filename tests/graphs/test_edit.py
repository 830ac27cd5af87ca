"""Edits of a serialized graph: held to what the onnx package reads."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgegen.errors import BackendError
from edgegen.graphs.edit import with_sizes, with_weights, without_defaults
from edgegen.graphs.walk import ExternalTensor

DTYPES = ["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]


def model(initializers: list[onnx.TensorProto], nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "cache", 3])
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "cache", 3])
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["cache", 3])
    graph = helper.make_graph(nodes or [helper.make_node("Mul", ["x", "scale"], ["y"])], "g", [x, scale], [y], initializers)
    graph.value_info.append(inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])


def axes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_named_axes_get_their_size_everywhere_and_nothing_else_changes():
    original = model([])
    changed = onnx.load_model_from_string(with_sizes(original.SerializeToString(), {"cache": 300, "none": 1}))
    graph = changed.graph
    assert axes(graph.input[0]) == axes(graph.output[0]) == ["batch", 300, 3]
    assert axes(graph.value_info[0]) == [300, 3]
    assert axes(graph.input[1]) == []
    for value in (graph.input[0], graph.output[0], graph.value_info[0]):
        value.type.tensor_type.shape.dim[-2].dim_param = "cache"
    assert changed == original


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_raw", [True, False])
def test_a_default_is_taken_out_and_returned(dtype, is_raw):
    value = np.array(1).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    default = numpy_helper.from_array(value, "scale") if is_raw else helper.make_tensor("scale", kind, (), [1])
    other = numpy_helper.from_array(np.ones(3, np.float32), "weight")
    changed, defaults = without_defaults(model([default, other]).SerializeToString())
    assert [tensor.name for tensor in onnx.load_model_from_string(changed).graph.initializer] == ["weight"]
    assert list(defaults) == ["scale"]
    np.testing.assert_array_equal(defaults["scale"], value)
    assert defaults["scale"].dtype == value.dtype


def test_a_default_of_several_numbers_keeps_its_shape():
    value = np.array([[1.5, -2.0]], np.float32)
    packed = helper.make_tensor("scale", TensorProto.FLOAT, (1, 2), value.ravel().tolist())
    np.testing.assert_array_equal(without_defaults(model([packed]).SerializeToString())[1]["scale"], value)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.INT4])
def test_a_default_that_cannot_be_read_is_said(kind):
    tensor = TensorProto(name="scale", data_type=kind, raw_data=b"\0\0")
    with pytest.raises(BackendError, match="default of input 'scale' cannot be read"):
        without_defaults(model([tensor]).SerializeToString())


def external(name: str | None, size: int, offset: int = 0) -> ExternalTensor:
    return ExternalTensor(name, "float32", (size // 4,), "g.weights", offset, size)


def outside(name: str, size: int, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[size // 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "g.weights"), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_weights_are_put_into_the_graph():
    values = np.arange(10, dtype=np.float32)
    original = model([outside("a", 8, 0), outside("b", 12, 16), numpy_helper.from_array(np.ones(2), "c")])
    whole = with_weights(
        original.SerializeToString(), [external("a", 8), external("b", 12, 16)], {"g.weights": memoryview(values).cast("B")}
    )
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_model_from_string(whole).graph.initializer}
    np.testing.assert_array_equal(found["a"], values[:2])
    np.testing.assert_array_equal(found["b"], values[4:7])
    np.testing.assert_array_equal(found["c"], np.ones(2))


def test_more_weights_than_protobuf_reads_are_refused():
    with pytest.raises(BackendError, match="at most 2 GiB; these make 2048 MiB"):
        with_weights(b"", [external("a", 1 << 31)], {})


def test_weights_of_an_inner_graph_are_refused():
    with pytest.raises(BackendError, match="inner graph"):
        with_weights(b"", [external(None, 8)], {})
