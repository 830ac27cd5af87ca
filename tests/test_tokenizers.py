"""Tokenizers, and text that comes one token at a time."""

import functools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import KINDS, SPECIAL, tokenizer_json

from edgegen.errors import BundleError, InputError
from edgegen.tokenizers import Tokenizer


@functools.cache
def tokenizer(kind="byte_level"):
    return Tokenizer.from_bytes(tokenizer_json(kind))


def pieces_of(kind, ids, after=()):
    decoder = tokenizer(kind).stream(after)
    return [*map(decoder.push, ids), decoder.flush()]


@pytest.mark.parametrize("text", ["the cat", "日本語 🙂🙂 naïve", " a  b\n\n", "", "\x00\x7f", "e\u0301"])
def test_text_survives_encoding_and_decoding(text):
    ids = tokenizer().encode(text)
    assert tokenizer().decode(ids) == text
    assert "".join(pieces_of("byte_level", ids)) == text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "wrapped_byte_level"])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_pieces_of_any_tokens_join_to_their_decoding(kind, data):
    # A few ids beyond the vocabulary: exported vocabularies are padded.
    ids = data.draw(st.lists(st.integers(0, tokenizer(kind).vocab_size + 3), max_size=40))
    assert "".join(pieces_of(kind, ids)) == tokenizer(kind).decode(ids)


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(3, 3 + 255 + 9), max_size=12))
def test_pieces_of_byte_tokens_join_to_their_decoding(ids):
    assert "".join(pieces_of("sentencepiece", ids)) == tokenizer("sentencepiece").decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\ufffd"), max_size=30))
def test_no_piece_of_a_real_text_breaks_a_character(kind, text):
    ids = tokenizer(kind).encode(text)
    pieces = pieces_of(kind, ids)
    assert "".join(pieces) == tokenizer(kind).decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_when_its_last_byte_does():
    ids = tokenizer().encode("🙂🙂s")
    assert [piece for piece in pieces_of("byte_level", ids) if piece] == ["🙂", "🙂", "s"]


def test_a_run_of_byte_tokens_comes_with_the_token_that_ends_it():
    ids = tokenizer("sentencepiece").encode("🙂日🙂")
    assert [piece for piece in pieces_of("sentencepiece", ids) if piece] == ["🙂日", "🙂"]


def test_bytes_that_never_become_a_character_are_replaced_at_the_end():
    ids = tokenizer().encode("🙂")[:-1]
    assert [piece for piece in pieces_of("byte_level", ids) if piece] == ["\ufffd"]


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
def test_text_that_continues_a_prompt_keeps_its_first_space(kind):
    library = tokenizer(kind)
    the, cat = library.token_id("▁the"), library.token_id("▁cat")
    assert "".join(pieces_of(kind, [cat, the])) == "cat the"
    assert "".join(pieces_of(kind, [cat, the], after=[the])) == " cat the"
    special = library.token_id("<unk>")
    assert "".join(pieces_of(kind, [cat], after=[the, special])) == " cat"
    assert "".join(pieces_of(kind, [cat], after=[special])) == "cat"


def test_special_tokens_are_read_in_prompts_and_left_out_of_texts():
    ids = tokenizer().encode("<|user|>the<|end|>")
    assert ids[0] == tokenizer().token_id("<|user|>")
    assert ids[-1] == tokenizer().token_id("<|end|>")
    assert tokenizer().decode(ids) == "the"
    assert tokenizer().special_ids == {tokenizer().token_id(token) for token in SPECIAL}


def test_the_cost_of_a_token_does_not_grow_with_the_text():
    for kind, token in (("byte_level", "the"), ("sentencepiece", "▁the"), ("wrapped_byte_level", "ÿ")):
        decoder = tokenizer(kind).stream()
        the = tokenizer(kind).token_id(token)
        start = time.perf_counter()
        for _ in range(20_000):
            decoder.push(the)
        # 20,000 tokens at 50 us; re-reading the text at each would take minutes.
        assert time.perf_counter() - start < 10


def test_limits_and_padding_of_training_are_dropped():
    raw = json.loads(tokenizer_json())
    raw["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    raw["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|end|>",
    }
    text = "the cat sat on the mat"
    assert Tokenizer.from_bytes(json.dumps(raw).encode()).encode(text) == tokenizer().encode(text)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"model": {"type": "BPE"}}', b"\xff\xfe", b"[" * 100_000, tokenizer_json()[:-40]],
)
def test_a_damaged_tokenizer_is_a_bundle_error_of_one_line(data):
    with pytest.raises(BundleError, match=r"^tokenizer.json cannot be used: [^\n]*$"):
        Tokenizer.from_bytes(data)


def test_a_tokenizer_of_absurd_size_is_not_parsed(monkeypatch):
    monkeypatch.setattr("edgegen.tokenizers.MAX_BYTES", 10)
    with pytest.raises(BundleError, match="at most 10 are read"):
        Tokenizer.from_bytes(tokenizer_json())


def test_text_with_half_a_surrogate_pair_is_an_input_error():
    with pytest.raises(InputError, match="cannot be tokenized: it holds bytes that are not UTF-8, the first as character 4"):
        tokenizer().encode("the\ud800 cat")
