"""The keys and values of one sequence: what is in them, how they grow, and what a graph must be fed to append to them."""

from collections.abc import Sequence
from types import TracebackType

import numpy as np

from edgegen.backends.base import Session
from edgegen.errors import ContextFullError
from edgegen.tensors import Tensor

ROUNDING = 256  # capacities are multiples of it, so that a backend sees few different shapes
_CACHE, _SEQUENCE = "cache", "sequence"  # the axes of a decoder that count the entries of its state, and the tokens of a run


class Context:
    """How many tokens a session can hold: as many as were exported, or fewer, where it was opened for fewer.

    Attributes:
        exported: the context length of the model.
        length: the most tokens here.
        piece: the most tokens that one run takes; None for any number.
    """

    def __init__(self, session: Session, exported: int) -> None:
        cache, sequence = session.axes.get(_CACHE), session.axes.get(_SEQUENCE)
        self.exported = exported
        self.length = exported if cache is None else min(exported, cache.max)
        self.piece = None if sequence is None else sequence.max

    def __str__(self) -> str:
        if self.length == self.exported:
            return f"the context of {self.length}"
        return f"the cache of {self.length} entries that this session is for (exported: a context of {self.exported})"

    @property
    def cure(self) -> str:
        """What makes it longer."""
        if self.length == self.exported:
            return "export with a longer --context-length"
        return f"load the bundle for more: context={self.exported}, or, ahead, edgegen build --context {self.exported}"


class KVCache:
    """Keys and values on the device, and the tokens that they belong to.

    The capacity starts at what is asked for and at least doubles when it is full, in multiples of 256 entries and never beyond
    the context length, nor beyond what the session takes. Tokens are run in pieces as long as the session takes. Used by one
    thread at a time; memory is freed by `close`.

    Args:
        session: a graph with `input_ids` and any of `attention_mask`, `position_ids`, `write_indices`; its state is the cache.
        context_length: the most tokens that it may ever hold.
        capacity: room for so many tokens at first (rounded up).
    """

    def __init__(self, session: Session, context_length: int, capacity: int) -> None:
        self.tokens: list[int] = []
        self._session = session
        self._context = Context(session, context_length)
        self._state = session.new_state(self._rounded(capacity))
        self._arrays: dict[str, Tensor] = {}
        self._one: dict[str, Tensor] = {}
        self._masked = 0  # how many ones the mask begins with
        self._takes = {name for name in _FED if name in session.inputs}
        self._make_step()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def capacity(self) -> int:
        """For how many tokens there is memory now."""
        return self._state.capacity

    def append(self, tokens: Sequence[int]) -> Tensor:
        """Run the graph on `tokens`, at least one, behind what is there.

        Returns:
            Logits [vocab] of the position after the last of them: valid until the session's next run.

        Raises:
            ContextFullError: there would be more tokens than the context length; nothing was run.
        """
        for piece in self._pieces(tokens):
            logits = self._run(piece, {})
        last: Tensor = logits[-1]
        return last

    def append_all(self, tokens: Sequence[int]) -> Tensor:
        """As `append`, but returns the logits behind every one of `tokens`: [token, vocab]. For proofs: it costs a lot."""
        found = [self._run(piece, {"logits_to_keep": np.array(len(piece), np.int64)}).copy() for piece in self._pieces(tokens)]
        return np.concatenate(found)

    def read(self, name: str) -> Tensor:
        """A copy of one state tensor, by its input's name: [batch, kv_head, cache, head_dim]."""
        return self._state.read(name)

    def _pieces(self, tokens: Sequence[int]) -> list[Sequence[int]]:
        """The tokens as the session takes them, with room for all of them."""
        end = len(self.tokens) + len(tokens)
        if end > self._state.capacity:
            self._grow(end)
        longest = self._context.piece or len(tokens)
        return [tokens[start : start + longest] for start in range(0, len(tokens), longest)]

    def _run(self, tokens: Sequence[int], extra: dict[str, Tensor]) -> Tensor:
        start, end = len(self.tokens), len(self.tokens) + len(tokens)
        feed = self._feed(tokens, start, end) | extra
        logits: Tensor = self._session.run(feed, state=self._state, outputs=_OUTPUTS)["logits"][0]
        self.tokens += tokens
        return logits

    def _feed(self, tokens: Sequence[int], start: int, end: int) -> dict[str, Tensor]:
        if len(tokens) == 1:
            return self._step(tokens[0], start)
        feed: dict[str, Tensor] = {"input_ids": np.array([tokens], np.int64)}
        takes = self._takes
        if "attention_mask" in takes:
            feed["attention_mask"] = np.ones((1, end), np.int64)
        if "position_ids" in takes:
            feed["position_ids"] = np.arange(start, end, dtype=np.int64)[None]
        if "write_indices" in takes:
            feed["write_indices"] = np.array([start], np.int64)
        return feed

    def _step(self, token: int, start: int) -> dict[str, Tensor]:
        """The decode step's feed: always the same arrays, so that a session binds them once. The mask covers the capacity."""
        arrays = self._arrays
        arrays["input_ids"][0, 0] = token
        arrays["position_ids"][0, 0] = start
        arrays["write_indices"][0] = start
        mask = arrays["attention_mask"]
        mask[0, self._masked : start + 1] = 1
        mask[0, start + 1 : self._masked] = 0
        self._masked = start + 1
        return self._one

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        del self.tokens[length:]

    def _grow(self, needed: int) -> None:
        if needed > self._context.length:
            raise ContextFullError(f"{needed} tokens do not fit in {self._context}; shorten the text, or {self._context.cure}")
        self._state.reserve(self._rounded(max(needed, 2 * self._state.capacity)), len(self.tokens))
        self._make_step()

    def _rounded(self, capacity: int) -> int:
        return min(-(-capacity // ROUNDING) * ROUNDING, self._context.length)

    def _make_step(self) -> None:
        self._arrays = {
            "input_ids": np.zeros((1, 1), np.int64),
            "attention_mask": np.zeros((1, self._state.capacity), np.int64),
            "position_ids": np.zeros((1, 1), np.int64),
            "write_indices": np.zeros(1, np.int64),
        }
        self._masked = 0
        self._one = {name: self._arrays[name] for name in self._takes}

    def close(self) -> None:
        """Free the memory. Closing twice is allowed."""
        self._state.close()

    def __enter__(self) -> "KVCache":
        """The cache is ready from construction."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()


_FED = ("input_ids", "attention_mask", "position_ids", "write_indices")
_OUTPUTS = ("logits",)
