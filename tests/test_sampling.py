"""Sampling against a reference that sorts everything."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegen.errors import BackendError, InputError, UnknownNameError
from edgegen.sampling import Sampler, SamplingOptions, draw, token_logprob, top


def reference_distribution(logits, options):
    """Ids, likeliest first, and their probabilities: everything sorted, everything in float64."""
    order = np.lexsort((np.arange(logits.size), -logits))
    if options.top_k:
        order = order[: options.top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / options.temperature)
    share = np.cumsum(weights) / weights.sum()
    kept = order.size
    if options.top_p < 1:
        kept = min(int(np.searchsorted(share, options.top_p)) + 1, kept)
    kept = min(kept, int((weights >= options.min_p).sum()))
    return order[:kept], weights[:kept] / weights[:kept].sum()


def reference_draw(logits, options, uniform):
    ids, probabilities = reference_distribution(logits, options)
    return int(ids[min(np.searchsorted(np.cumsum(probabilities), uniform, side="right"), ids.size - 1)])


def random_logits(seed, size, spread=4.0):
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 9000), k=st.integers(1, 300), ties=st.booleans())
def test_top_is_the_beginning_of_a_full_sort(seed, size, k, ties):
    logits = random_logits(seed, size)
    logits = np.round(logits) if ties else logits
    k = min(k, size)
    ids, values = top(logits, k)
    expected = np.lexsort((np.arange(size), -logits))[:k]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, logits[expected])


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([3, 100, 5000, 12345]),
    top_k=st.sampled_from([0, 0, 1, 2, 50, 700, 99999]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    temperature=st.sampled_from([0.01, 0.7, 1.0, 3.0, 50.0]),
)
def test_a_draw_equals_that_of_a_full_sort(seed, size, top_k, top_p, min_p, temperature):
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = random_logits(seed, size)
    uniform = float(np.random.default_rng(seed).random())
    assert draw(logits, options, uniform) == reference_draw(logits, options, uniform)


def test_a_draw_follows_the_distribution():
    logits = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    options = SamplingOptions(temperature=1.0)
    uniforms = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount([draw(logits, options, float(u)) for u in uniforms], minlength=3)
    # The uniforms are a grid: a share may be off by one point of it.
    np.testing.assert_allclose(counts, [200, 500, 300], atol=1)


def test_top_k_draws_in_proportion():
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=2, seed=1), 4)
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    share = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=4) / 4000
    # 0.5 : 0.3 renormalized is 0.625 : 0.375; 4 sigma of a share of 4,000 draws is 0.031.
    np.testing.assert_allclose(share, [0.625, 0.375, 0, 0], atol=0.031)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_a_token_of_no_probability_is_never_drawn(uniform):
    logits = np.full(5000, -np.inf, np.float32)
    logits[[7, 4000]] = 1.0
    assert draw(logits, SamplingOptions(temperature=1.0), uniform) in (7, 4000)
    masked = np.where(np.isfinite(logits), logits, np.finfo(np.float32).min)
    assert draw(masked, SamplingOptions(temperature=0.01), uniform) in (7, 4000)


def test_equal_logits_are_taken_in_the_order_of_their_ids():
    logits = np.zeros(5000, np.float32)
    assert Sampler(SamplingOptions(), 5000).choose(logits) == 0
    assert draw(logits, SamplingOptions(temperature=1.0, top_k=4), 0.99) == 3
    assert draw(logits, SamplingOptions(temperature=1.0), 0.5) == 2500


def test_the_same_seed_draws_the_same_and_another_differs():
    def tokens(seed):
        sampler = Sampler(SamplingOptions(temperature=2.0, seed=seed), 100)
        return [sampler.choose(random_logits(i, 100)) for i in range(30)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(2**64 - 1)


def test_the_stream_of_uniforms_is_pinned():
    # A change here changes every seeded text.
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=0), 3)
    philox = np.random.Philox(0)
    expected = [float(int(philox.random_raw()) >> 11) * 2.0**-53 for _ in range(3)]
    assert [sampler._uniform() for _ in range(3)] == expected
    assert expected[0] == pytest.approx(0.014067035665647709, abs=0)


def test_without_a_seed_one_is_taken_and_told():
    first, second = (Sampler(SamplingOptions(temperature=1.0), 10) for _ in range(2))
    assert first.seed != second.seed  # 1 in 2**32 to fail
    again = Sampler(SamplingOptions(temperature=1.0, seed=first.seed), 10)
    logits = random_logits(0, 10)
    assert [first.choose(logits) for _ in range(9)] == [again.choose(logits) for _ in range(9)]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_prompt_and_text():
    def choose(*logits):
        return Sampler(SamplingOptions(repetition_penalty=2.0), 3, prompt=[0, 0]).choose(np.array(logits, np.float32))

    assert choose(3.0, 1.6, -9) == 1  # 3 / 2, once however often the prompt has it
    assert choose(3.0, 1.4, -9) == 0
    assert choose(-1.0, -1.9, -9) == 1  # -1 * 2
    assert choose(-1.0, -2.1, -9) == 0


def test_repetition_penalty_counts_the_token_just_generated():
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0), 3)
    logits = np.array([3.0, 2.0, -9.0], np.float32)
    assert [sampler.choose(logits) for _ in range(3)] == [0, 1, 0]  # 3, then 2 against 1.5, then 1.5 against 1


def test_presence_is_subtracted_once_and_frequency_each_time():
    logits = np.array([3.0, 1.9, 0.0], np.float32)
    presence = Sampler(SamplingOptions(presence_penalty=1.0), 3, prompt=[0, 0, 0])
    assert [presence.choose(logits) for _ in range(4)] == [0, 0, 0, 0]  # 3 - 1 stays above 1.9
    frequency = Sampler(SamplingOptions(frequency_penalty=1.0), 3, prompt=[0, 0, 0])
    assert [frequency.choose(logits) for _ in range(4)] == [0, 0, 1, 0]  # 3, 2, then 1 < 1.9, then 1 > 0.9


def test_many_different_tokens_outgrow_the_first_slots():
    sampler = Sampler(SamplingOptions(presence_penalty=100.0), 500, prompt=range(300))
    assert [sampler.choose(-np.arange(500, dtype=np.float32) / 10) for _ in range(400)] == list(range(400))
    repeated = Sampler(SamplingOptions(repetition_penalty=100.0), 500, prompt=range(300))
    assert repeated.choose(np.linspace(10, 9, 500, dtype=np.float32)) == 300


def test_logit_bias_moves_the_choice_and_leaves_the_logits_alone():
    logits = np.array([1.0, 0.0, 0.5], np.float32)
    before = logits.copy()
    assert Sampler(SamplingOptions(logit_bias={1: 5.0, 0: -1.0}), 3).choose(logits) == 1
    np.testing.assert_array_equal(logits, before)


def test_logit_bias_of_a_token_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="names token 3; the model has tokens 0 to 2"):
        Sampler(SamplingOptions(logit_bias={3: 1.0}), 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    logits = random_logits(0, 100)
    logits[50] = bad
    with pytest.raises(BackendError, match="not finite"):
        Sampler(SamplingOptions(temperature=1.0), 100).choose(logits)


def test_logprobs_are_those_of_the_unmodified_distribution():
    logits = random_logits(3, 5000)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    found = token_logprob(logits, 17, 5)
    # float32 exponentials: about 1e-6 relative in the sum.
    assert found.logprob == pytest.approx(exact[17], abs=1e-5)
    assert [token for token, _ in found.top] == list(np.argsort(-exact)[:5])
    np.testing.assert_allclose([logprob for _, logprob in found.top], np.sort(exact)[::-1][:5], atol=1e-5)
    assert token_logprob(logits, 17, 0).top == ()
    assert len(token_logprob(logits[:3], 1, 20).top) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1; give a number from 0 to 1000"),
        ({"temperature": 1e-9}, "give 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "give a whole number"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 0}, "keeps no token"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"max_new_tokens": None}, "max_new_tokens is None"),
        ({"logit_bias": [1]}, "logit_bias must map"),
        ({"logit_bias": {"a": 1}}, "a token id of logit_bias is 'a'"),
        ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 is inf"),
        ({"stop": ["a", ""]}, "empty stop string"),
        ({"stop": [1]}, "stop must be a string"),
        ({"stop": ""}, "empty stop string"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"deadline_s": -1}, "deadline_s is -1"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(InputError, match=message):
        SamplingOptions.of(options)


def test_a_misspelt_option_is_an_error_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="no text option named 'temprature'; did you mean 'temperature'"):
        SamplingOptions.of({"temprature": 1})


def test_numbers_of_numpy_are_numbers():
    assert SamplingOptions(top_k=np.int64(3), temperature=np.float32(1), logit_bias={np.int64(1): 1.0}).top_k == 3
