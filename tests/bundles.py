"""Small valid bundles for tests, made without torch or onnx: about 10 KB, with a decoder that really runs."""

import json
from pathlib import Path

import msgspec
from tokenizers import Tokenizer, models, pre_tokenizers

from edgegen.bundle import BundleWriter
from edgegen.manifest import Graph, Manifest, Source, StatePair, Variant
from edgegen.tensors import Axis, TensorSpec

DATA = Path(__file__).parent / "data"
CONTEXT = 64
WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklm"]  # 16, as the graph has
CACHE = ("batch", 1, "cache", 4)
STATE_IN = tuple(TensorSpec(f"past_key_values.0.{part}", "float32", CACHE) for part in ("key", "value"))
STATE_OUT = tuple(TensorSpec(f"present.0.{part}", "float32", CACHE) for part in ("key", "value"))
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
KEEP = TensorSpec("logits_to_keep", "int64", ())
LOGITS = TensorSpec("logits", "float32", ("batch", "kept", 16))
STATE = tuple(StatePair(past.name, present.name, 2) for past, present in zip(STATE_IN, STATE_OUT, strict=True))


def variant(path: str, position: TensorSpec) -> Variant:
    return Variant(path, ("graphs/decoder.weights",), (IDS, position, KEEP, *STATE_IN), (LOGITS, *STATE_OUT), STATE)


def manifest(**changes: object) -> Manifest:
    """The manifest of the tiny bundle, without its files."""
    axes = {name: Axis(1, 8, CONTEXT) for name in ("sequence", "total", "cache", "kept")} | {"batch": Axis(1, 1, 4)}
    variants = {
        "canonical": variant("graphs/decoder.onnx", TensorSpec("write_indices", "int64", ("batch",))),
        "onnxruntime": variant("graphs/decoder.onnxruntime.onnx", TensorSpec("attention_mask", "int64", ("batch", "total"))),
    }
    whole = Manifest(
        format=1,
        name="tiny",
        family="decoder_lm",
        precision="fp32",
        source=Source("test", "tests/data/make_data.py", "0" * 64, "CC0-1.0"),
        tools={"onnx": "1.23"},
        graphs={"decoder": Graph(variants, axes)},
        settings={
            "vocab_size": len(WORDS),
            "context_length": CONTEXT,
            "eos_token_ids": [2],
            "bos_token_id": 1,
            "chat_template": "tokenizer/chat_template.jinja",
            "special_tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        },
        proof="proof/proof.json",
        files={},
    )
    return msgspec.structs.replace(whole, **changes)


def fill(directory: Path) -> None:
    """Write every file of the tiny bundle but its manifest."""
    for folder in ("graphs", "tokenizer", "proof"):
        (directory / folder).mkdir()
    for file in DATA.glob("decoder*"):
        (directory / "graphs" / file.name).write_bytes(file.read_bytes())
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:3])
    (directory / "tokenizer/tokenizer.json").write_text(tokenizer.to_str())
    (directory / "tokenizer/tokenizer_config.json").write_text("{}")
    (directory / "tokenizer/chat_template.jinja").write_text("{% for message in messages %}{{ message.content }} {% endfor %}")
    (directory / "proof/proof.json").write_text(json.dumps({}))
    (directory / "card.md").write_text("# tiny\n")


def make_bundle(path: Path, **changes: object) -> Path:
    """Publish the tiny bundle at `path`; `changes` replace fields of its manifest."""
    with BundleWriter(path) as writer:
        fill(writer.directory)
        return writer.publish(manifest(**changes))
