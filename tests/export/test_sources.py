import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from tiny_models import ARCHITECTURES, CHAT_TEMPLATE, make_tiny, make_tiny_gguf, tiny_model, tiny_tokenizer

from edgegen.errors import SourceError
from edgegen.export.sources import open_source
from edgegen.export.sources.base import file_sha256
from edgegen.export.sources.gguf_header import read_header
from edgegen.export.sources.gguf_tokenizer import convert_tokenizer

torch = pytest.importorskip("torch")
IDS = torch.arange(3, 23)[None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "copy")


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_loads_with_the_weights_of_its_file(architecture: str, tmp_path: Path) -> None:
    checkpoint = open_source(str(make_tiny(architecture, tmp_path / architecture)))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load()(IDS).logits, tiny_model(architecture)(IDS).logits, rtol=0, atol=0)


def test_a_hugging_face_directory_gives_tokenizer_template_and_special_tokens(llama: Path) -> None:
    checkpoint = open_source(str(llama))
    assert (checkpoint.kind, checkpoint.name, checkpoint.licence) == ("huggingface", "llama", "unknown")
    assert (checkpoint.eos_token_ids, checkpoint.bos_token_id, checkpoint.pad_token_id) == ((2,), 0, 0)
    assert checkpoint.chat_template == CHAT_TEMPLATE
    assert checkpoint.special_tokens["eos_token"] == "<|im_end|>"
    assert checkpoint.tokenizer_files["tokenizer.json"] == (llama / "tokenizer.json").read_bytes()
    assert checkpoint.sha256 == file_sha256(llama / "model.safetensors")


def test_all_end_tokens_and_the_licence_are_read(copy: Path) -> None:
    change_json(copy / "generation_config.json", eos_token_id=[2, 1])
    (copy / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    checkpoint = open_source(str(copy))
    assert checkpoint.eos_token_ids == (2, 1)
    assert checkpoint.licence == "apache-2.0"


def test_a_checkpoint_file_replaces_the_weights(llama: Path, tmp_path: Path) -> None:
    other = make_tiny("llama", tmp_path / "other", seed=1) / "model.safetensors"
    checkpoint = open_source(str(llama), other)
    assert checkpoint.sha256 == file_sha256(other)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load()(IDS).logits, tiny_model("llama", 1)(IDS).logits, rtol=0, atol=0)


def test_pickled_weights_are_refused_and_never_read(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin is a pickle.*safetensors"):
        open_source(str(copy))
    with pytest.raises(SourceError, match="is a pickle"):
        open_source(str(copy / "pytorch_model.bin"))
    with pytest.raises(SourceError, match="is a pickle"):
        open_source(str(copy), copy / "pytorch_model.bin")


def test_a_directory_without_weights_says_so(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"no model\.safetensors"):
        open_source(str(copy))


def test_an_index_that_leaves_its_directory_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy.parent / "outside.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(SourceError, match="not there"):
        open_source(str(copy))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:100],
        lambda raw: b"",
        lambda raw: struct.pack("<Q", 1 << 60) + raw[8:],
        lambda raw: raw[:8] + b"[" + raw[9:],
        lambda raw: raw[:8] + b"[" * 5000,
    ],
)
def test_damaged_safetensors_end_in_one_line(copy: Path, damage) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(SourceError) as caught:
        open_source(str(copy))
    assert "\n" not in str(caught.value)


def test_missing_and_unexpected_weights_are_named(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.stranger.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"missing: model\.layers\.0\.mlp\.up_proj\.weight; unexpected: .*stranger"):
        open_source(str(copy)).load()


def test_weights_of_another_size_are_refused(copy: Path) -> None:
    change_json(copy / "config.json", intermediate_size=128)
    with pytest.raises(SourceError):
        open_source(str(copy)).load()


def test_an_architecture_with_code_of_its_own_is_refused(copy: Path) -> None:
    change_json(copy / "config.json", model_type="homegrown", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    (copy / "modeling.py").write_text("raise SystemExit('ran')")
    with pytest.raises(SourceError, match="code of its own, which edgegen does not run"):
        open_source(str(copy))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"model_type": "llama", "hidden_size": "wide"}'])
def test_a_damaged_config_ends_in_one_line(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(SourceError) as caught:
        open_source(str(copy)).load()
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_ends_in_one_line(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        open_source(str(copy))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "nothing is at nowhere"),
        ("org/model", "does not download"),
        ("package.module:function", "cannot import package.module"),
        ("model.onnx", "names no opset"),
        ("notes.txt", r"is a \.txt file"),
        ("empty", "a directory without config"),
    ],
)
def test_what_is_no_source_says_what_one_is(source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "notes.txt"):
        Path(name).touch()
    Path("empty").mkdir()
    with pytest.raises(SourceError, match=said):
        open_source(source)


