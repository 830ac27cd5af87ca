"""A real model from its real checkpoint, through the whole path."""

import pytest

torch = pytest.importorskip("torch")

import edgegen
from edgegen.offline import check_offline
from edgegen.proof import verify_bundle

QUESTION = "What is the capital of France?"


def test_its_quantization_and_its_proof_are_what_was_asked_for(smollm2):
    assert smollm2.precision == "int4"
    assert smollm2.quantized == smollm2.matrices == 7 * 30 + 1  # seven matrices a layer; embedding and head are tied
    exact = next(fidelity for fidelity in smollm2.fidelity if fidelity.variant == "onnxruntime, exact")
    assert exact.failure is None
    assert exact.worst_logit < 1e-4  # 30 layers of float32 sums; measured 4e-6
    assert exact.greedy_match == exact.greedy_length == 64


def test_it_answers_and_remembers_what_was_said(smollm2):
    with edgegen.load(smollm2.path) as model, model.chat() as chat:
        assert "Paris" in chat.send(QUESTION, max_new_tokens=32).text
        assert chat.send("And of Italy?", max_new_tokens=32).text


def test_it_verifies_without_torch(smollm2):
    assert verify_bundle(str(smollm2.path)).passed


def test_it_generates_with_sockets_denied_and_writes_nothing(smollm2):
    report = check_offline(str(smollm2.path), QUESTION)
    assert report.passed, report.lines()


def test_the_same_seed_gives_the_same_text_alone_streamed_and_in_a_list(smollm2):
    options = {"max_new_tokens": 24, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 11}
    with edgegen.load(smollm2.path) as model:
        alone = model.generate("Once upon a time", **options).text
        assert "".join(piece.text for piece in model.stream("Once upon a time", **options)) == alone
        assert [result.text for result in model.generate(["Once upon a time"] * 2, **options)] == [alone, alone]


def test_onnxruntime_genai_loads_it_and_answers_alike(smollm2):
    genai = pytest.importorskip("onnxruntime_genai")
    with edgegen.load(smollm2.path) as model, model.chat() as chat:
        wanted = chat.send(QUESTION, max_new_tokens=12).text
    loaded = genai.Model(str(smollm2.path))
    tokenizer = genai.Tokenizer(loaded)
    prompt = tokenizer.apply_chat_template(f'[{{"role": "user", "content": "{QUESTION}"}}]', add_generation_prompt=True)
    ids = list(tokenizer.encode(prompt))
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=len(ids) + 12)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(ids)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert "Paris" in wanted
    assert tokenizer.decode(found).strip().startswith(wanted.strip()[:20])
