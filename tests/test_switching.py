"""A pipeline changes over to another between requests, never within one; on numpy sessions that tell who answered."""

import contextlib
import gc
import logging
import threading

import numpy as np
import pytest
from text_models import endless

from edgegen.backends.fake import FakeSession
from edgegen.errors import BackendError
from edgegen.pipelines.decoder_lm import DecoderLM
from edgegen.pipelines.diffusion import Diffusion
from edgegen.pipelines.diffusion_settings import DiffusionSettings, Latent
from edgegen.schedules import Schedule
from edgegen.switching import Switch, SwitchingPipeline
from edgegen.tensors import Axis, TensorSpec

PROMPT = "the cat"


class Change:
    """Pipelines old and new; the new one is there when `let_go` is called."""

    def __init__(self, old, new=None, error=None):
        self.old_session = old.session if hasattr(old, "session") else next(iter(old.sessions))
        self.new, self.error, self.go = new, error, threading.Event()
        self.was_cancelled = False
        self.model = SwitchingPipeline(Switch(old, "slow", "fast", self._prepare))

    def _prepare(self, cancelled):
        while not self.go.wait(0.01):
            if cancelled.is_set():
                self.was_cancelled = True
                raise BackendError("cancelled")
        if self.error is not None:
            raise self.error
        return self.new

    def let_go(self):
        self.go.set()
        assert self.model.switch.wait(10)

    def old_is_freed(self):
        gc.collect()
        try:
            self.old_session.new_state(256)
        except BackendError as error:
            return "closed" in str(error)
        return False


@contextlib.contextmanager
def changing(old, new=None, error=None):
    change = Change(old, new, error)
    del old  # so that only requests hold it
    with change.model:
        yield change


def text_of(pipeline, **options):
    return pipeline.generate(PROMPT, max_new_tokens=20, **options).text


def test_requests_run_on_the_first_pipeline_until_the_other_is_there_and_then_on_that():
    slow, fast = text_of(endless()), text_of(endless(canonical=True, seed=1))
    assert slow != fast
    with changing(endless(), endless(canonical=True, seed=1)) as change:
        assert (change.model.switch.stage, change.model.switch.backend) == ("preparing", "slow")
        assert text_of(change.model) == slow
        change.let_go()
        assert (change.model.switch.stage, change.model.switch.backend) == ("switched", "fast")
        assert text_of(change.model) == fast


def test_a_stream_ends_on_the_pipeline_on_which_it_began():
    whole = text_of(endless())
    with changing(endless(), endless(canonical=True, seed=1)) as change:
        stream = change.model.stream(PROMPT, max_new_tokens=20)
        begun = next(stream).text
        change.let_go()
        assert text_of(change.model) != whole
        assert begun + "".join(piece.text for piece in stream) == whole


def test_a_conversation_ends_on_the_pipeline_on_which_it_began():
    with endless() as alone, alone.chat() as chat:
        turns = [chat.send(text, max_new_tokens=8).text for text in ("a", "the")]
    with changing(endless(), endless(canonical=True, seed=1)) as change:
        with change.model.chat() as chat:
            first = chat.send("a", max_new_tokens=8).text
            change.let_go()
            assert [first, chat.send("the", max_new_tokens=8).text] == turns
        with change.model.chat() as later:
            assert later.send("a", max_new_tokens=8).text != turns[0]


def test_the_first_pipeline_is_freed_when_its_last_request_ends():
    with changing(endless(), endless(seed=1)) as change:
        stream = change.model.stream(PROMPT, max_new_tokens=5)
        next(stream)
        change.let_go()
        assert not change.old_is_freed()
        stream.close()
        del stream
        assert change.old_is_freed()


