"""Each operator that is spelled out, against onnxruntime's own kernel or the operator's definition in ONNX."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

pytest.importorskip("torch")

from edgegen.errors import ExportError
from edgegen.export.lower_legacy import to_legacy

OPSET = 24
# Shares of the largest number: float32 sums in another order; 11 bits of float16, rounded once more or less.
CLOSE = {np.dtype(np.float32): 2e-6, np.dtype(np.float16): 4e-3}
rng = np.random.default_rng(0)


def random(*shape, dtype=np.float32, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(dtype)


def model_of(op, arrays, attributes, constants=()):
    """A graph of one node; every array is an input but those at `constants`. None is an input that is left out."""
    inputs, values, initializers = [], [], []
    for place, array in enumerate(arrays):
        if array is None:
            values.append(None)
            continue
        dtype = ir.DataType.from_numpy(array.dtype)
        value = ir.Value(name=f"i{place}", type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
        if place in constants:
            value.const_value = ir.tensor(array, name=value.name)
            initializers.append(value)
        else:
            inputs.append(value)
        values.append(value)
    node = ir.node(op, values, attributes)
    first = arrays[0].dtype
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.from_numpy(first))
    graph = ir.Graph(inputs, node.outputs, nodes=[node], initializers=initializers, opset_imports={"": OPSET}, name="g")
    return ir.Model(graph, ir_version=11)


def answer(model, arrays):
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}
    return session.run(None, {f"i{n}": a for n, a in enumerate(arrays) if f"i{n}" in names})[0]


def attention_inputs(heads=4, kv_heads=2, dtype=np.float32, mask=None):
    q, k, v = (
        random(2, heads, 3, 8, dtype=dtype),
        random(2, kv_heads, 5, 8, dtype=dtype),
        random(2, kv_heads, 5, 8, dtype=dtype),
    )
    return [q, k, v] if mask is None else [q, k, v, mask]


SEEN = np.array([[True, False, True, False, False], [True, True, True, True, False], [True] * 5])
HALF = np.float16
TABLES = [turn(np.outer(np.arange(9), [1, 0.3, 0.1])).astype(np.float32) for turn in (np.cos, np.sin)]
POSITIONS = np.array([[4, 5, 8], [0, 1, 2]])

CASES = {
    "attention": ("Attention", attention_inputs(4, 4), {}),
    "attention of groups": ("Attention", attention_inputs(), {"scale": 0.7}),
    "attention of groups with a mask": ("Attention", attention_inputs(mask=SEEN[None, None]), {}),
    "attention with a mask of two axes": ("Attention", attention_inputs(4, 4, mask=SEEN), {}),
    "attention of one key head": ("Attention", attention_inputs(4, 1, mask=np.repeat(SEEN[None, None], 2, 0)), {}),
    "attention with a bias": ("Attention", attention_inputs(4, 4, mask=random(2, 4, 3, 5)), {}),
    "attention that looks back": ("Attention", attention_inputs(), {"is_causal": 1}),
    "attention in float16": ("Attention", attention_inputs(dtype=HALF, mask=SEEN[None, None]), {}),
    "attention with a cap": ("Attention", attention_inputs(4, 4, mask=SEEN[None, None]), {"softcap": 2.0}),
    "gelu": ("Gelu", [random(4, 50, scale=3)], {}),
    "gelu by tanh": ("Gelu", [random(4, 50, scale=3)], {"approximate": "tanh"}),
    "group norm": ("GroupNormalization", [random(2, 6, 3, 4) + 2, random(6), random(6)], {"num_groups": 3}),
    "group norm, float16": ("GroupNormalization", [random(*n, dtype=HALF) for n in ((2, 6, 5), (6,), (6,))], {"num_groups": 2}),
    "mish": ("Mish", [random(40, scale=3)], {}),
    "rms norm": ("RMSNormalization", [random(2, 3, 16), random(16)], {"epsilon": 1e-3}),
    "rms norm in float16": ("RMSNormalization", [random(2, 3, 16, dtype=HALF, scale=300), random(16, dtype=HALF)], {}),
    "swish": ("Swish", [random(40, scale=3)], {"alpha": 1.7}),
    "squeeze": ("Squeeze", [random(1, 4, 1)], {}),
    "power of integers": ("Pow", [random(5), np.array(3, np.int64)], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_spelling_gives_the_operators_numbers(case):
    op, arrays, attributes = CASES[case]
    model = model_of(op, arrays, attributes)
    wanted = answer(model, arrays)
    to_legacy(model, "g")
    assert op not in {node.op_type for node in model.graph} or op in ("Squeeze", "Pow")
    got = answer(model, arrays)
    assert got.dtype == wanted.dtype
    assert np.abs(got.astype(float) - wanted).max() <= CLOSE[wanted.dtype] * np.abs(wanted.astype(float)).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("width", "attributes"), [(6, {}), (10, {"rotary_embedding_dim": 6, "num_heads": 4})])
def test_whole_and_partial_rotations_are_those_of_the_operator(width, attributes, dtype):
    arrays = [random(2, 4, 3, width, dtype=dtype), *(table.astype(dtype) for table in TABLES), POSITIONS]
    model = model_of("RotaryEmbedding", arrays, attributes, constants=(1, 2))
    wanted = answer(model, arrays)
    to_legacy(model, "g")
    got = answer(model, arrays)
    assert np.abs(got.astype(float) - wanted).max() <= CLOSE[wanted.dtype] * np.abs(wanted.astype(float)).max()


@pytest.mark.parametrize("start", [0, 4])
def test_rows_of_a_cache_are_written_where_the_operator_writes_them(start):
    past, update = random(1, 2, 8, 4), random(1, 2, 3, 4)
    arrays = [past, update, np.array([start])]
    model = model_of("TensorScatter", arrays, {"axis": 2, "mode": "linear"})
    wanted = past.copy()
    wanted[:, :, start : start + 3] = update
    to_legacy(model, "g")
    np.testing.assert_array_equal(answer(model, arrays), wanted)


@pytest.mark.parametrize(
    ("op", "arrays", "attributes", "said"),
    [
        ("RotaryEmbedding", [random(2, 4, 3, 6), *TABLES, POSITIONS], {"interleaved": 1}, "neighbours"),
        ("TensorScatter", [random(1, 2, 8, 4), random(1, 2, 3, 4), np.array([0])], {"mode": "circular"}, "around the end"),
        ("RMSNormalization", [random(2, 3, 4), random(3, 4)], {"axis": 1}, "axes from 1"),
        ("Attention", [random(2, 3, 8), random(2, 5, 4), random(2, 5, 4)], {"q_num_heads": 2, "kv_num_heads": 1}, "one axis"),
        ("Attention", [*attention_inputs(4, 4), None, random(2, 4, 2, 8), random(2, 4, 2, 8)], {}, "cache of its own"),
        ("Attention", attention_inputs(mask=random(2, 4, 3, 5)), {}, "mask for each head"),
    ],
)  # fmt: skip
def test_forms_that_nothing_spells_out_are_refused_with_the_cure(op, arrays, attributes, said):
    model = model_of(op, arrays, attributes, constants=(1, 2) if op == "RotaryEmbedding" else ())
    with pytest.raises(ExportError, match=f"{said}.*without the variant tensorrt-legacy"):
        to_legacy(model, "g")
