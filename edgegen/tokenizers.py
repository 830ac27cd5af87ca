"""Text to token ids and back, and back one token at a time."""

import codecs
import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec
from tokenizers import Tokenizer as LibraryTokenizer

from edgegen.errors import BundleError, EdgegenError, InputError

MAX_BYTES = 256 * 2**20  # the largest known tokenizer.json has 40 MB


class TextDecoder(Protocol):
    """Turns tokens into text as they come. The pieces, joined, are the decoding of all tokens at once."""

    def push(self, token: int) -> str:
        """The characters that this token completes: often all of its own, none while a character lacks bytes."""

    def flush(self) -> str:
        """What is left at the end; bytes that never became a character are U+FFFD."""


class _AddedToken(msgspec.Struct):
    id: int
    special: bool = False


class _File(msgspec.Struct):
    """The parts of tokenizer.json that streaming needs to know; the library reads the rest."""

    decoder: dict[str, Any] | None = None
    added_tokens: list[_AddedToken] = []


class Tokenizer:
    """A tokenizer of the `tokenizers` library. It may be used by several threads at once."""

    def __init__(self, library: LibraryTokenizer, file: _File) -> None:
        self._library = library
        # A checkpoint's tokenizer.json may carry settings of its training, which would cut or pad prompts.
        library.no_truncation()
        library.no_padding()
        self.special_ids = frozenset(token.id for token in file.added_tokens if token.special)
        kinds = set(_decoder_kinds(file.decoder))
        self._is_byte_level = kinds == {"ByteLevel"}
        self._has_byte_fallback = "ByteFallback" in kinds

    @classmethod
    def from_bytes(cls, data: Any) -> "Tokenizer":
        """The tokenizer of a tokenizer.json, given as bytes or a buffer. BundleError where the library cannot use it."""
        if len(data) > MAX_BYTES:
            raise BundleError(f"tokenizer.json has {len(data)} bytes; at most {MAX_BYTES} are read")
        with _as_error(BundleError, "tokenizer.json cannot be used"):
            return cls(LibraryTokenizer.from_buffer(bytes(data)), msgspec.json.decode(data, type=_File))

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return int(self._library.get_vocab_size())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens written out in it count as such. InputError where it cannot be encoded."""
        if not text.isascii():
            _check_unicode(text)
        with _as_error(InputError, "this text cannot be tokenized"):
            return list(self._library.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        with _as_error(InputError, "these token ids cannot be decoded"):
            return str(self._library.decode(ids, skip_special_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of a token given by its own string, or None."""
        found = self._library.token_to_id(token)
        return None if found is None else int(found)

    def token_text(self, token: int) -> str | None:
        """The token's own string, as the vocabulary has it; None for special tokens and ids without a token."""
        return None if token in self.special_ids else self._library.id_to_token(token)

    def stream(self, after: Sequence[int] = ()) -> TextDecoder:
        """A decoder for tokens that follow the ids `after`, which are not part of its text.

        Some tokenizers (SentencePiece's) drop a space at the very beginning of a text: what continues a prompt must keep it.
        """
        if self._is_byte_level:
            return _ByteLevelDecoder(self)
        return _WindowDecoder(self, after, byte_fallback=self._has_byte_fallback)


def _decoder_kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is None:
        return
    if decoder.get("type") == "Sequence":
        for part in decoder.get("decoders", ()):
            yield from _decoder_kinds(part)
    else:
        yield str(decoder.get("type"))


def _check_unicode(text: str) -> None:
    """Refuse lone surrogates: so Python holds bytes of an argument or of stdin that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"this text cannot be tokenized: it holds bytes that are not UTF-8, the first as character {error.start + 1}"
        ) from error


@contextlib.contextmanager
def _as_error(kind: type[EdgegenError], what: str) -> Iterator[None]:
    """The library raises Exception itself, and panics as a BaseException of its own: neither can be named more closely."""
    try:
        yield
    except EdgegenError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).partition("\n")[0][:200]
        raise kind(f"{what}: {reason}") from error


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(0x100 + i): byte for i, byte in enumerate(others)}}


_BYTES = _byte_of_character()


class _ByteLevelDecoder:
    """For byte-level BPE: every token is bytes, and UTF-8 is decoded incrementally.

    Python and the library replace invalid bytes alike (one U+FFFD for each maximal part of a character, Unicode 3.9).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        text = self._tokenizer.token_text(token)
        if text is None:
            return ""
        try:
            data = bytes([_BYTES[character] for character in text])
        except KeyError:  # an added token, written as plain text
            data = text.encode()
        return self._utf8.decode(data)

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MAX_HELD = 8  # a character has at most four bytes, so what still ends in U+FFFD after eight tokens stays so


class _WindowDecoder:
    """For any other decoder of the library: decode the last tokens with and without the new ones, and emit the difference.

    The library turns a run of byte tokens (`<0x0A>`) into text as a whole, and into one U+FFFD for each byte if any part of it
    is invalid; so a run is held until a token that is none ends it.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int], *, byte_fallback: bool) -> None:
        self._tokenizer = tokenizer
        self._byte_fallback = byte_fallback
        visible = (token for token in reversed(after) if tokenizer.token_text(token) and not self._is_byte(token))
        last = next(visible, None)
        self._emitted = [] if last is None else [last]  # the context of the next piece
        self._held: list[int] = []

    def _is_byte(self, token: int) -> bool:
        return self._byte_fallback and _BYTE_TOKEN.fullmatch(self._tokenizer.token_text(token) or "") is not None

    def push(self, token: int) -> str:
        if self._tokenizer.token_text(token) is None:
            return ""
        piece = ""
        if self._held and self._is_byte(self._held[-1]) and not self._is_byte(token):
            piece = self._emit(whole_only=False)
        self._held.append(token)
        return piece if self._is_byte(token) else piece + self._emit(whole_only=True)

    def flush(self) -> str:
        return self._emit(whole_only=False) if self._held else ""

    def _emit(self, *, whole_only: bool) -> str:
        before = self._tokenizer.decode(self._emitted)
        now = self._tokenizer.decode(self._emitted + self._held)
        if whole_only and now.endswith("\ufffd") and len(self._held) < _MAX_HELD:
            return ""
        self._emitted, self._held = self._held, []
        return now[len(before) :]