def painter(level, calls):
    """A latent diffusion model, whose denoiser and decoder tell which of two models they are of."""

    def spec(name, *axes):
        return TensorSpec(name, "float32", axes)

    def denoise(feed, _state):
        calls.append(("denoiser", level))
        return {"prediction": np.full_like(feed["sample"], level)}

    def decode(feed, _state):
        calls.append(("vae_decoder", level))
        return {"image": feed["latent"]}

    latent = ("batch", 1, 4, 4)
    sessions = {
        "denoiser": FakeSession(denoise, [spec("sample", *latent), spec("timestep", "batch")], [spec("prediction", *latent)]),
        "vae_decoder": FakeSession(decode, [spec("latent", *latent)], [spec("image", *latent)]),
    }
    settings = DiffusionSettings(Schedule(prediction="sample"), steps=4, latent=Latent(factor=1, channels=1), height=4, width=4)
    return Diffusion(sessions, settings, {name: {"batch": Axis(1, 1, 2)} for name in sessions})


def test_all_graphs_of_a_denoising_trajectory_are_of_one_pipeline():
    calls = []
    with changing(painter(0.25, calls), painter(-0.25, calls)) as change:
        trajectory = change.model.stream(seed=1)
        next(trajectory)
        change.let_go()
        images = list(trajectory)[-1].images
        assert calls == [("denoiser", 0.25)] * 4 + [("vae_decoder", 0.25)]
        del calls[:]
        later = change.model.generate(seed=1)
        assert calls == [("denoiser", -0.25)] * 4 + [("vae_decoder", -0.25)]
        assert images.pixels.mean() > later.pixels.mean()


def test_what_cannot_be_made_ready_leaves_the_first_in_charge_and_one_line_in_the_log(caplog):
    with changing(endless(), error=BackendError("the engine's answers\nare wrong")) as change:
        with caplog.at_level(logging.WARNING, "edgegen"):
            change.let_go()
        switch = change.model.switch
        assert (switch.stage, switch.backend, switch.reason) == ("failed", "slow", "the engine's answers are wrong")
        assert text_of(change.model) == text_of(endless())
    assert [record.message for record in caplog.records] == ["requests stay on slow: fast: the engine's answers are wrong"]


def test_a_bug_while_it_is_made_ready_leaves_the_first_in_charge_too(caplog):
    with changing(endless(), error=ZeroDivisionError("bug")) as change:
        change.let_go()
        assert change.model.switch.stage == "failed"
        assert text_of(change.model) == text_of(endless())
    assert "ZeroDivisionError" in caplog.text


def test_closing_gives_up_what_is_not_ready_and_frees_the_first():
    change = Change(endless(), endless(seed=1))
    change.model.close()
    assert change.was_cancelled
    assert change.model.switch.stage == "closed"
    assert change.old_is_freed()
    with pytest.raises(BackendError, match="closed"):
        text_of(change.model)
    change.model.close()


def test_what_becomes_ready_too_late_is_closed():
    release = threading.Event()
    new = endless(seed=1)

    def prepare(_cancelled):
        release.wait(10)
        return new

    model = SwitchingPipeline(Switch(endless(), "slow", "fast", prepare))
    closing = threading.Thread(target=model.close)
    closing.start()
    while not model.switch._cancelled.is_set():
        pass
    release.set()
    closing.join(10)
    assert model.switch.stage == "closed"
    with pytest.raises(BackendError, match="closed"):
        text_of(new)


def test_closing_after_the_change_frees_both_though_a_stream_is_still_open():
    change = Change(endless(), endless(seed=1))
    stream = change.model.stream(PROMPT, max_new_tokens=5)
    next(stream)
    change.let_go()
    change.model.close()
    with pytest.raises(BackendError, match="closed"):
        list(stream)
    with pytest.raises(BackendError, match="closed"):
        text_of(change.model)


def test_a_model_that_nobody_holds_any_more_stops_what_is_made_ready():
    change = Change(endless(), endless(seed=1))
    del change.model
    gc.collect()
    assert change.was_cancelled


def test_it_is_taken_for_what_it_stands_for_and_settings_survive_the_change():
    heard = []
    with changing(endless(), endless(seed=1)) as change:
        model = change.model
        assert isinstance(model, DecoderLM)
        assert {"generate", "switch"} <= set(dir(model))
        model.prefill_chunk = 1
        model.clock_hook = lambda what, _seconds: heard.append(what)
        change.let_go()
        assert model.prefill_chunk == 1
        text_of(model)
    assert heard.count("forward") > 20
