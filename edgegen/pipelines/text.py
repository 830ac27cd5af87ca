"""What text pipelines give back, and where their text ends."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from edgegen.sampling import TokenLogprob

FinishReason = Literal["stop", "length", "context", "deadline"]
T = TypeVar("T")
ClockHook = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class TextPiece:
    """One token's worth of a stream.

    Attributes:
        text: the characters that became certain: "" while a character lacks bytes or the text may be becoming a stop string.
        token_ids: the token; none in the last piece where an end-of-sequence token, or the deadline, ended the text.
        finish_reason: in the last piece only: "stop" (an end-of-sequence token or a stop string), "length" (max_new_tokens),
            "context" (the context is full), "deadline".
        logprobs: one for each of token_ids, if asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclasses.dataclass(frozen=True)
class TextResult:
    """A whole text.

    Attributes:
        text: what was generated: without prompt, special tokens, and stop string.
        token_ids: every generated token but the end-of-sequence token; those of a stop string are included.
        finish_reason: see TextPiece.
        prompt_tokens: how many tokens the prompt has, special tokens included.
        seed: of the draws; give it again for the same text.
        logprobs: one for each of token_ids, if asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    logprobs: tuple[TokenLogprob, ...] | None = None

    @classmethod
    def of(cls, pieces: Iterable[TextPiece], *, prompt_tokens: int, seed: int) -> "TextResult":
        """All pieces of a finished stream as one."""
        every = list(pieces)
        reason = every[-1].finish_reason
        assert reason is not None, "a stream ends with a reason"  # noqa: S101  # our own bug, not the caller's
        return cls(
            text="".join(piece.text for piece in every),
            token_ids=tuple(token for piece in every for token in piece.token_ids),
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            seed=seed,
            logprobs=None if every[0].logprobs is None else tuple(one for piece in every for one in piece.logprobs or ()),
        )


class StopStrings:
    """Finds the first stop string in a text that comes in pieces, and holds back what may become one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What of the text so far may be shown now; after a stop string, what stood before it and nothing more."""
        if not self._strings or self.stopped:
            return "" if self.stopped else text
        held = self._held + text
        found = [(at + len(string), at) for string in self._strings if (at := held.find(string)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)[1]]  # the first to be complete, and so the same however the text was cut into pieces
        keep = self._beginning(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _beginning(self, text: str) -> int:
        """The length of the longest end of `text` that is the beginning of a stop string."""
        longest = min(max(map(len, self._strings)) - 1, len(text))
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(string.startswith(end) for string in self._strings):
                return length
        return 0

    def flush(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def timed(hook: ClockHook | None, stage: str, call: Callable[..., T]) -> Callable[..., T]:
    """`call`, with its seconds told to `hook`; `call` itself where there is none, so that it costs nothing."""
    if hook is None:
        return call

    def wrapped(*arguments: object, **options: object) -> T:
        start = time.perf_counter()
        result = call(*arguments, **options)
        hook(stage, time.perf_counter() - start)
        return result

    return wrapped