def test_a_gguf_file_gives_the_same_model_as_its_original(gguf_file: Path) -> None:
    checkpoint = open_source(str(gguf_file))
    assert (checkpoint.kind, checkpoint.licence, checkpoint.eos_token_ids) == ("gguf", "mit", (2,))
    assert checkpoint.chat_template == CHAT_TEMPLATE
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load()(IDS).logits, tiny_model("llama")(IDS).logits, rtol=0, atol=0)


def test_a_gguf_tokenizer_encodes_like_its_original(gguf_file: Path) -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_buffer(convert_tokenizer(read_header(gguf_file).metadata))
    for text in ("the quick brown fox", "<|im_start|>user\n12 34<|im_end|>", "  naïve\t日本 🤗"):
        assert made.encode(text).ids == tiny_tokenizer().encode(text).ids
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == text


def test_a_gguf_file_cut_anywhere_ends_in_one_line(gguf_file: Path, tmp_path: Path) -> None:
    raw = gguf_file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [0, 1, 3, 4, 8, 16, 23, *range(24, len(raw), len(raw) // 60), len(raw) - 1]:
        cut.write_bytes(raw[:size])
        with pytest.raises(SourceError) as caught:
            read_header(cut)
        assert "\n" not in str(caught.value)


def test_a_gguf_header_with_flipped_bytes_never_escapes_its_file(gguf_file: Path, tmp_path: Path) -> None:
    raw = gguf_file.read_bytes()
    changed = tmp_path / "changed.gguf"
    end = min(entry.start for entry in read_header(gguf_file).tensors.values())
    for at in range(0, end, 29):
        changed.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        try:
            header = read_header(changed)
        except SourceError:
            continue
        assert all(entry.start + entry.size_bytes <= len(raw) for entry in header.tensors.values())


@pytest.mark.parametrize(("at", "claim"), [(8, "tensors"), (16, "metadata entries")])
def test_absurd_counts_are_refused_before_anything_is_allocated(gguf_file: Path, tmp_path: Path, at: int, claim: str) -> None:
    raw = bytearray(gguf_file.read_bytes())
    raw[at : at + 8] = struct.pack("<Q", 1 << 62)
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(raw)
    with pytest.raises(SourceError, match=f"claims {1 << 62} {claim}"):
        open_source(str(changed))


def test_an_unknown_pre_tokenizer_is_refused_by_name(gguf_file: Path) -> None:
    metadata = dict(read_header(gguf_file).metadata)
    with pytest.raises(SourceError, match="pre-tokenizer is 'novel'"):
        convert_tokenizer(metadata | {"tokenizer.ggml.pre": "novel"})
    with pytest.raises(SourceError, match="tokenizer of kind 'rwkv'"):
        convert_tokenizer(metadata | {"tokenizer.ggml.model": "rwkv"})


def test_scaled_rope_in_a_gguf_file_is_refused(tmp_path: Path) -> None:
    scaled = make_tiny_gguf(tmp_path / "scaled.gguf", more_tensors={"rope_freqs.weight": np.ones(8, np.float32)})
    with pytest.raises(SourceError, match="scales its rope"):
        open_source(str(scaled))


SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"]
    + [f"<0x{byte:02X}>" for byte in range(256)]
    + ["\u2581", "a", "b", "c", "ab", "bc", "\u2581a", "abc", "\u2581ab"],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 9,
    "tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -8.0, -7.0, -6.0, -1.0, -0.5, -3.0, -2.0, -4.0],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def test_a_sentencepiece_vocabulary_merges_the_best_score_first() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(convert_tokenizer(SPM))
    # "abc": bc (-0.5) goes before ab (-1), then a + bc = abc (-2); a space is put in front, and <s>.
    assert tokenizer.encode("abc").tokens == ["<s>", "\u2581", "abc"]
    assert tokenizer.encode("ab b").tokens == ["<s>", "\u2581ab", "\u2581", "b"]
    assert tokenizer.encode("é").tokens == ["<s>", "\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é").ids) == "abc é"


@pytest.mark.parametrize(
    ("text", "ids"),
    json.loads((Path(__file__).parent / "smollm2_tokens.json").read_text(encoding="utf-8")),
)
def test_smollm2_is_tokenized_as_llama_cpp_does(text: str, ids: list[int], smollm2_tokenizer) -> None:
    assert smollm2_tokenizer.encode(text).ids == ids
    assert smollm2_tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_gguf):
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(convert_tokenizer(read_header(smollm2_gguf).metadata))
