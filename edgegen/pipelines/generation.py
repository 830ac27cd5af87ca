"""The loop that makes text: prefill, then sample, tell, and run the graph on one token, until something ends it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from edgegen.errors import BundleError, ContextFullError
from edgegen.kv_cache import KVCache
from edgegen.pipelines.text import FinishReason, StopStrings, TextPiece, timed
from edgegen.sampling import Sampler, SamplingOptions, TokenLogprob, token_logprob
from edgegen.tensors import Tensor

if TYPE_CHECKING:
    from edgegen.pipelines.decoder_lm import DecoderLM


class Turn:
    """One continuation of one sequence of tokens: everything that is decided before the first run of the graph.

    Args:
        model: the pipeline.
        ids: the whole prompt.
        options: of this text.
        started: the perf_counter from which the deadline counts.
        after: the ids that the text continues, for the tokenizers that write a beginning differently.

    Raises:
        ContextFullError: the prompt leaves no room for a single token.
        BundleError: the tokenizer knows tokens that the graph does not.
    """

    def __init__(
        self, model: "DecoderLM", ids: list[int], options: SamplingOptions, *, started: float, after: Sequence[int] = ()
    ) -> None:
        context, vocab_size = model.context, model.settings.vocab_size
        if len(ids) >= context.length:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens; {context} leaves room for {context.length - 1} and one of text: "
                f"shorten the prompt, or {context.cure}"
            )
        if max(ids) >= vocab_size:
            raise BundleError(f"the tokenizer gave token {max(ids)}; the graph's vocabulary has {vocab_size}")
        self.ids, self.options = ids, options
        self.sampler = Sampler(options, vocab_size, ids)
        self._model = model
        self._deadline = None if options.deadline_s is None else started + options.deadline_s
        room = context.length - len(ids)
        self._most = min(options.max_new_tokens, room)
        self._full: FinishReason = "length" if options.max_new_tokens <= room else "context"
        self._decoder = model.tokenizer.stream(after)
        self._stop = StopStrings(options.stop_strings)

    def run(self, cache: KVCache | None = None) -> Iterator[TextPiece]:
        """Generate. With a `cache`, what it holds of the beginning of the prompt is used, and it is left open."""
        with contextlib.ExitStack() as stack:
            if self._most == 0:
                yield self._last("length")
                return
            if cache is None:
                cache = stack.enter_context(self._model.new_cache(len(self.ids), self._most))
            yield from self._pieces(cache)

    def _pieces(self, cache: KVCache) -> Iterator[TextPiece]:
        model = self._model
        forward = timed(model.clock_hook, "forward", cache.append)
        sample = timed(model.clock_hook, "sample", self._sample)
        detokenize = timed(model.clock_hook, "detokenize", self._detokenize)
        tokens = self._prefill(cache, forward)
        for count in range(1, self._most + 1):
            if self._is_late():
                yield self._last("deadline")
                return
            with model.lock:
                token, logprobs = sample(forward(tokens))
            if token in model.eos:
                yield self._last("stop")
                return
            text = detokenize(token)
            if self._stop.stopped or count == self._most:
                text += self._rest()  # which may itself complete a stop string
                yield TextPiece(text, (token,), "stop" if self._stop.stopped else self._full, logprobs)
                return
            yield TextPiece(text, (token,), None, logprobs)
            tokens = [token]

    def _prefill(self, cache: KVCache, forward: Callable[..., Tensor]) -> list[int]:
        """Run what the cache lacks of the prompt, but for the last chunk, which is returned: its logits are wanted."""
        held = _common_prefix(cache.tokens, self.ids[:-1])
        cache.rewind(held)
        left = self.ids[held:]
        chunk = self._model.prefill_chunk or len(left)
        while len(left) > chunk and not self._is_late():
            with self._model.lock:
                forward(left[:chunk])
            left = left[chunk:]
        return left

    def _is_late(self) -> bool:
        return self._deadline is not None and time.perf_counter() > self._deadline

    def _sample(self, logits: Tensor) -> tuple[int, tuple[TokenLogprob, ...] | None]:
        token = self.sampler.choose(logits)
        wanted = self.options.logprobs
        return token, None if wanted is None else (token_logprob(logits, token, wanted),)

    def _detokenize(self, token: int) -> str:
        return self._stop.push(self._decoder.push(token))

    def _rest(self) -> str:
        """The end of the text: what decoder and stop strings held back. Nothing comes after a stop string."""
        return self._stop.push(self._decoder.flush()) + self._stop.flush()

    def _last(self, reason: FinishReason) -> TextPiece:
        text = self._rest()
        return TextPiece(text, (), "stop" if self._stop.stopped else reason, None if self.options.logprobs is None else ())


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for i, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return i
    return min(len(first), len(second))
