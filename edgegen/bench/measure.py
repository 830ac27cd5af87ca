"""Timing: warm-up, repeats, an injected clock, and what is left of the samples."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from edgegen.errors import InputError

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is reported of some samples, in seconds. Percentiles are interpolated linearly between neighbours."""

    count: int
    min_s: float
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


def summarize(samples_s: Sequence[float]) -> Summary:
    """Summarize samples in seconds; InputError where there are none."""
    if not samples_s:
        raise InputError("there is nothing to summarize: no sample was taken")
    p50, p90, p99 = (float(value) for value in np.percentile(samples_s, (50, 90, 99)))
    return Summary(len(samples_s), min(samples_s), float(np.mean(samples_s)), p50, p90, p99, max(samples_s))


def measure(call: Callable[[], object], *, warmup: int, repeats: int, clock: Clock = time.perf_counter) -> list[float]:
    """Time `call`, which must block until the device is done, or this measures the launch.

    Args:
        call: run `warmup` + `repeats` times, one after the other.
        warmup: runs that are not timed: the first touches memory, fills caches and starts threads.
        repeats: runs that are timed.
        clock: seconds; a monotonic one.

    Returns:
        One sample for each timed run, in seconds and in order.
    """
    if warmup < 0 or repeats < 1:
        raise InputError(f"warmup is {warmup} and repeats is {repeats}; they must be at least 0 and 1")
    for _ in range(warmup):
        call()
    samples_s = []
    for _ in range(repeats):
        start = clock()
        call()
        samples_s.append(clock() - start)
    return samples_s
