"""Shapes of all values, held to what onnxruntime gives when it runs the same node."""

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import forms, graph, node
from onnx import helper, numpy_helper

from edgegen.graphs.nodes import read
from edgegen.planner.shapes import Form, evaluate, infer

F = np.float32
I = np.int64  # noqa: E741


def a(*shape):
    return np.zeros(shape, F)


def ints(*values):
    return np.array(values, I)


CASES = {  # a node of one operator: its inputs (constants are those that are not float), attributes, count of outputs
    "Relu": ([a(2, 3)], {}, 1),
    "Add of unlike ranks": ([a(2, 1, 4), a(3, 1)], {}, 1),
    "Where": ([np.zeros((2, 1), bool), a(3), a(1, 1)], {}, 1),
    "Less": ([a(2, 1), a(3)], {}, 1),
    "Cast": ([a(2)], {"to": 7}, 1),
    "MatMul": ([a(5, 2, 3), a(3, 4)], {}, 1),
    "MatMul of a vector": ([a(3), a(3, 4)], {}, 1),
    "Gemm": ([a(3, 2), a(4, 3), a(4)], {"transA": 1, "transB": 1}, 1),
    "Conv": ([a(2, 4, 9, 8), a(6, 4, 3, 3)], {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2]}, 1),
    "Conv in groups": ([a(1, 4, 5, 5), a(4, 1, 3, 3)], {"group": 4, "auto_pad": "SAME_UPPER"}, 1),
    "Conv of one axis": ([a(1, 4, 9), a(6, 4, 3)], {"pads": [1, 1]}, 1),
    "ConvTranspose": ([a(2, 4, 5, 6), a(4, 3, 4, 4)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}, 1),
    "ConvTranspose with more": ([a(1, 4, 5, 5), a(4, 3, 3, 3)], {"strides": [2, 2], "output_padding": [1, 1]}, 1),
    "MaxPool": ([a(1, 2, 7, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 1),
    "AveragePool up": ([a(1, 2, 6, 6)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 1),
    "GlobalAveragePool": ([a(2, 3, 4, 5)], {}, 1),
    "LayerNormalization": ([a(2, 3, 4), a(4)], {"axis": -1}, 3),
    "RMSNormalization": ([a(2, 3, 4), a(4)], {}, 1),
    "GroupNormalization": ([a(2, 4, 3, 3), a(4), a(4)], {"num_groups": 2}, 1),
    "Reshape": ([a(2, 3, 4), ints(0, -1)], {}, 1),
    "Reshape to nothing": ([a(0, 3), ints(0, 3)], {"allowzero": 1}, 1),
    "Squeeze": ([a(1, 3, 1), ints(-1)], {}, 1),
    "Squeeze of all": ([a(1, 3, 1)], {}, 1),
    "Unsqueeze": ([a(3, 4), ints(0, -1)], {}, 1),
    "Flatten": ([a(2, 3, 4)], {"axis": 2}, 1),
    "Transpose": ([a(2, 3, 4)], {"perm": [2, 0, 1]}, 1),
    "Transpose of all": ([a(2, 3, 4)], {}, 1),
    "Concat": ([a(2, 3), a(2, 5)], {"axis": -1}, 1),
    "Split": ([a(7, 2)], {"num_outputs": 3, "axis": 0}, 3),
    "Split by sizes": ([a(7, 2), ints(1, 6)], {}, 2),
    "Slice": ([a(9, 8), ints(1, -1), ints(-1, -(1 << 63)), ints(0, 1), ints(3, -2)], {}, 1),
    "Gather": ([a(5, 4), np.zeros((2, 3), I)], {"axis": 1}, 1),
    "GatherND": ([a(5, 4, 3), np.zeros((7, 2), I)], {}, 1),
    "GatherElements": ([a(5, 4), np.zeros((2, 4), I)], {}, 1),
    "Expand": ([a(3, 1), ints(2, 1, 4)], {}, 1),
    "Tile": ([a(3, 2), ints(2, 3)], {}, 1),
    "Pad": ([a(3, 4), ints(1, 2, 0, 1)], {}, 1),
    "Range": ([ints(2)[0], ints(9)[0], ints(3)[0]], {}, 1),
    "ReduceMean": ([a(2, 3, 4), ints(1)], {"keepdims": 0}, 1),
    "ReduceSum of all": ([a(2, 3)], {}, 1),
    "ArgMax": ([a(2, 3)], {"axis": 1, "keepdims": 0}, 1),
    "TopK": ([a(2, 9), ints(4)], {}, 2),
    "Resize by scales": ([a(1, 2, 3, 5), a(0), np.array([1, 1, 2, 1.5], F)], {"mode": "nearest"}, 1),
    "Resize to sizes": ([a(1, 2, 3, 5), a(0), a(0), ints(1, 2, 7, 9)], {"mode": "nearest"}, 1),
    "DepthToSpace": ([a(1, 8, 3, 5)], {"blocksize": 2}, 1),
    "SpaceToDepth": ([a(1, 2, 6, 4)], {"blocksize": 2}, 1),
    "Einsum": ([a(2, 3), a(3, 4)], {"equation": "ij, jk -> ki"}, 1),
    "ConstantOfShape": ([ints(2, 3)], {}, 1),
    "Shape": ([a(2, 3, 4)], {"start": 1}, 1),
    "Size": ([a(2, 3)], {}, 1),
    "Attention": ([a(2, 4, 5, 8), a(2, 2, 7, 8), a(2, 2, 7, 6)], {}, 1),
    "Attention in rows": ([a(2, 5, 32), a(2, 7, 16), a(2, 7, 16)], {"q_num_heads": 4, "kv_num_heads": 2}, 1),
    "RotaryEmbedding": ([a(1, 2, 3, 8), a(9, 4), a(9, 4), np.zeros((1, 3), I)], {}, 1),
    "TensorScatter": ([a(1, 2, 9, 4), a(1, 2, 3, 4), ints(0)], {"axis": 2}, 1),
    "DequantizeLinear": ([np.zeros((4, 8), np.int8), a(4)], {"axis": 0}, 1),
}


def model(operator, inputs, attributes, count, domain=""):
    """An ONNX model of that node: float inputs are fed, all others are constants."""
    names = [f"in{place}" if np.size(array) or operator != "Resize" else "" for place, array in enumerate(inputs)]
    outputs = [f"out{place}" for place in range(count)]
    fed = [name for name, array in zip(names, inputs, strict=True) if name and array.dtype == F and np.ndim(array) > 1]
    values = [helper.make_tensor_value_info(name, 1, inputs[names.index(name)].shape) for name in fed]
    constants = [
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in zip(names, inputs, strict=True)
        if name and name not in fed
    ]
    nodes = [helper.make_node(operator, names, outputs, domain=domain, **attributes)]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_graph(nodes, "one", values, [onnx.ValueInfoProto(name=name) for name in outputs], constants)
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString(), {
        name: inputs[names.index(name)] for name in fed
    }


@pytest.mark.parametrize("case", CASES)
def test_a_rule_gives_the_shape_that_onnxruntime_gives(case):
    serialized, feed = model(case.split()[0], *CASES[case])
    wanted = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"]).run(None, feed)
    given = {name.encode(): Form(1, array.shape) for name, array in feed.items()}
    found = infer(read(serialized), given, {})
    assert found.unknown == ()
    for place, array in enumerate(wanted):
        form = found.forms[b"out%d" % place]
        assert (form.shape, form.dtype) == (array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))


def test_a_shape_that_the_graph_computes_is_followed():
    cut = graph(
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "rows", axis=0),
        node("Mul", "rows two", "twice"),
        node("Concat", "twice rest", "wanted", axis=0),
        node("Reshape", "x wanted", "y"),
        constants={"zero": ((1,), (0,)), "two": ((1,), (2,)), "rest": ((1,), (-1,))},
    )
    assert infer(cut, forms(x=(3, 4)), {}).forms[b"y"].shape == (6, 2)


