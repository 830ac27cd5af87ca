"""From the times of tokens to the figures of the comparison, and whether the targets are met. Pure arithmetic."""

import statistics
from dataclasses import dataclass

OURS = "edgegen"
DECODE, FIRST = "decode_tokens_per_s", "first_token_s"
GREEDY, SAMPLED = "greedy", "sampled"
MEMORY_FACTOR, MEMORY_BYTES = 2.2, 150e6  # generation may peak at 2.2 x the weights plus 150 MB


@dataclass(frozen=True)
class Sample:
    """One request: token_s are the seconds from the request to each token id."""

    engine: str
    prompt_tokens: int
    mode: str
    round: int
    token_s: tuple

    def value(self, figure):
        """Time to first token in seconds, or the n - 1 tokens after the first over the time that they took."""
        if figure == FIRST:
            return self.token_s[0]
        return (len(self.token_s) - 1) / (self.token_s[-1] - self.token_s[0])


def spread(values):
    """Median, least and most, and the values themselves, in the order of the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def compare(samples, prompt_tokens, figure):
    """One figure at one prompt length for every engine, and edgegen's ratio to the best peer.

    The best peer is the one with the best median. Two ratios: that of the medians, and the median of the ratios within each
    round, where both ran under the same weather.
    """
    mine = [sample for sample in samples if sample.prompt_tokens == prompt_tokens and sample.mode == GREEDY]
    values = {}
    for sample in sorted(mine, key=lambda sample: sample.round):
        values.setdefault(sample.engine, []).append(sample.value(figure))
    engines = {name: spread(rounds) for name, rounds in values.items()}
    best = (min if figure == FIRST else max)((name for name in engines if name != OURS), key=lambda n: engines[n]["median"])
    paired = [ours / theirs for ours, theirs in zip(values[OURS], values[best], strict=True)]
    return {
        "prompt_tokens": prompt_tokens,
        "figure": figure,
        "engines": engines,
        "best_peer": best,
        "ratio_of_medians": engines[OURS]["median"] / engines[best]["median"],
        "ratio_of_rounds": spread(paired),
    }


def sampling_cost(samples, prompt_tokens):
    """The share of edgegen's greedy decode speed that sampling costs, paired within each round."""
    speeds = {
        mode: [
            sample.value(DECODE)
            for sample in sorted(samples, key=lambda sample: sample.round)
            if (sample.engine, sample.prompt_tokens, sample.mode) == (OURS, prompt_tokens, mode)
        ]
        for mode in (GREEDY, SAMPLED)
    }
    costs = [1 - sampled / greedy for greedy, sampled in zip(speeds[GREEDY], speeds[SAMPLED], strict=True)]
    return {"prompt_tokens": prompt_tokens, "cost": spread(costs)} | {mode: spread(found) for mode, found in speeds.items()}


def targets(comparisons, sampling, cold, weights_bytes):
    """Every target with what was reached: a list of {name, target, value, met}. A ratio is met when both ratios are."""
    rows = []
    for wanted_tokens, figure, limit in ((18, DECODE, 1.08), (539, DECODE, 1.05), (539, FIRST, 1.0)):
        found = [one for one in comparisons if (one["prompt_tokens"], one["figure"]) == (wanted_tokens, figure)]
        for one in found:  # none where other prompts were asked for
            ratios = (one["ratio_of_medians"], one["ratio_of_rounds"]["median"])
            name = f"{figure}, {wanted_tokens} tokens, ratio to {one['best_peer']}"
            rows.append(_row(name, limit, max(ratios)) if figure == FIRST else _row(name, limit, min(ratios), at_most=False))
    rows.append(_row("cost of sampling, share of decode speed", 0.10, sampling["cost"]["median"]))
    if cold:
        rows.append(_row("import edgegen beyond numpy, s", 0.1, cold["import_s"]["median"]))
        rows.append(_row("load, s", 0.5, cold["load_s"]["median"]))
        limit = MEMORY_FACTOR * weights_bytes + MEMORY_BYTES
        rows.append(_row("peak memory of generation, bytes", limit, cold["peak_memory_bytes"]["max"]))
    return rows


def _row(name, target, value, *, at_most=True):
    met = value <= target if at_most else value >= target
    return {"name": name, "target": target, "at_most": at_most, "value": value, "met": met}
