"""The key/value cache: what is fed, how it grows, rewinds and ends."""

import numpy as np
import pytest

from edgegen.backends.fake import fake_lm
from edgegen.errors import BackendError, ContextFullError
from edgegen.kv_cache import KVCache
from edgegen.tensors import Axis

TOKENS = [5, 3, 8, 1, 1, 7, 2, 9, 4, 6, 0, 5]


@pytest.fixture(params=[False, True], ids=["attention_mask", "write_indices"])
def session(request):
    return fake_lm(10, context_length=1000, canonical=request.param)


def logits_of(session, tokens, chunks=()):
    with KVCache(session, 1000, len(tokens)) as cache:
        for start, end in zip((0, *chunks), (*chunks, len(tokens)), strict=True):
            logits = cache.append(tokens[start:end])
        return logits.copy()


@pytest.mark.parametrize("chunks", [(5,), (1, 2, 3), tuple(range(1, 12))])
def test_the_logits_do_not_depend_on_how_the_tokens_are_fed(session, chunks):
    # float64 sums of a dozen terms, rounded to float32.
    np.testing.assert_allclose(logits_of(session, TOKENS, chunks), logits_of(session, TOKENS), rtol=1e-5, atol=1e-5)


def test_the_fake_model_notices_a_changed_history(session):
    changed = [9, *TOKENS[1:]]
    assert np.abs(logits_of(session, changed) - logits_of(session, TOKENS)).max() > 1e-3


def test_both_kinds_of_graph_are_fed_the_same_history():
    first, second = (fake_lm(10, canonical=canonical) for canonical in (False, True))
    np.testing.assert_array_equal(logits_of(first, TOKENS, (4, 5)), logits_of(second, TOKENS, (4, 5)))


def test_all_logits_of_a_prompt_are_those_of_its_beginnings(session):
    with KVCache(session, 1000, 50) as cache:
        cache.append(TOKENS[:4])
        found = cache.append_all(TOKENS[4:]).copy()
    expected = [logits_of(session, TOKENS[: end + 1]) for end in range(4, len(TOKENS))]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_the_cache_holds_can_be_read(session):
    with KVCache(session, 1000, 50) as cache:
        cache.append(TOKENS)
        entries = cache.read("past_key_values.0.key")[0, 0]
    assert entries[: len(TOKENS)].all()
    assert not entries[len(TOKENS) :].any()


def test_rewinding_forgets_what_came_after(session):
    with KVCache(session, 1000, 50) as cache:
        cache.append([*TOKENS[:6], 9, 9, 9, 9])
        cache.rewind(6)
        assert len(cache) == 6
        expected = logits_of(session, TOKENS)
        np.testing.assert_allclose(cache.append(TOKENS[6:]), expected, rtol=1e-5, atol=1e-5)
        assert cache.tokens == TOKENS


def test_the_cache_doubles_and_keeps_its_content(session):
    with KVCache(session, 1000, 1) as cache:
        assert cache.capacity == 256
        for token in TOKENS * 30:
            logits = cache.append([token])
        assert cache.capacity == 512
        np.testing.assert_allclose(logits.copy(), logits_of(session, TOKENS * 30), rtol=1e-5, atol=1e-5)
        cache.append(TOKENS * 20)
        assert cache.capacity == 1000  # not 1024: never beyond the context


def test_more_tokens_than_the_context_are_refused_before_the_run(session):
    with KVCache(session, 10, 1) as cache:
        assert cache.capacity == 10
        cache.append([1] * 9)
        with pytest.raises(ContextFullError, match="11 tokens do not fit in the context of 10"):
            cache.append([1, 2])
        assert len(cache) == 9
        cache.append([1])


def test_a_session_that_takes_less_than_was_exported_is_never_asked_for_more():
    limits = {"cache": Axis(1, 10, 10), "sequence": Axis(1, 2, 4), "kept": Axis(1, 1, 4)}
    with KVCache(fake_lm(10, limits=limits), 1000, 300) as cache:  # the session refuses longer pieces
        assert cache.capacity == 10
        found = cache.append_all(TOKENS[:9])
        whole = fake_lm(10)
        expected = [logits_of(whole, TOKENS[: end + 1]) for end in range(9)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # as above
        cache.rewind(1)
        np.testing.assert_allclose(cache.append(TOKENS[1:9]), expected[-1], rtol=1e-5, atol=1e-5)
        said = (
            r"11 tokens do not fit in the cache of 10 entries .*\(exported: a context of 1000\); .*edgegen build --context 1000"
        )
        with pytest.raises(ContextFullError, match=said):
            cache.append([1, 2])
        assert cache.tokens == TOKENS[:9]


def test_a_closed_cache_cannot_be_used(session):
    cache = KVCache(session, 10, 1)
    cache.close()
    cache.close()
    with pytest.raises(BackendError, match="closed"):
        cache.append([1])
