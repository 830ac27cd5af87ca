"""Turn the tokenizer inside a GGUF file into a `tokenizer.json`.

Built here and not by transformers, which (5.23) ignores `tokenizer.ggml.pre` and so splits numbers wrongly for most models.
How each `pre` splits text is llama.cpp's own table (src/llama-vocab.cpp) read against the published tokenizer.json of the
models; a `pre` that is not listed is refused, because a nearly right tokenizer makes a quietly worse model.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgegen.errors import SourceError

# tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = _GPT2_BYTES | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _regex(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_PRE_TOKENIZERS: Mapping[str, Sequence[dict[str, Any]]] = {
    "gpt-2": (_GPT2_BYTES,),
    "phi-2": (_GPT2_BYTES,),
    "smollm": (_DIGITS, _GPT2_BYTES),
    "starcoder": (_DIGITS, _GPT2_BYTES),
    "command-r": (_DIGITS, _GPT2_BYTES),
    "llama-bpe": (_regex(_LLAMA3), _BYTES),
    "qwen2": (_regex(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), _BYTES),
}
_NORMALIZERS: Mapping[str, dict[str, Any]] = {"qwen2": {"type": "NFC"}}
_WHOLE_WORDS = {"llama-bpe"}  # a word that is a token is taken whole, before any merge
_BOS_BY_DEFAULT = {"llama-bpe", "llama"}  # where tokenizer.ggml.add_bos_token is absent


def convert_tokenizer(metadata: Mapping[str, Any]) -> bytes:
    """Return tokenizer.json for a GGUF file's metadata.

    Raises:
        SourceError: A part is missing, or the kind of tokenizer is not known.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        parts = _byte_level(metadata)
    elif kind == "llama":
        parts = _sentencepiece(metadata)
    else:
        raise SourceError(
            f"the GGUF file has a tokenizer of kind {kind!r}; edgegen reads 'gpt2' and 'llama': use the Hugging Face directory"
        )
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added_tokens(metadata)} | parts
    return json.dumps(document, ensure_ascii=False).encode()


def token_texts(metadata: Mapping[str, Any]) -> list[str]:
    """Return the vocabulary, by token id."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise SourceError("the GGUF file has no vocabulary (tokenizer.ggml.tokens)")
    return tokens


def _byte_level(metadata: Mapping[str, Any]) -> dict[str, Any]:
    pre = str(metadata.get("tokenizer.ggml.pre"))
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise SourceError(
            f"the GGUF file's pre-tokenizer is {pre!r}; edgegen knows {known}: export the Hugging Face directory instead"
        )
    merges = metadata.get("tokenizer.ggml.merges")
    pairs = [merge.split(" ") for merge in merges] if isinstance(merges, list) else []
    vocabulary = {token: index for index, token in enumerate(token_texts(metadata))}
    model = _bpe(vocabulary, pairs) | {"ignore_merges": pre in _WHOLE_WORDS}
    return {
        "normalizer": _NORMALIZERS.get(pre),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(_PRE_TOKENIZERS[pre])},
        "post_processor": _post_processor(metadata, pre),
        "decoder": _GPT2_BYTES,
        "model": model,
    }


def _sentencepiece(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A BPE of SentencePiece: spaces are U+2581, bytes are the fallback, and the scores are the order of the merges."""
    tokens = token_texts(metadata)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    begin = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    model = _bpe(vocabulary, _merges_by_score(metadata, vocabulary))
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*begin, space]},
        "pre_tokenizer": None,
        "post_processor": _post_processor(metadata, "llama"),
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefix else [])],
        },
        "model": model | {"byte_fallback": True, "fuse_unk": True, "unk_token": _token(tokens, unknown)},
    }


def _bpe(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    wrong = [pair for pair in merges if len(pair) != 2 or "".join(pair) not in vocabulary]
    if wrong or not merges:
        raise SourceError(f"the GGUF file's merges do not fit its vocabulary: {wrong[:2] if wrong else 'there are none'}")
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary,
        "merges": merges,
    }


def _merges_by_score(metadata: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """List every way to join two tokens into a third, the highest score first: SentencePiece's BPE, written as merges."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(vocabulary):
        raise SourceError("the GGUF file has no score for every token (tokenizer.ggml.scores)")
    ranked: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[index], left, right, (token[:cut], token[cut:])))
    return [pair for *_, pair in sorted(ranked)]


def _post_processor(metadata: Mapping[str, Any], pre: str) -> dict[str, Any] | None:
    """Add the begin and end tokens that the file asks for."""
    tokens = token_texts(metadata)
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    pieces, used = [text], {}
    for name, first, default in (("bos", True, pre in _BOS_BY_DEFAULT), ("eos", False, False)):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        token = _token(tokens, index)
        if metadata.get(f"tokenizer.ggml.add_{name}_token", default) and token is not None:
            pieces.insert(0 if first else len(pieces), {"SpecialToken": {"id": token, "type_id": 0}})
            used[token] = {"id": token, "ids": [index], "tokens": [token]}
    if not used:
        return None
    pair = [*pieces, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": used}


def _token(tokens: Sequence[str], index: Any) -> str | None:
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None


def _added_tokens(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    kinds = metadata.get("tokenizer.ggml.token_type")
    tokens = token_texts(metadata)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise SourceError("the GGUF file has no type for every token (tokenizer.ggml.token_type)")
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, "special": kind != _USER_DEFINED} | common
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in {_UNKNOWN, _CONTROL, _USER_DEFINED}
    ]
