"""From logits to the next token: options, penalties, truncation, one draw.

The order is fixed: logit_bias, repetition penalty, presence and frequency penalties, temperature, top_k, top_p, min_p, draw.
One uniform number of numpy's Philox is spent per drawn token, whatever the options, so that the same seed gives the same text
wherever the logits agree.

The vocabulary is never sorted as a whole where a part of it decides: maxima over strided groups give a lower bound of the
k-th largest logit, and only what reaches the bound is sorted.
"""

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import BackendError, InputError, UnknownNameError
from edgegen.ranges import check_range

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
Weights = NDArray[np.float64]

_FIRST_CANDIDATES = 64  # enough for most draws without top_k; eight times as many at each further try


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How text is generated. Greedy, and at most 256 tokens, unless told otherwise.

    Attributes:
        max_new_tokens: stop after so many tokens; 0 gives an empty result.
        temperature: divides the logits; 0 is greedy (the likeliest token, the lower id of equals), else 0.001 to 1000.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens that has this share of what top_k left (Holtzman et al. 2019).
        min_p: keep tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024).
        repetition_penalty: divides positive and multiplies negative logits of every token of the prompt and the text so far
            (CTRL, Keskar et al. 2019); 1 is off.
        presence_penalty: subtracted once from the logit of every token generated so far (OpenAI's definition).
        frequency_penalty: subtracted as many times as the token was generated so far (OpenAI's definition).
        logit_bias: added to the logits of these token ids.
        stop: the text ends before the first of these strings to be complete.
        seed: of the draws, 0 to 2**64 - 1; None takes one from the operating system, reported in the result.
        logprobs: report the natural-log probability of each token, and of so many likeliest alternatives, in the model's own
            distribution (before penalties and temperature).
        deadline_s: stop when so many seconds have passed since the call; looked at between runs of the graph.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    stop: str | Sequence[str] = ()
    seed: int | None = None
    logprobs: int | None = None
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a value out of its range."""
        for name, most in _INTEGERS.items():
            _check(name, getattr(self, name), 0, most, whole=True)
        for name, (low, high) in _NUMBERS.items():
            _check(name, getattr(self, name), low, high)
        if 0 < self.temperature < 1e-3:
            raise InputError(f"temperature is {self.temperature}; give 0 (greedy) or at least 0.001")
        if self.top_p == 0:
            raise InputError("top_p is 0, which keeps no token; give more than 0 and at most 1 (1 is off)")
        if not isinstance(self.logit_bias, Mapping):
            raise InputError("logit_bias must map token ids to numbers")
        for token, bias in self.logit_bias.items():
            check_range("a token id of logit_bias", token, 0, 2**31, whole=True)
            check_range(f"logit_bias of token {token}", bias, -1e4, 1e4)
        if not isinstance(self.stop, (str, list, tuple)) or any(not isinstance(text, str) for text in self.stop):
            raise InputError("stop must be a string or a list of strings")
        if "" in self.stop_strings:
            raise InputError("an empty stop string would stop everything; leave it out")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "SamplingOptions":
        """Options by name; UnknownNameError, with the closest known name, for one that does not exist."""
        known = cls.__dataclass_fields__
        for name in options:
            if name not in known:
                raise UnknownNameError("text option", name, known)
        return cls(**options)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def adjusts(self) -> bool:
        """Whether the logits are changed before the choice."""
        return (
            bool(self.logit_bias) or self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        )


_INTEGERS = {"max_new_tokens": 2**31, "top_k": 2**31, "seed": 2**64 - 1, "logprobs": 1000}
_NUMBERS = {
    "temperature": (0, 1e3),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-2, 1e2),
    "presence_penalty": (-1e2, 1e2),
    "frequency_penalty": (-1e2, 1e2),
    "deadline_s": (0, 1e9),
}
_OPTIONAL = {"seed", "logprobs", "deadline_s"}


def _check(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    if value is not None or name not in _OPTIONAL:
        check_range(name, value, low, high, whole=whole)


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """The natural-log probability of a token in the model's own distribution, and the likeliest alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses the tokens of one text: the options, the random stream, and what was generated so far.

    Args:
        options: see SamplingOptions.
        vocab_size: length of the logits; InputError where logit_bias names a token beyond it.
        prompt: the ids that the repetition penalty also counts.
    """

    def __init__(self, options: SamplingOptions, vocab_size: int, prompt: Sequence[int] = ()) -> None:
        if too_high := [token for token in options.logit_bias if token >= vocab_size]:
            raise InputError(f"logit_bias names token {too_high[0]}; the model has tokens 0 to {vocab_size - 1}")
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self._options = options
        self._philox = np.random.Philox(self.seed)
        self._history = History(options, vocab_size, prompt) if options.adjusts else None

    def choose(self, logits: Logits) -> int:
        """The next token from `logits` [vocab], which are left as they are. BackendError where they are not finite."""
        # One comparison finds NaN and infinity alike: the maximum of an array that holds a NaN is NaN.
        if not math.isfinite(logits.max()):
            raise BackendError("the graph gave logits that are not finite; verify the bundle on this backend")
        history, options = self._history, self._options
        adjusted = logits if history is None else history.adjust(logits)
        token = int(adjusted.argmax()) if options.temperature == 0 else draw(adjusted, options, self._uniform())
        if history is not None:
            history.add(token)
        return token

    def _uniform(self) -> float:
        # The raw stream of a bit generator never changes between numpy versions; Generator's methods may.
        return float(int(self._philox.random_raw()) >> 11) * 2.0**-53


class History:
    """What was said so far, as the penalties need it: ids and counts in slots, so that a token costs no pass over all."""

    def __init__(self, options: SamplingOptions, vocab_size: int, prompt: Sequence[int]) -> None:
        self._options = options
        self._slots: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)  # [slot]
        self._counts = np.zeros(64, np.float32)  # [slot], times generated: 0 for what only the prompt has
        self._bias_ids = np.array(list(options.logit_bias), np.int64)
        self._bias = np.array(list(options.logit_bias.values()), np.float32)
        self._adjusted = np.empty(vocab_size, np.float32)
        if options.repetition_penalty != 1:
            for token in dict.fromkeys(prompt):
                self._slot(token)

    def _slot(self, token: int) -> int:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == self._ids.size:
            self._ids, self._counts = np.resize(self._ids, 2 * slot), np.resize(self._counts, 2 * slot)
            self._counts[slot:] = 0
        self._ids[slot] = token
        return slot

    def add(self, token: int) -> None:
        """Count a generated token."""
        slot = self._slot(token)  # first: it may replace the arrays
        self._counts[slot] += 1

    def adjust(self, logits: Logits) -> Logits:
        """Logits [vocab] with bias and penalties applied; valid until the next call."""
        options, adjusted = self._options, self._adjusted
        adjusted[:] = logits
        adjusted[self._bias_ids] += self._bias
        seen = self._ids[: len(self._slots)]
        values = adjusted[seen]
        if options.repetition_penalty != 1:
            penalty = np.float32(options.repetition_penalty)
            with np.errstate(over="ignore"):  # a mask of -3e38 becomes -infinity, which is what it means
                values = np.where(values > 0, values / penalty, values * penalty)
        counts = self._counts[: seen.size]
        values -= np.float32(options.frequency_penalty) * counts + np.float32(options.presence_penalty) * (counts > 0)
        adjusted[seen] = values
        return adjusted


def top(logits: Logits, k: int) -> tuple[Ids, Logits]:
    """The k largest of logits [vocab], exactly: ids [k] and values [k], best first, the lower id first among equals."""
    groups = max(1024, 4 * k)
    rows = logits.size // groups
    if rows < 2:
        order = np.argsort(-logits, kind="stable")[:k]
        return order, logits[order]
    # Every group maximum is an element: k of them reach the k-th largest maximum, so the k-th largest element does too.
    # Strided groups, because the maximum over the leading axis runs at the speed of memory.
    maxima = logits[: rows * groups].reshape(rows, groups).max(axis=0)
    bound = np.partition(maxima, groups - k)[groups - k]
    found = np.flatnonzero(logits >= bound)
    values = logits[found]
    order = np.argsort(-values, kind="stable")[:k]
    return found[order], values[order]


def draw(logits: Logits, options: SamplingOptions, uniform: float) -> int:
    """Draw a token by the inverse of the cumulative distribution over the kept tokens, likeliest first.

    Weights are exp((logit - largest) / temperature) in float64. All three truncations keep a beginning of that order.
    Without top_k, the sum over the whole vocabulary is of float32 exponentials: it is right to about 1e-6.

    Args:
        logits: [vocab], at least one of them finite, none NaN or +infinity.
        options: temperature above 0; top_k, top_p, min_p.
        uniform: in [0, 1).
    """
    vocab_size = logits.size
    wanted = min(options.top_k, vocab_size) if options.top_k else vocab_size
    size = wanted if options.top_k else _FIRST_CANDIDATES  # without top_k few tokens usually decide: look further as needed
    total = None
    while True:
        ids, values = top(logits, min(size, wanted))
        weights = np.exp((values.astype(np.float64) - values[0]) / options.temperature)
        cumulative = weights.cumsum()
        if ids.size == wanted:
            return int(ids[_pick(weights, cumulative, float(cumulative[-1]), options, uniform)])
        total = _total_weight(logits, values[0], options.temperature) if total is None else total
        if _decides(weights, cumulative, total, options, uniform):
            return int(ids[_pick(weights, cumulative, total, options, uniform)])
        size *= 8


def _total_weight(logits: Logits, largest: np.float32, temperature: float) -> float:
    weights = logits - largest
    with np.errstate(over="ignore"):  # a mask of -3e38 becomes -infinity, which is what it means
        weights /= np.float32(temperature)
    np.exp(weights, out=weights)
    return float(weights.sum(dtype=np.float64))


def _decides(weights: Weights, cumulative: Weights, total: float, options: SamplingOptions, uniform: float) -> bool:
    """Whether these candidates hold every token that the draw can depend on."""
    if weights[-1] < options.min_p or cumulative[-1] >= options.top_p * total:
        return True
    return options.min_p == 0 and options.top_p == 1 and bool(cumulative[-1] > uniform * total)


def _pick(weights: Weights, cumulative: Weights, total: float, options: SamplingOptions, uniform: float) -> int:
    kept = weights.size
    mass = total
    if options.top_p < 1:  # the token that crosses the share is kept
        kept = min(int(cumulative.searchsorted(options.top_p * total)) + 1, kept)
        mass = float(cumulative[kept - 1])
    if options.min_p > 0:
        likely = int(np.count_nonzero(weights >= options.min_p))
        if likely < kept:
            kept = likely
            mass = float(cumulative[kept - 1])
    chosen = int(cumulative.searchsorted(uniform * mass, side="right"))
    # Rounding may put uniform * mass at the very end, past tokens whose weight is zero.
    return min(chosen, kept - 1, int(np.count_nonzero(weights)) - 1)


def token_logprob(logits: Logits, token: int, alternatives: int) -> TokenLogprob:
    """The log probability of `token` under softmax(logits [vocab]), and of the likeliest `alternatives` tokens."""
    largest = logits.max()
    normalizer = float(largest) + math.log(_total_weight(logits, largest, 1.0))
    ids, values = top(logits, min(alternatives, logits.size)) if alternatives else (np.zeros(0, np.int64), logits[:0])
    best = tuple((int(index), float(value) - normalizer) for index, value in zip(ids, values, strict=True))
    return TokenLogprob(token, float(logits[token]) - normalizer, best)
