"""The text benchmark on a language model made of numpy: its fields, its counts, its refusals."""

import io
import itertools
import json
import types

import pytest
from rich.console import Console

import edgegen.bench.machine
import edgegen.bench.text
import edgegen.runtime
from edgegen.backends.fake import fake_lm
from edgegen.bench.report import text_report
from edgegen.bench.text import bench_text, prompt_of, state_bytes_per_entry
from edgegen.devices.table import lookup
from edgegen.errors import InputError
from edgegen.manifest import StatePair, Variant
from edgegen.pipelines.decoder_lm import DecoderLM, DecoderLMSettings
from edgegen.tensors import TensorSpec

VARIANT = Variant(
    path="graphs/decoder.onnx",
    weights=("graphs/decoder.bin",),
    inputs=(
        TensorSpec("past.k", "float32", ("batch", 2, "cache", 4)),
        TensorSpec("past.v", "float16", ("batch", 2, "cache", 4)),
    ),
    outputs=(),
    state=(StatePair("past.k", "present.k", 2), StatePair("past.v", "present.v", 2)),
)
VOCAB = 128


class Characters:
    """A tokenizer whose tokens are ASCII characters."""

    vocab_size = VOCAB

    def encode(self, text, *, add_special_tokens=True):
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def stream(self, after=()):
        return types.SimpleNamespace(push=chr, flush=lambda: "")


@pytest.fixture
def pipeline(monkeypatch):
    settings = DecoderLMSettings(vocab_size=VOCAB, context_length=64, eos_token_ids=(), bos_token_id=None)
    model = DecoderLM(fake_lm(VOCAB, context_length=64), Characters(), settings)
    manifest = types.SimpleNamespace(
        name="fake",
        precision="fp32",
        files={"graphs/decoder.bin": types.SimpleNamespace(size_bytes=1000)},
        graphs={"decoder": types.SimpleNamespace(variants={"canonical": VARIANT})},
    )
    model.bundle = types.SimpleNamespace(manifest=manifest, close=lambda: None)
    cold = {"runtime_import_s": 0.1, "load_s": 0.2, "first_generation_s": 0.3, "peak_memory_bytes": 5 << 20}
    monkeypatch.setattr(edgegen.runtime, "load", lambda *_, **__: model)
    monkeypatch.setattr(edgegen.bench.text, "choose", lambda name: "onnxruntime")
    monkeypatch.setattr(edgegen.bench.machine, "read_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr(edgegen.bench.text, "measure_cold", lambda *_: cold)
    return model


def test_every_length_is_measured_and_the_result_is_json(pipeline):
    result = json.loads(json.dumps(bench_text("x.bundle", prompt_lengths=(8, 16, 600), new_tokens=4, repeats=2)))
    assert result["left_out_prompt_lengths"] == [600]
    assert [entry["prompt_tokens"] for entry in result["prompts"]] == [8, 16]  # 600 does not fit in a context of 64
    for entry in result["prompts"]:
        assert entry["new_tokens"] == 4
        assert entry["first_token"]["count"] == 2
        assert entry["inter_token"]["count"] == 2 * 3
        assert {"tokenize", "forward", "sample", "detokenize"} == entry["stage_s"].keys()
    assert result["cold"]["load_s"] == 0.2
    assert pipeline.clock_hook is None


def test_numbers_follow_the_clock(pipeline):
    ticks = itertools.count()
    result = bench_text("x.bundle", prompt_lengths=(8,), new_tokens=4, warmup=0, repeats=3, clock=lambda: float(next(ticks)))
    (entry,) = result["prompts"]
    # The clock is read once for each token, so every latency is one tick.
    assert entry["first_token"]["p50_s"] == entry["inter_token"]["p99_s"] == entry["decode_tokens_per_s"] == 1
    assert entry["decode_spread"] == 0
    # 8 + 4 / 2 entries of 2 x 4 values in 4 and in 2 bytes are 480 bytes, beside 1,000 of weights.
    assert entry["roofline"]["tokens_per_s"] == pytest.approx(1e9 / 1480)
    assert entry["roofline"]["share"] == pytest.approx(1480 / 1e9)


@pytest.mark.parametrize(("device", "limit"), [(lookup("rtx-4090"), 1008e9), (None, None), (lookup("x86-cpu"), None)])
def test_the_limit_of_a_gpu_is_that_of_its_own_memory_or_none(pipeline, monkeypatch, device, limit):
    monkeypatch.setattr(edgegen.bench.text, "choose", lambda name: "tensorrt")
    monkeypatch.setattr(edgegen.bench.machine, "detect", lambda: types.SimpleNamespace(device=lambda: device))
    monkeypatch.setattr(type(pipeline.session), "details", {"gpu": "a GPU"})
    result = bench_text("x.bundle", prompt_lengths=(8,), new_tokens=4, repeats=1)
    assert result["sessions"] == {"decoder": {"gpu": "a GPU"}}
    assert result["read_bandwidth_bytes_per_s"] == limit
    roofline = result["prompts"][0]["roofline"]
    assert roofline["tokens_per_s"] == (None if limit is None else pytest.approx(limit / 1480))
    console = Console(width=80, file=io.StringIO())
    console.print(text_report(result))
    assert ("1008.0 GB/s, not measured: " if limit else "read bandwidth not known") in console.file.getvalue()


@pytest.mark.parametrize("wrong", [{"prompt_lengths": (63,)}, {"new_tokens": 1}, {"repeats": 0}, {"warmup": -1}])
def test_what_cannot_be_measured_is_refused(pipeline, wrong):
    with pytest.raises(InputError):
        bench_text("x.bundle", **{"prompt_lengths": (8,), "new_tokens": 4} | wrong)


def test_the_report_shows_every_length(pipeline):
    console = Console(width=80, file=io.StringIO())  # a pipe, and many a terminal
    console.print(text_report(bench_text("x.bundle", prompt_lengths=(8, 16, 600), new_tokens=4, repeats=1)))
    text = console.file.getvalue()
    for word in (
        "first",
        "tokens/s",
        "share",
        "sample ms",
        "Cold",
        "GB/s",
        "left out, too long for the context: prompts of 600",
    ):
        assert word in text
    assert "…" not in text  # nothing is cut off


def test_state_bytes_count_both_dtypes():
    assert state_bytes_per_entry(VARIANT) == 2 * 4 * (4 + 2)


@pytest.mark.parametrize("length", [1, 7, 1000])
def test_a_prompt_has_the_length_that_was_asked_for(length):
    assert len(prompt_of(Characters(), length)) == length


def test_a_tokenizer_without_english_is_refused():
    with pytest.raises(InputError, match="English"):
        prompt_of(types.SimpleNamespace(encode=lambda text, add_special_tokens=True: []), 4)
