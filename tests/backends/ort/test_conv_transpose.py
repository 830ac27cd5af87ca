"""The kernels' transposed convolution against onnxruntime's own, whose meaning it must have."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

from edgegen.backends.ort import kernels as own

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
DOMAIN = "ai.edgegen.v1"
# Sums of up to 64 * 36 products of float32, added in another order: errors stay below 1e-6 of the largest output here.
TOLERANCE = 1e-5

pytestmark = pytest.mark.skipif(own.kernels() is None, reason="no kernels on this machine")


class Layer(NamedTuple):
    """A transposed convolution: [inputs, outputs], and the rest by height and width."""

    inputs: int
    outputs: int
    kernel: tuple[int, int] = (4, 4)
    stride: tuple[int, int] = (2, 2)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, left, bottom, right
    more: tuple[int, int] = (0, 0)
    has_bias: bool = True

    def constants(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        weights = rng.standard_normal((self.inputs, self.outputs, *self.kernel)).astype(np.float32)
        return {"W": weights} | ({"B": rng.standard_normal(self.outputs).astype(np.float32)} if self.has_bias else {})

    def theirs(self):
        return helper.make_node(
            "ConvTranspose", ["x", *self.constants()], ["y"], strides=self.stride, pads=self.pads, output_padding=self.more
        )

    def ours(self, **changed):
        names = ("stride_h", "stride_w", "pad_top", "pad_left", "pad_bottom", "pad_right", "out_pad_h", "out_pad_w")
        attributes = dict(zip(names, (*self.stride, *self.pads, *self.more), strict=True)) | changed
        return helper.make_node("ConvTranspose", ["x", *self.constants()], ["y"], domain=DOMAIN, **attributes)

    def session(self, nodes, threads: int = 2, constants=None):
        values = [helper.make_tensor_value_info("x", FLOAT, None), helper.make_tensor_value_info("y", FLOAT, None)]
        initializers = [numpy_helper.from_array(a, name) for name, a in (constants or self.constants()).items()]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.register_custom_ops_library(str(own.kernels().path))
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def image(batch: int, layer: Layer, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, layer.inputs, height, width)).astype(np.float32)


def gap(layer: Layer, x: np.ndarray) -> float:
    """The largest difference to onnxruntime's, as a part of the largest output."""
    expected = layer.session([layer.theirs()]).run(None, {"x": x})[0]
    found = layer.session([layer.ours()]).run(None, {"x": x})[0]
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def choose(name: str) -> int:
    """Let the whole process use an instruction set; 0 where this machine has not got it."""
    return ctypes.CDLL(str(own.kernels().path)).edgegen_kernels_choose(name.encode()) if own.kernels() else 0


@pytest.fixture(params=[name for name in ("avx512vnni", "avx2", "neon") if choose(name)] or ["none"])
def instructions(request):
    """Each instruction set of this machine in turn."""
    choose(request.param)
    yield request.param
    choose(own.kernels().instructions)


if own.kernels():
    choose(own.kernels().instructions)


@pytest.mark.parametrize("outputs", [1, 3, 8, 9, 16, 17, 64, 130])
@pytest.mark.parametrize("inputs", [1, 5, 64])
def test_channels_of_any_number(instructions, inputs, outputs):
    layer = Layer(inputs, outputs)
    assert gap(layer, image(2, layer, 5, 9)) < TOLERANCE


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (4, 4), (7, 3), (8, 8), (5, 13), (3, 17), (2, 40)])
@pytest.mark.parametrize("outputs", [3, 24, 40])
def test_images_of_any_size(instructions, size, outputs):
    layer = Layer(6, outputs)
    for batch in (1, 3):
        assert gap(layer, image(batch, layer, *size)) < TOLERANCE


GEOMETRIES = [
    Layer(5, 20, (3, 3), (1, 1), (1, 1, 1, 1)),
    Layer(5, 20, (2, 5), (1, 3), (0, 0, 1, 2)),
    Layer(5, 20, (6, 6), (4, 3), (2, 0, 1, 3)),
    Layer(5, 20, (3, 3), (2, 2), (0, 0, 0, 0)),
    Layer(5, 20, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    Layer(5, 20, (5, 4), (3, 4), (0, 1, 2, 0), (2, 3)),
    Layer(5, 20, (2, 1), (3, 4), (0, 0, 0, 0), (1, 2)),  # a kernel smaller than the stride: pixels of nothing but the bias
    Layer(5, 20, (5, 5), (1, 1), (4, 4, 4, 4)),  # cropped as far as a kernel goes
    Layer(5, 20, (3, 3), (1, 1), (3, 2, 0, 4)),  # and further
    Layer(5, 20, (4, 4), (2, 2), (1, 1, 1, 1), has_bias=False),
    Layer(5, 20, (4, 4), (4, 4), (0, 0, 0, 0)),
]


@pytest.mark.parametrize("layer", GEOMETRIES, ids=str)
@pytest.mark.parametrize("outputs", [2, 20])
def test_kernels_strides_and_paddings_of_any_kind(instructions, layer, outputs):
    layer = layer._replace(outputs=outputs)
    for size in ((5, 6), (8, 5)):
        assert gap(layer, image(2, layer, *size)) < TOLERANCE


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 2, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_single_pixel_becomes_an_image(instructions, batch, stride, pads):
    layer = Layer(100, 48, stride=stride, pads=pads, more=(0, stride[1] - 1))
    assert gap(layer, image(batch, layer, 1, 1)) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 4])
