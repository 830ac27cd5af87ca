"""Makes the tiny ONNX files beside it: a decoder of one layer, 16 words and 4 channels, in two variants over one weights file.

Run it again with `python tests/data/make_data.py`; the same version of onnx gives the same bytes.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCAB, WIDTH = 16, 4
WEIGHTS = "decoder.weights"
HERE = Path(__file__).parent


def external(name: str, array: np.ndarray, data: bytearray) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", WEIGHTS), ("offset", len(data)), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    data += array.tobytes()
    return tensor


def constant(name: str, values: object, dtype: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def value(name: str, dtype: int, *axes: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, axes)


def cache_nodes() -> list[onnx.NodeProto]:
    """The cache is written in place, and every logit depends on all of it: a bug in the cache shows."""
    node = helper.make_node
    return [
        node("Gather", ["embedding", "input_ids"], ["embedded"]),  # [batch, sequence, channel]
        node("Unsqueeze", ["embedded", "axis_1"], ["entry"]),
        node("TensorScatter", ["past_key_values.0.key", "entry", "write_indices"], ["present.0.key"], axis=2),
        node("TensorScatter", ["past_key_values.0.value", "entry", "write_indices"], ["present.0.value"], axis=2),
        node("ReduceSum", ["present.0.key", "axis_2"], ["history"], keepdims=0),  # [batch, head, channel]
        node("Add", ["embedded", "history"], ["hidden"]),
        node("Neg", ["logits_to_keep"], ["negative"]),
        node("Unsqueeze", ["negative", "axis_0"], ["first"]),
        node("Slice", ["hidden", "first", "end", "axis_1"], ["kept"]),
    ]


def constants() -> list[onnx.TensorProto]:
    named = {"axis_0": [0], "axis_1": [1], "axis_2": [2], "end": [2**31 - 1], "logits_to_keep": 1}
    return [constant(name, values) for name, values in named.items()]


def model(inputs: list[onnx.ValueInfoProto], nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> bytes:
    cache = ("batch", 1, "cache", WIDTH)
    state = [value(f"past_key_values.0.{part}", TensorProto.FLOAT, *cache) for part in ("key", "value")]
    outputs = [value("logits", TensorProto.FLOAT, "batch", "kept", VOCAB)]
    outputs += [value(f"present.0.{part}", TensorProto.FLOAT, *cache) for part in ("key", "value")]
    keep = value("logits_to_keep", TensorProto.INT64)
    graph = helper.make_graph(nodes, "decoder", [*inputs, keep, *state], outputs, [*weights, *constants()])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="edgegen").SerializeToString(
        deterministic=True
    )


def main() -> None:
    rng, data = np.random.default_rng(0), bytearray()
    weights = [
        external("embedding", rng.normal(size=(VOCAB, WIDTH)).astype(np.float32), data),
        external("head", rng.normal(size=(WIDTH, VOCAB)).astype(np.float32), data),
    ]
    ids = value("input_ids", TensorProto.INT64, "batch", "sequence")
    canonical = [ids, value("write_indices", TensorProto.INT64, "batch")]
    head = helper.make_node("MatMul", ["kept", "head"], ["logits"])
    (HERE / "decoder.onnx").write_bytes(model(canonical, [*cache_nodes(), head], weights))
    lowered = [ids, value("attention_mask", TensorProto.INT64, "batch", "total")]
    # Where to write: behind what the mask has beyond the new tokens.
    where = [
        helper.make_node("ReduceSum", ["attention_mask", "axis_1"], ["total"], keepdims=0),
        helper.make_node("Shape", ["input_ids"], ["sequence"], start=1),
        helper.make_node("Sub", ["total", "sequence"], ["write_indices"]),
    ]
    head = helper.make_node("FusedMatMul", ["kept", "head"], ["logits"], domain="com.microsoft")
    (HERE / "decoder.onnxruntime.onnx").write_bytes(model(lowered, [*where, *cache_nodes(), head], weights))
    (HERE / WEIGHTS).write_bytes(data)


if __name__ == "__main__":
    main()
