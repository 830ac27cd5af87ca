"""Language models: cold start, time to first token, inter-token latency, tokens per second, and the limit beside them."""

import collections
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.backends import AUTO, choose, variant_for
from edgegen.bench.cold import measure_cold, measure_import
from edgegen.bench.machine import bandwidth_of, describe
from edgegen.bench.measure import Clock, measure, summarize
from edgegen.bench.metrics import Arrivals, roofline_tokens_per_s, spread
from edgegen.errors import InputError
from edgegen.manifest import Variant

_COLD_REPEATS = 3
_CUTS = 4  # how far from the wanted length a text is cut, to be read back with just that length
_TEXT = (
    "The river had been low all summer, and the boats lay on the mud like sleeping animals. Every morning the ferryman walked "
    "down to the bank, counted the stones that the water had left bare, and wrote the number in a small brown book. "
)
METHOD = (
    "Times are of the whole pipeline, tokenization and sampling included, greedy. Time to first token: from the call to the "
    "first piece of text. Inter-token latency: between pieces after the first, pooled over the repeats. Tokens per second: "
    "tokens after the first over the time they took, median of the repeats. Cold: fresh processes. Roofline: read bandwidth "
    "over the bytes of all weights and of the state at the middle of the generation; the bandwidth is measured where a "
    "processor runs, and the device's stated one where a GPU does."
)


@dataclasses.dataclass(frozen=True)
class _Plan:
    new_tokens: int
    warmup: int
    repeats: int
    clock: Clock

    def __post_init__(self) -> None:
        if self.new_tokens < 2 or self.warmup < 0 or self.repeats < 1:
            least = "new_tokens must be at least 2, warmup 0, repeats 1"
            raise InputError(f"new_tokens {self.new_tokens}, warmup {self.warmup}, repeats {self.repeats}; {least}")