def test_threads_share_the_work_of_large_images(instructions, batch):
    layer = Layer(24, 70)
    x = image(batch, layer, 24, 31)
    assert gap(layer, x) < TOLERANCE
    alone, together = (layer.session([layer.ours()], threads).run(None, {"x": x})[0] for threads in (1, 3))
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("outputs", [3, 40])
@pytest.mark.parametrize(("number", "name", "form"), [(1, "Relu", {}), (2, "LeakyRelu", {"alpha": 0.2}), (3, "Tanh", {})])
def test_an_activation_follows(instructions, number, name, form, outputs):
    layer = Layer(7, outputs)
    x = image(2, layer, 6, 9) / 4
    nodes = [layer.theirs(), helper.make_node(name, ["y"], ["z"], **form), helper.make_node("Identity", ["z"], ["out"])]
    nodes[0].output[0], nodes[1].input[0], nodes[2].output[0] = "pre", "pre", "y"
    expected = layer.session(nodes).run(None, {"x": x})[0]
    found = layer.session([layer.ours(activation=number, **form)]).run(None, {"x": x})[0]
    # Tanh comes from an exponential, whose error is below 1e-6 of 1.
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


def test_one_session_serves_several_threads_and_sizes_at_once(instructions):
    layer = Layer(16, 40)
    ours, theirs = layer.session([layer.ours()]), layer.session([layer.theirs()])
    inputs = [image(1 + i % 3, layer, 3 + i % 5, 11 - i % 7) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: ours.run(None, {"x": x})[0], inputs))
    for x, y in zip(inputs, found, strict=True):
        expected = theirs.run(None, {"x": x})[0]
        assert np.abs(y - expected).max() < TOLERANCE * np.abs(expected).max()


def test_what_is_not_a_number_stays_where_it_belongs(instructions):
    layer = Layer(4, 20)
    x = image(2, layer, 5, 6)
    session = layer.session([layer.ours()])
    clean = session.run(None, {"x": x})[0]
    x[0, 2, 4, 5] = np.nan
    marked = session.run(None, {"x": x})[0]
    reached = np.zeros_like(clean, bool)
    reached[0, :, 7:, 9:] = True  # the kernel's 4 x 4 pixels around (8, 10), of which the last row and column are cropped
    np.testing.assert_array_equal(np.isnan(marked), reached)
    np.testing.assert_array_equal(marked[~reached], clean[~reached])


def test_an_empty_batch_gives_an_empty_answer(instructions):
    layer = Layer(4, 20)
    assert layer.session([layer.ours()]).run(None, {"x": image(0, layer, 5, 6)})[0].shape == (0, 20, 10, 12)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"stride_h": 0}, "an attribute is out of its range"),
        ({"stride_w": 17}, "an attribute is out of its range"),
        ({"pad_left": -1}, "an attribute is out of its range"),
        ({"pad_left": 2**40}, "an attribute is out of its range"),
        ({"activation": 4}, "an attribute is out of its range"),
    ],
    ids=str,
)
def test_attributes_that_make_no_sense_are_refused(form, message):
    layer = Layer(4, 20)
    with pytest.raises(Exception, match=message):
        layer.session([layer.ours(**form)])


@pytest.mark.parametrize("shape", [(3, 20, 4), (4, 20, 65, 1)], ids=str)
def test_weights_of_another_form_are_refused(shape):
    layer = Layer(4, 20)
    with pytest.raises(Exception, match="weights must be"):
        layer.session([layer.ours()], constants={"W": np.ones(shape, np.float32), "B": np.ones(20, np.float32)})


@pytest.mark.parametrize(
    ("shape", "form", "message"),
    [
        ((1, 5, 4, 4), {}, "does not have the channels"),
        ((1, 4, 4), {}, "does not have the channels"),
        ((1, 4, 0, 4), {}, "the input is empty or too large"),
        ((1, 4, 4, 4), {"pad_top": 10}, "the output is empty or too large"),
        ((1, 4, 2**20, 1), {}, "the output is empty or too large"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_refused(shape, form, message):
    layer = Layer(4, 20)
    session = layer.session([layer.ours(**form)])
    with pytest.raises(Exception, match=message):
        session.run(None, {"x": np.zeros(shape, np.float32)})


def test_a_bias_of_another_size_is_refused():
    layer = Layer(4, 20)
    session = layer.session([layer.ours()], constants=layer.constants() | {"B": np.ones(19, np.float32)})
    with pytest.raises(Exception, match="the bias does not fit"):
        session.run(None, {"x": image(1, layer, 4, 4)})
