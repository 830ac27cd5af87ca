"""Tiny tokenizers of every kind, built with the library; no file is read."""

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = ["the cat sat on the mat, the dog ran to the cat", "naïve café", "日本語 текст 🙂", "a b  c   d\n"] * 4
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def _byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("日plain added", normalized=False)])
    return tokenizer


def _sentencepiece():
    """As Llama 2, Phi-3 and Gemma: a metaspace by normalizer, byte tokens, and a decoder that drops the first space."""
    words = ["▁", "▁the", "▁cat", "cat", "s", "▁▁", "é", "日", "\n"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    model = models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def _metaspace():
    words = [("<unk>", 0.0), ("▁", -1.0), ("▁the", -2.0), ("▁cat", -2.0), ("s", -3.0), ("▁▁", -3.0), ("日", -4.0)]
    tokenizer = Tokenizer(models.Unigram(words, 0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


def _word_piece():
    words = ["[UNK]", "the", "cat", "##s", "##é", "日"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[UNK]"])
    return tokenizer


def _no_decoder():
    return Tokenizer(models.WordLevel({"the": 0, "cat": 1, "日": 2, "<unk>": 3}, unk_token="<unk>"))


def _wrapped_byte_level():
    tokenizer = _byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return tokenizer


KINDS = {
    "byte_level": _byte_level,
    "sentencepiece": _sentencepiece,
    "metaspace": _metaspace,
    "word_piece": _word_piece,
    "no_decoder": _no_decoder,
    "wrapped_byte_level": _wrapped_byte_level,
}


@functools.cache
def tokenizer_json(kind="byte_level"):
    """The bytes of a tokenizer.json."""
    return KINDS[kind]().to_str().encode()
