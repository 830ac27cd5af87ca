"""An image model's graph with edgegen's kernels and without: the same answers, whatever was made part of a kernel's node."""

import ctypes

import numpy as np
import pytest

from edgegen.backends.ort import kernels as own
from edgegen.backends.ort.kernel_nodes import exchange
from edgegen.backends.ort.session import OrtSession
from edgegen.manifest import Variant
from edgegen.tensors import Axis, TensorSpec

onnx = pytest.importorskip("onnx")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
pytestmark = pytest.mark.skipif(own.kernels() is None, reason="no kernels on this machine")
# Sums of up to 9 * 64 products of float32 in another order; the points of the filters cost about five roundings more.
TOLERANCE = 3e-5
node = helper.make_node


def graph(nodes, constants, channels, *, outputs=("y",), shape=("n", "c", "h", "w"), shapes=None, opset=21) -> bytes:
    """A model with one input x; `shapes` are those of inner values."""
    values = [helper.make_tensor_value_info(name, FLOAT, list(axes)) for name, axes in (shapes or {}).items()]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", channels, *shape[2:]])],
        [helper.make_tensor_value_info(name, FLOAT, [f"{name}{i}" for i in range(4)]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=values,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def operators(model: bytes) -> list[str]:
    found = onnx.load_model_from_string(exchange(model, {})[0]).graph.node
    return [("own " if one.domain else "") + one.op_type for one in found]


def differ(model: bytes, x: np.ndarray, monkeypatch, outputs=("y",)) -> float:
    """How far the answers are apart, kernels on and off, beside the largest."""
    free = ("a", "b", "c", "d")
    axes = dict.fromkeys(free, Axis(1, 1, 4096))
    specs = [TensorSpec("x", "float32", free)], [TensorSpec(name, "float32", free) for name in outputs]
    variant = Variant(path="graphs/g.onnx", weights=(), inputs=tuple(specs[0]), outputs=tuple(specs[1]))
    with OrtSession(model, {}, variant, axes, threads=2) as session:
        assert session.kernels
        ours = {name: array.copy() for name, array in session.run({"x": x}).items()}
    monkeypatch.setattr("edgegen.backends.ort.create.kernels", lambda: None)
    with OrtSession(model, {}, variant, axes, threads=2) as session:
        theirs = session.run({"x": x})
        return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in outputs)


@pytest.fixture(params=["avx512vnni", "avx2", "neon"])
def instructions(request):
    """Each instruction set of this machine: the choice belongs to the process, and what runs takes what is chosen then."""
    choose = ctypes.CDLL(str(own.kernels().path)).edgegen_kernels_choose
    choose.restype = ctypes.c_char_p
    if not choose(request.param.encode()):
        pytest.skip(f"no {request.param} here")
    yield
    choose(own.kernels().instructions.encode())


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filters(outputs: int, inputs: int) -> dict[str, np.ndarray]:
    return {"w": images(outputs, inputs, 3, 3, seed=1) / np.float32(np.sqrt(9 * inputs)), "b": images(outputs, seed=2)}


@pytest.mark.parametrize("size", [(1, 16, 16), (2, 32, 32), (1, 13, 70), (3, 5, 129), (1, 128, 36), (1, 1, 1), (9, 20, 9)])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 2, 1, 0)])
def test_a_convolution_of_3_by_3_is_what_onnxruntime_computes(size, pads, instructions, monkeypatch):
    batch, height, width = size
    if min(height + pads[0] + pads[2], width + pads[1] + pads[3]) < 3:
        pytest.skip("smaller than the filter")
    model = graph([node("Conv", ["x", "w", "b"], ["y"], pads=pads)], filters(17, 24), 24)
    assert operators(model) == ["own Conv"]
    assert differ(model, images(batch, 24, height, width), monkeypatch) < TOLERANCE


def test_a_sum_and_an_activation_become_part_of_the_convolution(instructions, monkeypatch):
    shapes = dict.fromkeys(("first", "second"), ("n", 64, "h", "w"))
    nodes = [
        node("Conv", ["x", "w", "b"], ["first"], pads=(1, 1, 1, 1)),
        node("Conv", ["first", "w", "b"], ["second"], pads=(1, 1, 1, 1)),
        node("Add", ["first", "second"], ["sum"]),
        node("LeakyRelu", ["sum"], ["y"], alpha=0.2),
    ]
    model = graph(nodes, filters(64, 64), 64, shapes=shapes)
    assert operators(model) == ["own Conv", "own Conv"]
    assert differ(model, images(2, 64, 30, 41), monkeypatch) < TOLERANCE


