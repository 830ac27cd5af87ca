"""Every promised architecture: captured, lowered, proven, and generating the same text as transformers."""

import pytest

torch = pytest.importorskip("torch")

import onnx_ir as ir
from tiny_models import ARCHITECTURES

import edgegen
from edgegen.bundle import Bundle
from edgegen.proof import verify_bundle

PROMPT = "Water boils at 100 degrees, and the bees came home."
OTHER_PRECISIONS = [("llama", "fp16"), ("qwen2", "int8"), ("llama_untied", "int4"), ("gemma3", "int4"), ("gpt2", "int4")]


def reference_tokens(checkpoint, count):
    """Greedy tokens of transformers with its own cache."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": count, "eos_token_id": -1, "pad_token_id": 0}
    return model.generate(**ids, **options)[0, ids["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_tiny_model_of_every_architecture_generates_what_transformers_generates(exported, architecture):
    checkpoint, bundle = exported(architecture, "fp32")
    with edgegen.load(bundle) as model:
        found = list(model.generate(PROMPT, max_new_tokens=24).token_ids)
    wanted = reference_tokens(checkpoint, 24)
    assert found == wanted[: len(found)]  # ours stops at the end-of-text token
    assert len(found) == 24 or wanted[len(found)] in model.settings.eos_token_ids


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_bundle_verifies_from_itself_alone(exported, architecture):
    report = verify_bundle(str(exported(architecture, "fp32")[1]))
    assert report.passed
    assert report.fidelity.worst_logit < 1e-4  # two layers of 64: far below the tolerance for deep models


@pytest.mark.parametrize(("architecture", "precision"), OTHER_PRECISIONS)
def test_other_precisions_are_proven_and_generate(exported, architecture, precision):
    _, bundle = exported(architecture, precision)
    assert verify_bundle(str(bundle)).passed
    with edgegen.load(bundle) as model:
        assert model.generate(PROMPT, max_new_tokens=8, seed=1, temperature=1.0).token_ids


def operators(bundle, variant):
    with Bundle.open(bundle) as opened:
        path = opened.manifest.graphs["decoder"].variants[variant].path
    return [node.op_type for node in ir.load(bundle / path).graph]


def test_the_canonical_graph_is_standard_onnx_with_an_in_place_cache(exported):
    bundle = exported("qwen3", "fp32")[1]
    graph = ir.load(bundle / "graphs" / "decoder.onnx")
    found = operators(bundle, "canonical")
    assert dict(graph.opset_imports) == {"": 24}
    assert (found.count("Attention"), found.count("TensorScatter"), found.count("RotaryEmbedding")) == (2, 4, 4)
    assert found.count("RMSNormalization") == 2 * 4 + 1  # two of the layer, two of queries and keys, and the last


def test_the_onnxruntime_variant_fuses_attention_norms_and_projections(exported):
    found = operators(exported("llama_untied", "int4")[1], "onnxruntime")
    assert (found.count("GroupQueryAttention"), found.count("SkipSimplifiedLayerNormalization")) == (3, 6)
    assert found.count("MatMulNBits") == 3 * 5 + 1  # query, key and value are one product
    assert "Attention" not in found


def test_both_variants_share_their_bytes_where_these_are_the_same(exported):
    names = {path.name for path in (exported("llama", "fp32")[1] / "graphs").iterdir()}
    assert "decoder.weights" in names


def test_prefill_gives_the_last_position_only_unless_more_is_asked_for(exported):
    import numpy as np

    from edgegen.backends import open_session

    with (
        Bundle.open(exported("llama", "fp32")[1]) as bundle,
        open_session("onnxruntime", bundle, "decoder") as session,
    ):
        feed = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)}
        last = session.run(feed, state=session.new_state(8))["logits"].copy()
        every = session.run({**feed, "logits_to_keep": np.array(3)}, state=session.new_state(8))["logits"]
        assert last.shape[1] == 1
        assert every.shape[1] == 3
        np.testing.assert_allclose(every[:, -1:], last, atol=1e-4)  # another path through the kernels


def test_a_bundle_loads_and_generates_in_onnxruntime_genai(exported):
    genai = pytest.importorskip("onnxruntime_genai")
    _, bundle = exported("llama_untied", "int4")
    with edgegen.load(bundle) as model:
        prompt = model.tokenizer.encode(PROMPT)
        wanted = list(model.generate(PROMPT, max_new_tokens=16).token_ids)
    loaded = genai.Model(str(bundle))
    assert list(genai.Tokenizer(loaded).encode(PROMPT)) == list(prompt)
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=len(prompt) + 16)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(list(prompt))
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found[: len(wanted)] == wanted
