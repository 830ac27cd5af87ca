"""edgegen's own CPU kernels against plain arithmetic and against onnxruntime's operators, whose meaning they must have."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegen.backends.ort import kernels as own
from edgegen.backends.ort.kernel_nodes import exchange
from edgegen.backends.ort.session import OrtSession
from edgegen.errors import BackendError
from edgegen.manifest import Variant
from edgegen.tensors import Axis, TensorSpec

onnx = pytest.importorskip("onnx")
helper, numpy_helper, FLOAT, INT32 = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
AXES = {"tokens": Axis(1, 16, 4096)}
MICROSOFT = "com.microsoft"


def instruction_sets() -> list[str]:
    """Those of this machine, asked of the library as it would be by the environment."""
    if own.kernels() is None:
        return []
    choose = ctypes.CDLL(str(own.kernels().path)).edgegen_kernels_choose
    choose.restype = ctypes.c_char_p
    found = [name for name in ("avx512vnni", "avx2", "neon") if choose(name.encode())]
    choose(own.kernels().instructions.encode())
    return found


@pytest.fixture(params=instruction_sets() or [pytest.param("", marks=pytest.mark.skip(reason="no kernels on this machine"))])
def instructions(request):
    """Each instruction set in turn: the choice belongs to the whole process, and a session takes what is chosen then."""
    choose = ctypes.CDLL(str(own.kernels().path)).edgegen_kernels_choose
    assert choose(request.param.encode())
    yield request.param
    choose(own.kernels().instructions.encode())


def build(nodes, inputs, outputs, constants) -> tuple[bytes, Variant]:
    """A graph, and what a manifest would say of it; `inputs` and `outputs` are (name, onnx type, axes)."""
    names = {FLOAT: "float32", INT32: "int32"}
    values = [[helper.make_tensor_value_info(name, kind, axes) for name, kind, axes in part] for part in (inputs, outputs)]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", *values, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    specs = [tuple(TensorSpec(name, names[kind], tuple(axes)) for name, kind, axes in part) for part in (inputs, outputs)]
    return model, Variant(path="graphs/g.onnx", weights=(), inputs=specs[0], outputs=specs[1])


class Matrix:
    """A random matrix of 4 or 8 bits as MatMulNBits wants it, and its values."""

    def __init__(self, rows: int, columns: int, bits: int = 4) -> None:
        rng = np.random.default_rng(0)
        self.bits, self.codes = bits, rng.integers(0, 1 << bits, (rows, columns))
        self.scales = rng.uniform(0.01, 0.1, (rows, columns // 32)).astype(np.float16).astype(np.float32)
        self.values = (self.codes - float(1 << (bits - 1))) * np.repeat(self.scales, 32, axis=1)
        packed = self.codes if bits == 8 else self.codes[:, 0::2] | self.codes[:, 1::2] << 4
        self.packed = packed.astype(np.uint8).reshape(rows, columns // 32, 4 * bits)


def product(matrix: Matrix, *, bias=None, threads=2, **changed) -> OrtSession:
    rows, columns = matrix.codes.shape
    attributes = {"K": columns, "N": rows, "bits": matrix.bits, "block_size": 32, "accuracy_level": 4} | changed
    constants = {"codes": matrix.packed, "scales": matrix.scales.reshape(-1)} | ({} if bias is None else {"bias": bias})
    names = ["x", "codes", "scales"] + ([] if bias is None else ["", "", "bias"])
    node = helper.make_node("MatMulNBits", names, ["y"], domain=MICROSOFT, **attributes)
    model, variant = build([node], [("x", FLOAT, [1, "tokens", columns])], [("y", FLOAT, [1, "tokens", rows])], constants)
    return OrtSession(model, {}, variant, AXES, threads=threads)


def rounded(x: np.ndarray) -> np.ndarray:
    """Activations as the kernels see them: 8 bits, each block of 32 with its own scale."""
    blocks = x.reshape(*x.shape[:-1], -1, 32).astype(np.float32)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.rint(blocks * inverse).astype(np.float64) * scale).reshape(x.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 17, 40])
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (37, 576), (5, 32), (4096, 96)])
def test_a_product_is_what_arithmetic_says_for_any_shape(instructions, rows, columns, tokens, bits):
    matrix, x = Matrix(rows, columns, bits), np.random.default_rng(1).standard_normal((1, tokens, columns)).astype(np.float32)
    x[0, 0, :32] = 0  # a block without a scale
    with product(matrix) as session:
        assert session.kernels == own.kernels().instructions
        y = session.run({"x": x})["y"]
    expected = rounded(x) @ matrix.values.T
    # A rounding of the activation that falls on the other side of one half moves a sum by one step of 8 bits.
    step = np.abs(x).max() / 127 * np.abs(matrix.values).max()
    assert np.abs(y - expected).max() <= step + 1e-5 * np.abs(expected).max()
    assert np.abs(y - expected).mean() <= 1e-3 * np.abs(expected).mean()


def test_a_bias_is_added(instructions):
    matrix, bias = Matrix(37, 64), np.arange(37, dtype=np.float32)
    x = np.random.default_rng(1).standard_normal((1, 3, 64)).astype(np.float32)
    with product(matrix) as plain, product(matrix, bias=bias) as biased:
        np.testing.assert_allclose(biased.run({"x": x})["y"], plain.run({"x": x})["y"].copy() + bias, atol=1e-5)


def test_the_number_of_threads_does_not_change_a_bit(instructions):
    matrix, x = Matrix(3000, 576), np.random.default_rng(1).standard_normal((1, 5, 576)).astype(np.float32)
    with product(matrix, threads=1) as one, product(matrix, threads=3) as three:
        np.testing.assert_array_equal(one.run({"x": x})["y"].copy(), three.run({"x": x})["y"])


@pytest.mark.parametrize("changed", [{"accuracy_level": 1}, {"accuracy_level": 0}])
def test_a_product_that_asks_for_exact_arithmetic_keeps_onnxruntimes_kernel(changed):
    with product(Matrix(48, 64), **changed) as session:
        assert session.kernels == ""


def test_weights_of_another_size_than_they_say_are_refused():
    matrix = Matrix(48, 64)
    with pytest.raises(BackendError, match="refuses"):
        product(matrix, N=64)


HEADS = {"heads": 6, "kv_heads": 2, "size": 64}


def attention(domain_is_own, *, heads, kv_heads, size, capacity=1024, packed=True, rotary=64, threads=2, **attributes):
    """A GroupQueryAttention node whose cache goes in and comes out, not in place."""
    width, kv_width, constants = heads * size, kv_heads * size, {}
    names = ["q", "", "", "pk", "pv", "len", "total"] if packed else ["q", "k", "v", "pk", "pv", "len", "total"]
    if rotary:
        angles = np.random.default_rng(3).uniform(0, 6, (2048, rotary // 2)).astype(np.float32)
        constants, names = {"cos": np.cos(angles), "sin": np.sin(angles)}, [*names, "cos", "sin"]
    node = helper.make_node(
        "GroupQueryAttention", names, ["o", "k_out", "v_out"], domain=MICROSOFT,
        num_heads=heads, kv_num_heads=kv_heads, do_rotary=int(bool(rotary)), **attributes,
    )  # fmt: skip
    cache = [1, kv_heads, capacity, size]
    tokens = [("q", FLOAT, [1, "tokens", width + 2 * kv_width])]
    if not packed:
        tokens = [("q", FLOAT, [1, "tokens", width]), *((name, FLOAT, [1, "tokens", kv_width]) for name in "kv")]
    inputs = [*tokens, ("pk", FLOAT, cache), ("pv", FLOAT, cache), ("len", INT32, [1]), ("total", INT32, [])]
    outputs = [("o", FLOAT, [1, "tokens", width]), ("k_out", FLOAT, cache), ("v_out", FLOAT, cache)]
    model, variant = build([node], inputs, outputs, constants)
    session = OrtSession(model, {}, variant, AXES, threads=threads)
    assert bool(session.kernels) == domain_is_own
    return session


def feed(past, tokens, *, heads, kv_heads, size, capacity=1024, packed=True, seed=0):
    rng = np.random.default_rng(seed)
    width, kv_width = heads * size, kv_heads * size
    new = {"q": rng.standard_normal((1, tokens, width + 2 * kv_width * packed)).astype(np.float32)}
    if not packed:
        new |= {name: rng.standard_normal((1, tokens, kv_width)).astype(np.float32) for name in "kv"}
    cache = {name: rng.standard_normal((1, kv_heads, capacity, size)).astype(np.float32) for name in ("pk", "pv")}
    lengths = {"len": np.array([past + tokens - 1], np.int32), "total": np.array(past + tokens, np.int32)}
    return new | cache | lengths


CASES = {
    "packed": HEADS,
    "apart": HEADS | {"packed": False},
    "without rotary": HEADS | {"rotary": 0},
    "half turned": HEADS | {"rotary": 32},
    "a window": HEADS | {"local_window_size": 40},
    "a soft cap": HEADS | {"softcap": 2.0},
    "its own scale": HEADS | {"scale": 0.3},
    "one key head": {"heads": 12, "kv_heads": 1, "size": 32, "rotary": 32},
    "a key head each": {"heads": 3, "kv_heads": 3, "size": 80, "rotary": 80},
    "large heads": {"heads": 2, "kv_heads": 1, "size": 256, "rotary": 256},
    "small heads": {"heads": 4, "kv_heads": 2, "size": 16, "rotary": 16},
}


@pytest.mark.parametrize("case", CASES)
def test_attention_is_what_onnxruntimes_is(instructions, monkeypatch, case):
    form = CASES[case]
    shape = {key: value for key, value in form.items() if key in ("heads", "kv_heads", "size", "packed")}
    with attention(True, **form) as ours:
        monkeypatch.setattr("edgegen.backends.ort.create.kernels", lambda: None)
        with attention(False, **form) as theirs:
            # From the beginning, one token, several, many keys (more than a piece), and behind a filled cache.
            for past, tokens in ((0, 1), (0, 7), (0, 130), (20, 1), (255, 1), (256, 1), (700, 1), (300, 5), (600, 90)):
                tensors = feed(past, tokens, **shape)
                expected = {name: array.copy() for name, array in theirs.run(tensors).items()}
                got, end = ours.run(tensors), past + tokens
                # Sums of up to 700 products of float32 in another order.
                np.testing.assert_allclose(got["o"], expected["o"], atol=5e-6)
                for name in ("k_out", "v_out"):
                    np.testing.assert_allclose(got[name][:, :, :end], expected[name][:, :, :end], atol=2e-6)


def test_attention_does_not_read_behind_the_end_of_the_cache(instructions):
    with attention(True, **HEADS, capacity=256) as session:
        for past, tokens in ((0, 3), (40, 1), (100, 20)):
            tensors = feed(past, tokens, **HEADS, capacity=256)
            clean = session.run(tensors)["o"].copy()
            for name in ("pk", "pv"):
                tensors[name][:, :, past + tokens :] = np.nan
            np.testing.assert_array_equal(session.run(tensors)["o"], clean)


def test_more_tokens_than_the_cache_has_room_for_are_refused(instructions):
    with attention(True, **HEADS, capacity=64) as session:
        tensors = feed(60, 4, **HEADS, capacity=64)
        session.run(tensors)
        for length in (64, -5, 2**31 - 1):
            with pytest.raises(BackendError, match="do not fit into the cache"):
                session.run(tensors | {"len": np.array([length], np.int32)})


@pytest.mark.parametrize(
    "form",
    [{"size": 24, "rotary": 24}, {"size": 512, "rotary": 0}, {"rotary_interleaved": 1}, {"smooth_softmax": 1}],
    ids=str,
)
def test_attention_that_the_kernels_cannot_do_stays_onnxruntimes(form):
    attention(False, **(HEADS | form)).close()


def environment_says(value: str) -> subprocess.CompletedProcess:
    code = "from edgegen.backends.ort.kernels import kernels; print(kernels())"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {own.VARIABLE: value}, capture_output=True, text=True, check=False
    )


def test_the_environment_switches_the_kernels_off():
    assert environment_says("off").stdout.strip() == "None"


@pytest.mark.skipif(own.kernels() is None, reason="no kernels on this machine")
def test_an_instruction_set_that_is_not_there_is_named():
    assert "EDGEGEN_KERNELS is 'mmx', which this machine does not have" in environment_says("mmx").stderr


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_a_graph_that_cannot_be_read_is_left_alone(data):
    renamed, count = exchange(data, {})
    assert count or renamed == data


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"), reason="no kernels for it")
def test_the_kernels_were_built_here():
    assert own.kernels() is not None, "reinstall edgegen with a C compiler: pip install -e ."