def bench_text(
    bundle: str | os.PathLike[str],
    *,
    backend: str = AUTO,
    threads: int | None = None,
    prompt_lengths: Sequence[int] = (16, 128, 512),
    new_tokens: int = 64,
    warmup: int = 1,
    repeats: int = 5,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Measure a decoder LM's bundle on this machine.

    Args:
        bundle: its path.
        backend: a backend's name, or "auto".
        threads: CPU threads; the default of the backend if None.
        prompt_lengths: in tokens; those that do not fit the context with the new tokens are left out, and named.
        new_tokens: to generate; an end-of-text token may end a generation sooner, and the counts say so.
        warmup: generations for each length that are not counted.
        repeats: generations for each length that are.
        clock: monotonic, in seconds.

    Returns:
        One object for JSON: bundle, machine, method, settings, sessions (how each graph ran), cold, bandwidth, and one entry of
        `prompts` for each length, and left_out_prompt_lengths. Without a known bandwidth there is no limit, and no share of it.

    Raises:
        InputError: an option out of its range, or no length fits. And all that `edgegen.load` raises.
    """
    from edgegen.runtime import load

    plan = _Plan(new_tokens, warmup, repeats, clock)
    chosen = choose(backend)
    bandwidth = bandwidth_of(chosen, threads)
    with load(bundle, chosen, threads=threads) as pipeline:
        context = pipeline.context.length
        lengths = [length for length in prompt_lengths if 0 < length <= context - new_tokens]
        if not lengths:
            asked = f"prompts of {', '.join(map(str, prompt_lengths))} tokens and {new_tokens} new ones"
            raise InputError(f"{asked} do not fit in this bundle's context of {context}; ask for less")
        manifest = pipeline.bundle.manifest
        variant = manifest.graphs["decoder"].variants[variant_for(chosen, pipeline.bundle, "decoder")]
        weights_bytes = sum(manifest.files[path].size_bytes for path in variant.weights)
        prompts = [_bench_prompt(pipeline, length, plan) for length in lengths]
        details = {"decoder": dict(pipeline.session.details)}
        first_prompt = prompt_of(pipeline.tokenizer, lengths[0])
    for entry in prompts:
        state_bytes = state_bytes_per_entry(variant) * (entry["prompt_tokens"] + entry["new_tokens"] // 2)
        entry["roofline"] = _roofline(bandwidth.bytes_per_s, weights_bytes, state_bytes, entry["decode_tokens_per_s"])
    return {
        "bundle": {"name": manifest.name, "precision": manifest.precision, "weights_bytes": weights_bytes},
        "machine": describe(),
        "method": METHOD,
        "settings": {"backend": chosen, "threads": threads, "new_tokens": new_tokens, "warmup": warmup, "repeats": repeats},
        "sessions": details,
        "cold": _cold(str(Path(bundle).resolve()), chosen, threads, first_prompt, new_tokens),
        "read_bandwidth_bytes_per_s": bandwidth.bytes_per_s,
        "read_bandwidth_source": bandwidth.source,
        "prompts": prompts,
        "left_out_prompt_lengths": [length for length in prompt_lengths if length not in lengths],
    }


def prompt_of(tokenizer: Any, length: int) -> str:
    """English text of `length` tokens, or as near as text comes: a cut text may be read back as other tokens.

    Raises InputError where the tokenizer makes nothing of English text.
    """
    per_text = len(tokenizer.encode(_TEXT, add_special_tokens=False))
    if per_text == 0:
        raise InputError("this bundle's tokenizer knows no English text, of which the benchmark's prompts are made")
    ids = tokenizer.encode(_TEXT * (length // per_text + 1))
    prompts: list[str] = [tokenizer.decode(ids[:cut]) for cut in range(max(1, length - _CUTS), length + _CUTS)]
    return min(prompts, key=lambda prompt: abs(len(tokenizer.encode(prompt)) - length))


def state_bytes_per_entry(variant: Variant) -> int:
    """Bytes of the state tensors for one entry of their growing axis, at batch 1."""
    specs = {spec.name: spec for spec in variant.inputs}
    total = 0
    for pair in variant.state:
        spec = specs[pair.input]
        sizes = [axis for place, axis in enumerate(spec.axes) if place != pair.axis and isinstance(axis, int)]
        total += math.prod(sizes) * np.dtype(spec.dtype).itemsize
    return total


def _bench_prompt(pipeline: Any, length: int, plan: _Plan) -> dict[str, Any]:
    prompt, clock = prompt_of(pipeline.tokenizer, length), plan.clock
    runs: list[Arrivals] = []
    shares: dict[str, float] = collections.defaultdict(float)

    def once() -> None:
        start_s = clock()
        stream = pipeline.stream(prompt, max_new_tokens=plan.new_tokens, temperature=0.0)
        pieces = [(clock(), len(piece.token_ids)) for piece in stream]
        runs.append(Arrivals(start_s, tuple(piece for piece in pieces if piece[1])))

    def note(stage: str, seconds: float) -> None:
        shares[stage] += seconds

    for _ in range(plan.warmup):
        once()
    runs.clear()
    pipeline.clock_hook = note
    try:
        totals_s = measure(once, warmup=0, repeats=plan.repeats, clock=clock)
    finally:
        pipeline.clock_hook = None
    speeds = [run.decode_tokens_per_s for run in runs]
    gaps_s = [gap for run in runs for gap in run.gaps_s()]
    return {
        "prompt_tokens": len(pipeline.tokenizer.encode(prompt)),
        "new_tokens": min(run.tokens for run in runs),
        "first_token": dataclasses.asdict(summarize([run.first_token_s for run in runs])),
        "inter_token": dataclasses.asdict(summarize(gaps_s)),
        "decode_tokens_per_s": statistics.median(speeds),
        "decode_spread": spread(speeds),
        "total": dataclasses.asdict(summarize(totals_s)),
        "stage_s": {stage: seconds / plan.repeats for stage, seconds in sorted(shares.items())},
    }


def _roofline(bandwidth: float | None, weights_bytes: int, state_bytes: int, reached: float) -> dict[str, float | None]:
    if bandwidth is None:
        return {"state_bytes": state_bytes, "tokens_per_s": None, "share": None}
    limit = roofline_tokens_per_s(bandwidth, weights_bytes, state_bytes)
    return {"state_bytes": state_bytes, "tokens_per_s": limit, "share": reached / limit}


def _cold(bundle: str, backend: str, threads: int | None, prompt: str, new_tokens: int) -> dict[str, Any]:
    runs = [measure_cold(bundle, backend, threads, prompt, new_tokens) for _ in range(_COLD_REPEATS)]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0] if runs[0][key] is not None}
    import_s = statistics.median(measure_import("edgegen") for _ in range(_COLD_REPEATS))
    return {"processes": _COLD_REPEATS, "import_s": import_s} | medians