def test_what_is_added_in_another_shape_stays_a_sum_of_its_own():
    shapes = {"first": ("n", 16, "h", "w"), "one": (1, 16, 1, 1)}
    nodes = [
        node("Conv", ["x", "w", "b"], ["first"], pads=(1, 1, 1, 1)),
        node("Add", ["first", "one"], ["y"]),
    ]
    model = graph(nodes, filters(16, 16) | {"one": images(1, 16, 1, 1)}, 16, shapes=shapes)
    assert operators(model) == ["own Conv", "Add"]


def test_a_value_that_others_see_is_not_hidden_in_a_kernel(monkeypatch):
    nodes = [node("Conv", ["x", "w", "b"], ["inner"], pads=(1, 1, 1, 1)), node("Relu", ["inner"], ["y"])]
    model = graph(nodes, filters(16, 16), 16, outputs=("y", "inner"))
    assert operators(model) == ["own Conv", "Relu"]
    assert differ(model, images(1, 16, 20, 20), monkeypatch, ("y", "inner")) < TOLERANCE


@pytest.mark.parametrize(
    "changed", [{"strides": (2, 2)}, {"dilations": (2, 2)}, {"group": 2}, {"auto_pad": "SAME_UPPER"}, {"pads": (3, 3, 3, 3)}]
)
def test_other_convolutions_are_left_to_onnxruntime(changed):
    weights = filters(16, 8 if "group" in changed else 16)
    assert operators(graph([node("Conv", ["x", "w", "b"], ["y"], **changed)], weights, 16)) == ["Conv"]


def test_tiny_images_and_weights_that_would_take_too_much_memory_are_left_to_onnxruntime():
    tiny = graph([node("Conv", ["x", "w", "b"], ["y"])], filters(16, 16), 16, shapes={"y": ("n", 16, 8, 8)})
    assert operators(tiny) == ["Conv"]
    large = {"w": np.zeros((1024, 1024, 3, 3), np.float32), "b": np.zeros(1024, np.float32)}
    assert operators(graph([node("Conv", ["x", "w", "b"], ["y"])], large, 1024)) == ["Conv"]


@pytest.mark.parametrize("with_silu", [False, True])
@pytest.mark.parametrize("shape", [(1, 16, 9, 7), (3, 32, 64, 64), (2, 8, 1, 1)])
def test_normalization_in_groups_is_what_onnxruntime_computes(shape, with_silu, instructions, monkeypatch):
    channels = shape[1]
    nodes = [node("GroupNormalization", ["x", "s", "b"], ["norm" if with_silu else "y"], num_groups=4, epsilon=1e-5)]
    if with_silu:
        nodes += [node("Sigmoid", ["norm"], ["gate"]), node("Mul", ["gate", "norm"], ["y"])]
    constants = {"s": images(channels, seed=1), "b": images(channels, seed=2)}
    model = graph(nodes, constants, channels)
    assert operators(model) == ["own GroupNorm"]
    assert differ(model, images(*shape) * 3 + 5, monkeypatch) < TOLERANCE


def test_a_gate_that_others_read_stays(monkeypatch):
    nodes = [
        node("GroupNormalization", ["x", "s", "b"], ["norm"], num_groups=2),
        node("Sigmoid", ["norm"], ["gate"]),
        node("Mul", ["norm", "gate"], ["y"]),
    ]
    model = graph(nodes, {"s": images(8, seed=1), "b": images(8, seed=2)}, 8, outputs=("y", "gate"))
    assert operators(model) == ["own GroupNorm", "Sigmoid", "Mul"]
    assert differ(model, images(1, 8, 5, 5), monkeypatch, ("y", "gate")) < TOLERANCE


def test_a_transposed_convolution_takes_its_activation_along(instructions, monkeypatch):
    nodes = [
        node("ConvTranspose", ["x", "w"], ["up"], strides=(2, 2), pads=(1, 1, 1, 1)),
        node("Tanh", ["up"], ["y"]),
    ]
    model = graph(nodes, {"w": images(12, 3, 4, 4) / 8}, 12)
    assert operators(model) == ["own ConvTranspose"]
    assert differ(model, images(2, 12, 9, 11), monkeypatch) < TOLERANCE


