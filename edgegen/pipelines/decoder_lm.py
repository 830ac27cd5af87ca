"""Decoder language models: prefill, then one token at a time through the key/value cache."""

import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import msgspec

from edgegen.backends.base import Session
from edgegen.errors import BundleError, InputError
from edgegen.kv_cache import Context, KVCache
from edgegen.pipelines.base import OpenSession
from edgegen.pipelines.generation import Turn
from edgegen.pipelines.text import ClockHook, TextPiece, TextResult, timed
from edgegen.sampling import SamplingOptions
from edgegen.tokenizers import Tokenizer

if TYPE_CHECKING:
    from edgegen.bundle import Bundle
    from edgegen.chat_template import ChatTemplate
    from edgegen.pipelines.chat import Chat

_ROOM = 256  # tokens of text that the cache has room for at first; it grows where more come


class DecoderLMSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's `settings` of a decoder language model.

    Attributes:
        vocab_size: length of the logits; the tokenizer may know fewer tokens.
        context_length: the most tokens that prompt and text may have together.
        eos_token_ids: tokens that end a text.
        bos_token_id: the token that an empty prompt becomes, if there is one.
        pad_token_id: never fed here; kept for other users of the bundle.
        tokenizer: path of tokenizer.json in the bundle.
        chat_template: path of the chat template in the bundle.
        special_tokens: variables of the chat template, such as "bos_token".
    """

    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None = None
    tokenizer: str = "tokenizer/tokenizer.json"
    chat_template: str | None = None
    special_tokens: dict[str, str] = {}

    def __post_init__(self) -> None:
        """ValueError (which decoding reports as its own) for numbers that cannot be."""
        if self.vocab_size < 1 or self.context_length < 2:
            raise ValueError("vocab_size must be at least 1 and context_length at least 2")
        for token in (*self.eos_token_ids, self.bos_token_id, self.pad_token_id):
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token} is not in a vocabulary of {self.vocab_size}")


class DecoderLM:
    """A language model that continues text.

    Threads: several threads may generate with one pipeline at the same time. Every call has a cache and a random stream of its
    own; the session lets one run of the graph pass at a time.
    Memory: a call's cache lives from its first token to its end, or until the iterator is closed.

    Attributes:
        bundle: what it was made from, if anything; closed with the pipeline.
        session, tokenizer, settings: its parts.
        context: how many tokens prompt and text may have together on this session.
        eos: the tokens that end a text.
        lock: held from a run of the graph until its logits have been looked at.
        prefill_chunk: feed prompts in pieces of so many tokens (None: as many as the session takes): bounds memory, and lets a
            deadline pass between. The session may take fewer at once.
        clock_hook: called with "tokenize", "forward", "sample" or "detokenize" and the seconds that it took.
    """

    bundle: "Bundle | None" = None
    prefill_chunk: int | None = 256
    clock_hook: ClockHook | None = None

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        settings: DecoderLMSettings,
        *,
        chat_template: "ChatTemplate | None" = None,
    ) -> None:
        self.session, self.tokenizer, self.settings = session, tokenizer, settings
        self.context = Context(session, settings.context_length)
        self.eos = frozenset(settings.eos_token_ids)
        # The session's arrays are valid until its next run: whoever holds this lock may look at them.
        self.lock = threading.Lock()
        self._chat_template = chat_template
        _check_graph(session, settings)

    @classmethod
    def from_bundle(cls, bundle: "Bundle", open_session: OpenSession) -> "DecoderLM":
        """Read settings, tokenizer and chat template; open the graph "decoder". BundleError where they do not fit."""
        settings = decode_settings(bundle.manifest.settings)
        tokenizer = Tokenizer.from_bytes(bundle.read(settings.tokenizer))
        pipeline = cls(open_session("decoder"), tokenizer, settings)
        pipeline.bundle = bundle
        return pipeline

    @overload
    def generate(self, prompt: str, **options: Any) -> TextResult: ...

    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[TextResult]: ...

    def generate(self, prompt: str | list[str], **options: Any) -> TextResult | list[TextResult]:
        """Continue raw text: no template, special tokens as the tokenizer adds them by itself.

        The prompts of a list run one after the other. On the CPU a padded batch gains little, and its sums are rounded
        differently: this way every result is exactly that of a single call (with the same options, so with the same seed).

        Args:
            prompt: one text, or a list of them.
            options: see edgegen.sampling.SamplingOptions.

        Raises:
            InputError: an unknown option, one out of its range, or an empty prompt where the model has no first token.
            ContextFullError: the prompt leaves no room for a single token.
            BackendError: the graph fails, or gives logits that are not finite.
        """
        if isinstance(prompt, str):
            turn = self._open(prompt, options)
            return TextResult.of(turn.run(), prompt_tokens=len(turn.ids), seed=turn.sampler.seed)
        if not isinstance(prompt, list):
            raise InputError(f"a prompt is a string or a list of strings, not {type(prompt).__name__}")
        return [self.generate(one, **options) for one in prompt]

    def stream(self, prompt: str, **options: Any) -> Iterator[TextPiece]:
        """As `generate`, one piece for each token as soon as it is known; only the last has a finish_reason.

        Errors in prompt or options are raised here, before the first piece. Closing the iterator cancels: nothing more is
        computed and the cache is freed. The deadline counts from this call.
        """
        return self._open(prompt, options).run()

    def chat(self, system: str | None = None) -> "Chat":
        """A conversation, whose cache is kept between turns. InputError where the bundle has no chat template."""
        from edgegen.pipelines.chat import Chat  # with it comes the template engine, which raw text does not need

        return Chat(self, self._template(), system)

    def _template(self) -> "ChatTemplate":
        from edgegen.chat_template import ChatTemplate

        path = self.settings.chat_template
        if self._chat_template is None:
            if path is None or self.bundle is None:
                raise InputError("this bundle has no chat template; use generate() or stream() with raw text")
            self._chat_template = ChatTemplate.from_bytes(self.bundle.read(path), self.settings.special_tokens)
        return self._chat_template

    def _open(self, prompt: str, options: Mapping[str, Any]) -> Turn:
        if not isinstance(prompt, str):
            raise InputError(f"a prompt is a string, not {type(prompt).__name__}")
        started, checked = time.perf_counter(), SamplingOptions.of(options)
        ids = timed(self.clock_hook, "tokenize", self.tokenizer.encode)(prompt)
        if not ids:
            if self.settings.bos_token_id is None:
                raise InputError("the prompt is empty and this model has no first token of its own; give some text")
            ids = [self.settings.bos_token_id]
        return Turn(self, ids, checked, started=started, after=ids)

    def new_cache(self, prompt_tokens: int, max_new_tokens: int) -> KVCache:
        """An empty cache with room for a prompt and the beginning of its continuation."""
        room = prompt_tokens + min(max_new_tokens, _ROOM)
        return KVCache(self.session, self.settings.context_length, room)

    def close(self) -> None:
        """Free everything, the bundle included. Closing twice is allowed."""
        self.session.close()
        if self.bundle is not None:
            self.bundle.close()

    def __enter__(self) -> "DecoderLM":
        """The pipeline is ready from construction."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()


def decode_settings(raw: Mapping[str, Any]) -> DecoderLMSettings:
    """The manifest's settings, checked. BundleError for a key or value that does not fit."""
    try:
        return msgspec.convert(raw, DecoderLMSettings)
    except msgspec.ValidationError as error:
        raise BundleError(f"manifest.json, settings of a decoder_lm: {error}") from error


def _check_graph(session: Session, settings: DecoderLMSettings) -> None:
    if "input_ids" not in session.inputs or "logits" not in session.outputs:
        raise BundleError(
            f"a decoder takes input_ids and gives logits; this graph takes {sorted(session.inputs)} "
            f"and gives {sorted(session.outputs)}"
        )
    length = session.outputs["logits"].axes[-1]
    if length != settings.vocab_size and isinstance(length, int):
        raise BundleError(f"the graph's vocabulary has {length} tokens, the manifest's settings say {settings.vocab_size}")
