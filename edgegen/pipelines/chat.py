"""A conversation: messages, the model's template, and a cache that is kept between turns."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgegen.errors import InputError
from edgegen.kv_cache import KVCache
from edgegen.pipelines.generation import Turn
from edgegen.pipelines.text import TextPiece, TextResult, timed
from edgegen.sampling import SamplingOptions

if TYPE_CHECKING:
    from edgegen.chat_template import ChatTemplate
    from edgegen.pipelines.decoder_lm import DecoderLM


class Chat:
    """A conversation with a model; made by `DecoderLM.chat`.

    Every turn renders the whole conversation and runs only what the cache does not hold yet: the longest common beginning of
    what was run before and what is asked now is used again, the model's own answer included.

    A turn that raises (the context is full, the template refuses, the backend fails) leaves `messages` as they were before it.
    A turn that is cancelled by closing its iterator, or ends at its deadline, keeps the message and as much of the answer as
    was given. When the context is full, begin a new chat or take messages out: `messages` may be changed between turns.

    Threads: one at a time. Memory: the cache lives until `close`, or until the pipeline is closed.
    """

    def __init__(self, model: "DecoderLM", template: "ChatTemplate", system: str | None) -> None:
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self._model, self._template = model, template
        self._cache: KVCache | None = None
        self._turn_is_open = self._is_closed = False
        self._turns = 0  # begun so far

    def send(self, message: str, **options: Any) -> TextResult:
        """The model's answer to `message`. Options and errors as `DecoderLM.generate`."""
        turn = self._open(message, options)
        return TextResult.of(self._run(turn, message, self._turns), prompt_tokens=len(turn.ids), seed=turn.sampler.seed)

    def stream(self, message: str, **options: Any) -> Iterator[TextPiece]:
        """As `send`, in pieces; see `DecoderLM.stream`. The next turn can begin when the iterator is used up or closed."""
        return self._run(self._open(message, options), message, self._turns)

    def _open(self, message: str, options: dict[str, Any]) -> Turn:
        if not isinstance(message, str):
            raise InputError(f"a message is a string, not {type(message).__name__}")
        self._check_open()
        started, checked = time.perf_counter(), SamplingOptions.of(options)
        ids = timed(self._model.clock_hook, "tokenize", self._tokenize)([*self.messages, _user(message)])
        if not ids:
            raise InputError("the chat template made an empty prompt of these messages")
        return Turn(self._model, ids, checked, started=started)

    def _tokenize(self, messages: list[dict[str, Any]]) -> list[int]:
        # The template writes every special token out; the tokenizer must not add its own.
        return self._model.tokenizer.encode(self._template.render(messages), add_special_tokens=False)

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("this chat is closed; begin a new one")
        if self._turn_is_open:
            raise InputError("the last turn of this chat is still streaming; use its iterator up, or close it")

    def _run(self, turn: Turn, message: str, turns: int) -> Iterator[TextPiece]:
        self._check_open()
        if turns != self._turns:
            raise InputError("this stream was made before another turn of the chat; make it again")
        self._turns += 1
        if self._cache is None:
            self._cache = self._model.new_cache(len(turn.ids), turn.options.max_new_tokens)
        answer = {"role": "assistant", "content": ""}
        before = len(self.messages)
        self.messages += [_user(message), answer]
        self._turn_is_open = True
        try:
            for piece in turn.run(self._cache):
                answer["content"] += piece.text
                yield piece
        except GeneratorExit:  # cancelled: what was said stays said
            raise
        except BaseException:
            del self.messages[before:]
            raise
        finally:
            self._turn_is_open = False

    def close(self) -> None:
        """Free the cache. Closing twice is allowed."""
        self._is_closed = True
        if self._cache is not None:
            self._cache.close()

    def __enter__(self) -> "Chat":
        """The chat is ready from construction."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()


def _user(message: str) -> dict[str, Any]:
    return {"role": "user", "content": message}