@pytest.mark.parametrize("size", [(1, 16, 16), (2, 33, 32), (8, 8, 8), (5, 4, 30), (1, 1, 1), (1, 64, 64)])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 2, 3, 0)])
def test_a_transposed_convolution_that_doubles_is_what_onnxruntime_computes(size, pads, instructions, monkeypatch):
    batch, height, width = size
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["up"], strides=(2, 2), pads=pads), node("Relu", ["up"], ["y"])]
    model = graph(nodes, {"w": images(24, 17, 4, 4, seed=1) / 10, "b": images(17, seed=2)}, 24)
    if min(2 * height + 2 - pads[0] - pads[2], 2 * width + 2 - pads[1] - pads[3]) < 1:
        pytest.skip("nothing is left of it")
    assert operators(model) == ["own DoublingConvTranspose"]
    assert differ(model, images(batch, 24, height, width), monkeypatch) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_few_tiles_have_all_products_and_many_have_fewer(batch, monkeypatch):
    nodes = [node("ConvTranspose", ["x", "w"], ["up"], strides=(2, 2), pads=(1, 1, 1, 1)), node("Tanh", ["up"], ["y"])]
    model = graph(nodes, {"w": images(32, 16, 4, 4) / 10}, 32, shapes={"up": ("n", 16, 16, 16)})
    assert operators(model) == ["own DoublingConvTranspose"]
    assert differ(model, images(batch, 32, 8, 8), monkeypatch) < TOLERANCE


def test_a_doubling_of_a_tiny_image_keeps_its_products():
    nodes = [node("ConvTranspose", ["x", "w"], ["y"], strides=(2, 2), pads=(1, 1, 1, 1))]
    model = graph(nodes, {"w": images(32, 16, 4, 4)}, 32, shapes={"y": ("n", 16, 8, 8)})
    assert operators(model) == ["own ConvTranspose"]


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 2)])
@pytest.mark.parametrize("outputs", [1, 3, 7])
def test_a_convolution_to_few_channels_is_what_onnxruntime_computes(kernel, outputs, instructions, monkeypatch):
    pads = [(side - 1) // 2 for side in 2 * kernel]
    nodes = [node("Conv", ["x", "w", "b"], ["inner"], pads=pads), node("Tanh", ["inner"], ["y"])]
    model = graph(nodes, {"w": images(outputs, 32, *kernel, seed=1) / 10, "b": images(outputs, seed=2)}, 32)
    assert operators(model) == ["own ConvTranspose"]
    assert differ(model, images(2, 32, 19, 37), monkeypatch) < TOLERANCE


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize(("queries", "keys", "size"), [(64, 64, 8), (33, 300, 20), (1, 1, 64), (200, 129, 64), (40, 7, 3)])
def test_attention_to_all_keys_is_what_onnxruntime_computes(heads, queries, keys, size, instructions, monkeypatch):
    constants = {"k": images(1, heads[1], keys, size, seed=1) * 3, "v": images(1, heads[1], keys, size + 1, seed=2)}
    said = {"scale": 0.4} if size == 20 else {}
    model = graph([node("Attention", ["x", "k", "v"], ["y"], **said)], constants, heads[0], opset=23)
    assert operators(model) == ["own Attention"]
    assert differ(model, images(1, heads[0], queries, size), monkeypatch) < TOLERANCE


@pytest.mark.parametrize("said", [{"is_causal": 1}, {"softcap": 5.0}, {"q_num_heads": 2, "kv_num_heads": 2}])
def test_other_attention_is_left_to_onnxruntime(said):
    constants = {"k": images(1, 2, 9, 8), "v": images(1, 2, 9, 8)}
    assert operators(graph([node("Attention", ["x", "k", "v"], ["y"], **said)], constants, 2, opset=23)) == ["Attention"]
    masked = node("Attention", ["x", "k", "v", "m"], ["y"])
    assert operators(graph([masked], constants | {"m": images(9, 9)}, 2, opset=23)) == ["Attention"]


def test_scales_for_groups_as_they_were_before_opset_21_are_left_alone():
    nodes = [node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)]
    assert operators(graph(nodes, {"s": images(2), "b": images(2)}, 8, opset=20)) == ["GroupNormalization"]