def test_a_range_up_to_the_ones_of_a_mask_is_as_long_as_the_mask():
    counted = graph(
        node("ReduceSum", "mask", "total", keepdims=0),
        node("Range", "zero total one", "places"),
        constants={"zero": ((), (0,)), "one": ((), (1,))},
    )
    inputs = {b"mask": Form(7, (1, 5))}
    assert infer(counted, inputs, {}, {b"mask": np.ones((1, 5), I)}).forms[b"places"].shape == (5,)
    assert infer(counted, inputs, {}).unknown == (b"places",)


def test_what_is_not_known_is_counted_and_so_is_all_that_follows_from_it():
    strange = graph(node("Strange", "x", "y"), node("Relu", "y", "z"), node("Relu", "x", "w"))
    found = infer(strange, forms(x=(2,)), {})
    assert found.unknown == (b"y", b"z")
    assert found.forms[b"w"].shape == (2,)


def test_what_the_file_says_stands_in_for_an_unknown_operator():
    strange = graph(node("Strange", "x", "y"), shapes={"y": (b"2*batch*h", 3)})
    assert infer(strange, forms(x=(2,)), {"batch": 2, "h": 5}).forms[b"y"].shape == (20, 3)


def test_a_shape_that_was_lost_is_not_taken_for_a_scalar():
    assert infer(graph(node("Strange", "x", "y"), shapes={"y": ()}), forms(x=(2,)), {}).unknown == (b"y",)


@pytest.mark.parametrize(("text", "size"), [("h", 4), ("2*batch*h", 24), ("h // 2 + 1", 3), ("7", 7)])
def test_a_name_of_an_axis_may_be_a_sum_or_a_product(text, size):
    assert evaluate(text, {"batch": 3, "h": 4}) == size


@pytest.mark.parametrize("text", ["h**9", "__import__('os')", "h(", "", "h.real", "1.5"])
def test_nothing_else_is_evaluated(text):
    with pytest.raises((ValueError, KeyError)):
        evaluate(text, {"h": 4})


def test_a_packed_element_takes_its_bits():
    assert Form(22, (3, 5)).size_bytes == 8  # int4: 15 halves of a byte
    assert Form(10, (3, 5)).size_bytes == 30


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", [onnx.TensorProto.INT64, onnx.TensorProto.INT32])
def test_a_constant_is_read_however_its_numbers_are_written(raw, dtype):
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    values = np.array([4, -1], kind)
    constant = helper.make_tensor("shape", dtype, (2,), values.tobytes() if raw else values.tolist(), raw=raw)
    made = helper.make_graph([], "one", [], [], [constant])
    found = read(helper.make_model(made).SerializeToString()).constants[b"shape"]
    assert found == (dtype, (2,), (4, -1))


def test_a_long_constant_is_left_in_the_file():
    constant = numpy_helper.from_array(np.zeros(1000, I), "long")
    found = read(helper.make_model(helper.make_graph([], "one", [], [], [constant])).SerializeToString())
    assert found.constants[b"long"] == (7, (1000,), None)
