"""The variant for CUDA, on the CPU's float16 kernels of the same operators: the same numbers as PyTorch's, cheap on disk."""

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx_ir as ir

from edgegen.backends.ort.session import OrtSession
from edgegen.bundle import Bundle
from edgegen.errors import ExportError
from edgegen.export.lower_cuda import halve, to_onnxruntime_cuda
from edgegen.export.weights import WeightTable
from edgegen.proof.decoder_lm import verify

CASES = [("llama", "fp16"), ("qwen2", "int8"), ("llama_untied", "int4"), ("gemma3", "int4")]


def cuda_graph(bundle):
    """The variant, made of the one that the bundle has for the CPU."""
    model = ir.load(bundle.path / bundle.manifest.graphs["decoder"].variants["onnxruntime"].path)
    ir.external_data.load_to_model(model)
    halve(model.graph)
    return model


def open_variant(bundle, model):
    files = bundle.graph("decoder", "onnxruntime")
    state = {name for pair in files.variant.state for name in (pair.input, pair.output)}
    specs = {
        place: tuple(
            msgspec.structs.replace(spec, dtype="float16") if spec.name in state else spec
            for spec in getattr(files.variant, place)
        )
        for place in ("inputs", "outputs")
    }
    variant = msgspec.structs.replace(files.variant, **specs)
    content = ir.serde.serialize_model(model).SerializeToString()
    return OrtSession(content, {}, variant, files.axes, threads=1, resident=True)


@pytest.mark.parametrize(("architecture", "precision"), CASES)
def test_the_variant_computes_what_pytorch_computes_as_closely_as_float16_can(exported, architecture, precision):
    _, path = exported(architecture, precision)
    with Bundle.open(path) as bundle, open_variant(bundle, cuda_graph(bundle)) as session:
        fidelity = verify(bundle, session, "canonical", "onnxruntime").fidelity  # the canonical graph's arithmetic: float16
    assert fidelity.failure is None, fidelity.lines()
    assert fidelity.arithmetic == "float16"


def test_a_model_that_cubes_its_activations_has_no_such_variant(exported):
    with Bundle.open(exported("gpt2", "int4")[1]) as bundle, pytest.raises(ExportError, match="computes Pow"):
        cuda_graph(bundle)


def test_it_keeps_quantized_weights_and_the_attention_that_reads_only_what_is_filled(exported):
    with Bundle.open(exported("llama_untied", "int4")[1]) as bundle:
        model = cuda_graph(bundle)
    kinds = [node.op_type for node in model.graph]
    assert {"MatMulNBits", "GroupQueryAttention"} <= set(kinds)
    assert "DequantizeLinear" not in kinds
    floats = {
        value.dtype
        for value in model.graph.initializers.values()
        if value.dtype is not None and value.dtype.is_floating_point()
    }
    assert floats == {ir.DataType.FLOAT16}
    assert {str(value.name): value.dtype for value in model.graph.outputs}["logits"] == ir.DataType.FLOAT


def test_float32_is_refused_for_cuda_has_no_such_kernel():
    table = WeightTable("fp32")
    with pytest.raises(ExportError, match="take fp16"):
        to_onnxruntime_cuda(ir.Model(ir.Graph([], [], nodes=[]), ir_version=11), table, [])


def graph_of(node, initializers=()):
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    nodes = [ir.node(node, [x, *initializers])]
    return ir.Graph([x], [nodes[0].outputs[0]], nodes=nodes, initializers=initializers)


def test_a_graph_that_computes_angles_is_refused():
    with pytest.raises(ExportError, match=r"Cos.*leave out onnxruntime-cuda"):
        halve(graph_of("Cos"))


def test_a_number_beyond_float16_is_refused():
    large = ir.Value(name="large", type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.tensor(np.array([1e6, 1], np.float32)))
    with pytest.raises(ExportError, match="large does not fit"):
        halve(graph_of("Add", [large]))
