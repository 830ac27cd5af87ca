"""The replay of a proof, on a numpy language model; and its reference as untrusted bytes."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from edgegen.backends.fake import FakeSession, fake_lm
from edgegen.errors import BundleError, EdgegenError, ProofError
from edgegen.kv_cache import KVCache
from edgegen.proof.decoder_lm import Tolerance, logsumexp, replay, require
from edgegen.proof.reference import Reference

VOCAB = 40
TIGHT = Tolerance(1e-4, 1e-5, 1e-4, "the same numpy code on both sides")


def recorded():
    """What fake_lm itself answers: a reference that an intact session must meet exactly."""
    rng = np.random.default_rng(0)
    prompt, forced, second = (rng.integers(0, VOCAB, n) for n in (6, 4, 3))
    with fake_lm(VOCAB) as session, KVCache(session, 64, 64) as kv:
        logits = [kv.append_all(prompt.tolist()).copy()]
        logits += [kv.append_all([token]).copy() for token in forced.tolist()]
        logits.append(kv.append_all(second.tolist()).copy())
        greedy = [int(logits[-1][-1].argmax())]
        for _ in range(5):
            logits.append(kv.append_all([greedy[-1]]).copy())
            greedy.append(int(logits[-1][-1].argmax()))
        every = np.concatenate(logits)
        places = np.array([0, 5, 12])
        keys = kv.read("past_key_values.0.key")[0].transpose(1, 0, 2)[places][None].astype(np.float32)
    columns = np.tile(np.arange(VOCAB, dtype=np.int32), (len(every), 1))
    best = np.sort(every, axis=1)
    return Reference(
        prompt,
        forced,
        second,
        np.array(greedy[:5]),
        columns,
        every,
        logsumexp(every),
        best[:, -1] - best[:, -2],
        places,
        keys,
        keys,
    )


class Altered:
    """A session whose logits go through a function on their way out; values are read where keys are."""

    def __init__(self, change):
        self._inner: FakeSession = fake_lm(VOCAB)
        self._change = change

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def run(self, *args, **kwargs):
        found = self._inner.run(*args, **kwargs)
        return {"logits": self._change(found["logits"].copy())}


@pytest.fixture(autouse=True)
def values_are_keys(monkeypatch):
    """fake_lm keeps keys alone."""
    read = KVCache.read
    monkeypatch.setattr(KVCache, "read", lambda self, name: read(self, name.replace(".value", ".key")))


def outcome(change, tolerance=TIGHT, reference=None):
    return replay(Altered(change), reference or recorded(), "test", "float32", tolerance)


def test_the_model_itself_passes():
    found = outcome(lambda logits: logits)
    assert found.failure is None
    assert (found.worst_logit, found.ties, found.greedy_match) == (pytest.approx(0, abs=1e-6), 0, 5)


def test_a_wrong_logit_is_named_with_its_step():
    def third_decode_step(logits, calls=[0]):  # noqa: B006 -- counts the runs
        calls[0] += 1
        return logits + (calls[0] == 4) * np.eye(1, VOCAB, 7, dtype=np.float32) * 5

    assert "logits, decode, step 2 differs" in str(outcome(third_decode_step).failure)


def test_a_small_drift_everywhere_is_noticed_though_no_position_is_beyond_its_tolerance():
    loose = replace_mean(Tolerance(1, 1, 1, "anything"), 1e-3)
    assert "on average" in str(outcome(lambda logits: logits * 1.01, loose).failure)


def replace_mean(tolerance, mean):
    return Tolerance(tolerance.logits, mean, tolerance.cache, tolerance.reason)


def test_close_best_tokens_that_are_exchanged_are_ties_and_far_ones_are_a_failure():
    reference = recorded()

    def exchange(logits):  # the two best of every position
        order = np.argsort(logits, axis=-1)
        first, second = order[..., -1:], order[..., -2:-1]
        a, b = np.take_along_axis(logits, first, -1), np.take_along_axis(logits, second, -1)
        np.put_along_axis(logits, first, b, -1)
        np.put_along_axis(logits, second, a, -1)
        return logits

    allowed = Tolerance(10, 10, 1, "logits may be anything, so every exchange is a tie")
    assert outcome(exchange, allowed, reference).failure is None
    assert outcome(exchange, allowed, reference).ties > 5
    gap = float((reference.gap / np.abs(reference.logits).max(axis=1)).max())
    strict = Tolerance(gap / 2.1, 10, 1, "just below the widest gap")
    assert outcome(exchange, strict, reference).failure is not None


def test_a_wrong_cache_is_named_before_the_logits():
    reference = recorded()
    wrong = replace(reference, keys=reference.keys + 1)
    found = outcome(lambda logits: logits, TIGHT, wrong)
    assert "present.0.key, position 0" in str(found.failure)
    with pytest.raises(ProofError, match=r"present\.0\.key"):
        require(found)


def test_logits_that_are_not_finite_fail():
    assert outcome(lambda logits: logits * np.float32(np.nan)).failure is not None


def test_a_reference_survives_its_bytes_and_is_the_same_every_time():
    reference = recorded()
    data = reference.to_bytes()
    assert data == reference.to_bytes()
    assert all(np.array_equal(value, getattr(Reference.from_bytes(data), name)) for name, value in vars(reference).items())


@pytest.mark.parametrize("cut", [0, 10, 500, -30])
def test_a_cut_reference_is_one_line(cut):
    with pytest.raises(BundleError, match="reference cannot be read"):
        Reference.from_bytes(recorded().to_bytes()[:cut])


def rezipped(change, compression=zipfile.ZIP_STORED):
    source, target = zipfile.ZipFile(io.BytesIO(recorded().to_bytes())), io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name in source.namelist():
            archive.writestr(name, change(name, source.read(name)))
    return target.getvalue()


def test_a_compressed_reference_which_might_be_a_bomb_is_refused():
    with pytest.raises(BundleError, match="compressed"):
        Reference.from_bytes(rezipped(lambda _, content: content, zipfile.ZIP_DEFLATED))


def test_a_header_that_promises_more_than_there_is_allocates_nothing():
    huge = rezipped(lambda _, content: content.replace(b"'shape': (6,)", b"'shape': (6" + b"0" * 12 + b",)")[: len(content)])
    with pytest.raises(BundleError):
        Reference.from_bytes(huge)


def test_objects_are_refused():
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(EdgegenError):
        Reference.from_bytes(rezipped(lambda name, content: pickled.getvalue() if name == "prompt.npy" else content))


def test_parts_that_do_not_fit_together_are_refused():
    with pytest.raises(BundleError, match="fit together"):
        Reference.from_bytes(replace(recorded(), gap=np.zeros(3, np.float32)).to_bytes())
