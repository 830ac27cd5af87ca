"""The harness is tested without sleeping: its clock is an argument."""

import pytest

from edgegen.bench.measure import measure, summarize
from edgegen.bench.metrics import Arrivals, roofline_tokens_per_s, spread
from edgegen.errors import InputError


def ticking(times):
    remaining = iter(times)
    return lambda: next(remaining)


def test_warm_up_runs_are_made_but_not_timed():
    calls = []
    samples = measure(lambda: calls.append(1), warmup=2, repeats=3, clock=ticking([0, 1, 10, 12, 20, 23]))
    assert samples == [1, 2, 3]
    assert len(calls) == 5


@pytest.mark.parametrize(("warmup", "repeats"), [(-1, 1), (0, 0)])
def test_a_measurement_without_repeats_is_refused(warmup, repeats):
    with pytest.raises(InputError):
        measure(lambda: None, warmup=warmup, repeats=repeats)


def test_a_summary_has_the_percentiles_of_its_samples():
    summary = summarize([float(value) for value in range(101)])
    assert (summary.count, summary.min_s, summary.max_s) == (101, 0, 100)
    # Linear interpolation between 101 equidistant samples hits them exactly.
    assert (summary.p50_s, summary.p90_s, summary.p99_s) == pytest.approx((50, 90, 99), abs=1e-9)


def test_nothing_cannot_be_summarized():
    with pytest.raises(InputError):
        summarize([])


def test_first_token_gaps_and_speed_come_from_arrival_times():
    run = Arrivals(10.0, ((10.5, 1), (10.6, 1), (10.8, 1)))
    assert run.tokens == 3
    assert run.first_token_s == pytest.approx(0.5)
    assert run.gaps_s() == pytest.approx([0.1, 0.2])
    assert run.decode_tokens_per_s == pytest.approx(2 / 0.3)


def test_a_piece_of_several_tokens_counts_as_several_gaps():
    run = Arrivals(0.0, ((1.0, 1), (1.4, 2)))
    assert run.gaps_s() == pytest.approx([0.2, 0.2])
    assert run.decode_tokens_per_s == pytest.approx(5)


def test_one_piece_has_no_speed_and_none_has_no_first_token():
    assert Arrivals(0.0, ((1.0, 1),)).decode_tokens_per_s == 0
    with pytest.raises(InputError):
        _ = Arrivals(0.0, ()).first_token_s


def test_the_roofline_is_bandwidth_over_bytes_read():
    assert roofline_tokens_per_s(30e9, 90_000_000, 10_000_000) == 300


def test_the_spread_is_relative_to_the_median():
    assert spread([9, 10, 11]) == pytest.approx(0.2)
    assert spread([5]) == 0
