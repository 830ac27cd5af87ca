"""From the times at which pieces of text arrived to the numbers people compare."""

import dataclasses
import itertools
from collections.abc import Sequence

from edgegen.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """One generation: when it was asked for, when each piece arrived (seconds of one clock), and its number of tokens."""

    start_s: float
    pieces: tuple[tuple[float, int], ...]

    @property
    def tokens(self) -> int:
        """New tokens."""
        return sum(count for _, count in self.pieces)

    @property
    def first_token_s(self) -> float:
        """Time to first token: from the call to the first piece, tokenization and prefill included."""
        if not self.pieces:
            raise InputError("the generation gave no token: nothing to measure")
        return self.pieces[0][0] - self.start_s

    def gaps_s(self) -> list[float]:
        """Inter-token latencies after the first piece.

        A piece of n tokens (a character that took several) counts as n gaps of an n-th each: what was not seen apart is not
        made up.
        """
        gaps: list[float] = []
        for (before_s, _), (now_s, count) in itertools.pairwise(self.pieces):
            gaps += [(now_s - before_s) / count] * count
        return gaps

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first piece, over the time from the first piece to the last; 0 where there was only one piece."""
        gaps = self.gaps_s()
        return len(gaps) / sum(gaps) if gaps else 0.0


def roofline_tokens_per_s(bandwidth_bytes_per_s: float, weights_bytes: int, state_bytes: int) -> float:
    """The most decode steps per second that memory allows: each reads all weights and the valid part of the state once.

    A bound for batch 1 and weights that do not fit in the caches (Williams et al. 2009, the roofline model).
    """
    return bandwidth_bytes_per_s / (weights_bytes + state_bytes)


def spread(values: Sequence[float]) -> float:
    """(max - min) / median: how far the repeats lie apart."""
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    return (ordered[-1] - ordered[0]) / middle if middle else 0.0
