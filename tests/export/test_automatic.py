"""`backend="auto"` with a GPU: onnxruntime answers while engines are built, the proof decides, and then they answer.

On a simulated TensorRT, which runs engines in onnxruntime; builds happen in this process, when a test lets them.
"""

import logging
import threading

import pytest
from simulated_tensorrt import build_here, simulate

import edgegen
from edgegen import automatic
from edgegen.backends import open_session
from edgegen.backends.engines import verdict, wanted
from edgegen.backends.engines.ahead import build_bundle
from edgegen.backends.engines.builder import CancelledError
from edgegen.backends.engines.portable import trusted
from edgegen.backends.engines.refusal import RefusedError
from edgegen.backends.engines.store import EngineStore
from edgegen.backends.trt.flavours import FLAVOURS
from edgegen.backends.trt.open import gpu_of
from edgegen.bundle import Bundle
from edgegen.errors import BackendError

PROMPT = "The quick brown fox"


class Builds:
    """Stands for the builder: builds here, as soon as `go` is set; `made` are graphs that were built, in `tries`."""

    def __init__(self):
        self.go, self.begun, self.made, self.tries = threading.Event(), threading.Event(), [], 0
        self.go.set()

    def __call__(self, request, *, progress=None, cancelled=None, folder=None):
        self.begun.set()
        while not self.go.wait(0.01):
            if cancelled is not None and cancelled.is_set():
                raise CancelledError("cancelled")
        self.tries += 1
        try:
            built = build_here(request)
        except BackendError as error:  # as the process that builds says it
            raise RefusedError(str(error)) from error
        self.made.append(request.graph)
        return built


@pytest.fixture
def machine(monkeypatch):
    return simulate("rtx").install(monkeypatch)


@pytest.fixture
def builds(monkeypatch, machine):
    stands = Builds()
    monkeypatch.setattr(wanted, "build", stands)
    return stands


@pytest.fixture
def bundle(exported):
    return exported("llama", "fp32")[1]


def backend_of(model):
    return model.session.backend


def text_of(model):
    return model.generate(PROMPT, max_new_tokens=6).text


def test_onnxruntime_answers_until_the_engine_is_built_and_proven_and_the_next_load_finds_it(bundle, builds):
    builds.go.clear()
    with edgegen.load(bundle) as model:
        assert backend_of(model) == "onnxruntime"
        stream = model.stream(PROMPT, max_new_tokens=6)
        first = next(stream).text
        builds.go.set()
        assert model.switch.wait(60)
        assert (model.switch.stage, model.switch.backend) == ("switched", "tensorrt-rtx")
        assert backend_of(model) == "tensorrt-rtx"
        assert first + "".join(piece.text for piece in stream) == text_of(model)
    with edgegen.load(bundle) as model:
        assert backend_of(model) == "tensorrt-rtx"
        assert not hasattr(model, "switch")
    assert builds.made == ["decoder"]


def test_an_engine_whose_answers_are_wrong_is_never_switched_to_and_not_tried_again(bundle, builds, monkeypatch, caplog):
    report = type("Report", (), {"passed": False, "lines": lambda self: ["layer 1 is wrong"]})()
    monkeypatch.setattr(automatic, "replay_bundle", lambda *_, **__: report)
    for _ in range(2):
        with edgegen.load(bundle) as model:
            assert not hasattr(model, "switch") or model.switch.wait(60)
            assert backend_of(model) == "onnxruntime"
            text_of(model)
    assert caplog.text.count("layer 1 is wrong") == 2
    assert builds.made == ["decoder"]


def test_a_build_that_fails_leaves_onnxruntime_in_charge(bundle, builds, machine, caplog):
    machine.faults.build = "no kernel for this node"
    with edgegen.load(bundle) as model:
        assert model.switch.wait(60)
        assert model.switch.stage == "failed"
        assert backend_of(model) == "onnxruntime"
        text_of(model)
    assert "no kernel for this node" in caplog.text


def test_what_the_library_refused_is_not_built_again_but_by_another_edgegen(bundle, builds, machine, monkeypatch, caplog):
    machine.faults.build = "no kernel for this node"
    said = []
    for version, advise, tries in (("1.0", None, 1), ("1.0", None, 1), ("1.0", said.append, 1), ("1.1", None, 2)):
        monkeypatch.setattr(edgegen, "__version__", version)
        caplog.clear()
        is_known = builds.tries == tries
        with edgegen.load(bundle, advise=advise) as model:
            assert hasattr(model, "switch") is not is_known
            assert is_known or model.switch.wait(60)
            assert backend_of(model) == "onnxruntime"
        assert builds.tries == tries
        assert "no kernel for this node" in caplog.text
        assert (f"`edgegen build --backend tensorrt-rtx {bundle}` tries again" in caplog.text) is is_known
    assert said == []
    for context, option in ((None, ""), (120, " --context 120")):  # another context is another engine
        for _ in range(1 if context is None else 2):
            with pytest.raises(BackendError, match="no kernel for this node") as caught:
                edgegen.load(bundle, backend="tensorrt-rtx", context=context)
        assert f"`edgegen build --backend tensorrt-rtx{option} {bundle}` tries again" in str(caught.value)
    assert builds.tries == 3


def test_who_builds_ahead_tries_again_what_was_refused_and_the_refusal_is_forgotten(bundle, builds, machine):
    machine.faults.build = "no kernel for this node"
    for tries in (1, 2):
        with pytest.raises(BackendError, match="no kernel for this node"):
            build_bundle(bundle, "tensorrt-rtx")
        assert builds.tries == tries
    assert [path.suffix for path in EngineStore().root.iterdir()] == [".refusal"]
    machine.faults.build = None
    build_bundle(bundle, "tensorrt-rtx")
    assert [path.suffix for path in EngineStore().root.iterdir()] == [".engine"]


def test_an_engine_that_was_built_ahead_is_proven_before_it_is_used(bundle, builds):
    with edgegen.load(bundle, backend="tensorrt-rtx") as model:
        assert backend_of(model) == "tensorrt-rtx"
    with edgegen.load(bundle) as model:
        assert model.switch.wait(60)
        assert backend_of(model) == "tensorrt-rtx"
    assert builds.made == ["decoder"]


def test_a_program_of_one_request_builds_nothing_and_proves_what_is_there(bundle, builds):
    said = []
    with edgegen.load(bundle, advise=said.append) as model:
        assert backend_of(model) == "onnxruntime"
        assert not hasattr(model, "switch")
    command = f"`edgegen build --backend tensorrt-rtx {bundle}`"
    assert said == [f"{bundle.name} runs on onnxruntime; {command} once makes engines for tensorrt-rtx"]
    edgegen.load(bundle, context=120, advise=said.append).close()
    assert f"`edgegen build --backend tensorrt-rtx --context 120 {bundle}` once" in said[1]
    assert builds.made == []
    build_bundle(bundle, "tensorrt-rtx")
    with edgegen.load(bundle, advise=said.append) as model:
        assert backend_of(model) == "tensorrt-rtx"
    assert len(said) == 2


def test_an_engine_for_a_shorter_context_is_proven_and_taken_and_gives_the_same_text(bundle, builds):
    build_bundle(bundle, "tensorrt-rtx", context=100, prefill=32)
    long = " ".join([PROMPT] * 5)
    with edgegen.load(bundle, "onnxruntime") as reference, edgegen.load(bundle) as model:
        assert model.switch.wait(60)
        assert (model.switch.stage, model.switch.reason) == ("switched", "")
        assert (model.session.axes["cache"].max, model.session.axes["sequence"].max) == (100, 32)
        found, wanted_text = (one.generate(long, max_new_tokens=200) for one in (model, reference))
        assert found.prompt_tokens > 32
        assert found.token_ids == wanted_text.token_ids[: len(found.token_ids)]
        assert found.finish_reason == "stop" or found.prompt_tokens + len(found.token_ids) == 100
    assert builds.made == ["decoder"]


def test_a_context_is_that_of_both_pipelines_and_its_engine_is_built_beside_the_one_that_was_used_last(bundle, builds):
    build_bundle(bundle, "tensorrt-rtx")
    builds.go.clear()
    with edgegen.load(bundle, context=120) as model:
        assert model.context.length == 120
        builds.go.set()
        assert model.switch.wait(60)
        assert (model.switch.stage, model.switch.reason) == ("switched", "")
        assert (backend_of(model), model.context.length, model.session.axes["cache"].max) == ("tensorrt-rtx", 120, 120)
    for context in (120, 256):  # all that was exported: the engine that was there first
        with edgegen.load(bundle, context=context) as model:
            assert context == 120 or model.switch.wait(60)
            assert (backend_of(model), model.context.length) == ("tensorrt-rtx", context)
    assert builds.made == ["decoder", "decoder"]


def test_an_old_library_stays_unused_where_the_bundle_has_nothing_for_it_and_auto_says_so(bundle, monkeypatch, caplog):
    simulate("10.3").install(monkeypatch)
    monkeypatch.setattr(wanted, "build", lambda *_, **__: 1 / 0)
    said = []
    for advise in (None, said.append):
        with edgegen.load(bundle, advise=advise) as model:
            assert backend_of(model) == "onnxruntime"
    assert caplog.text.count("is older than Attention, RMSNormalization, RotaryEmbedding, TensorScatter") == 2
    assert "export the bundle with --variant tensorrt-legacy" in caplog.text
    assert said == []


def test_closing_while_it_builds_gives_the_build_up(bundle, builds):
    builds.go.clear()
    model = edgegen.load(bundle)
    assert builds.begun.wait(60)
    model.close()
    assert model.switch.stage == "closed"
    assert builds.made == []
    assert list(EngineStore().root.iterdir()) == []


def test_an_engine_of_the_cache_that_the_library_refuses_is_built_once_more(bundle, builds, machine, monkeypatch, caplog):
    with edgegen.load(bundle, backend="tensorrt-rtx"):
        pass
    from edgegen.backends.trt import open as opening

    real, refused = opening.TrtSession, []

    def refuse_once(*arguments, **options):
        if not refused:
            refused.append(1)
            raise BackendError("not of this driver")
        return real(*arguments, **options)

    monkeypatch.setattr(opening, "TrtSession", refuse_once)
    with edgegen.load(bundle, backend="tensorrt-rtx") as model:
        text_of(model)
    assert builds.made == ["decoder", "decoder"]
    assert "not of this driver" in caplog.text


def test_without_onnxruntime_the_first_load_waits_for_the_engine(bundle, builds, monkeypatch, caplog):
    import edgegen.backends

    real = edgegen.backends.present_backends
    monkeypatch.setattr(edgegen.backends, "present_backends", lambda: [name for name in real() if name != "onnxruntime"])
    with caplog.at_level(logging.INFO, "edgegen"), edgegen.load(bundle) as model:
        assert backend_of(model) == "tensorrt-rtx"
    assert "its engines are built first" in caplog.text


def test_an_engine_from_elsewhere_opens_for_who_says_its_digest_and_for_nobody_else(bundle, builds, tmp_path):
    with Bundle.open(bundle) as opened:
        engine = automatic._wanted(opened, "tensorrt-rtx", "decoder").obtain(EngineStore())
        place = tmp_path / "decoder.engine"
        place.write_bytes(engine.data)
        for digest, opens in ((engine.record.sha256, True), ("0" * 64, False)):
            engines = trusted(place, digest)
            if opens:
                open_session("tensorrt-rtx", opened, "decoder", engines=engines).close()
                continue
            with pytest.raises(BackendError, match="not the one that was asked for"):
                open_session("tensorrt-rtx", opened, "decoder", engines=engines)


def test_a_verdict_holds_for_the_very_engine_and_device_only(bundle, builds, machine):
    with edgegen.load(bundle) as model:
        assert model.switch.wait(60)
    store = EngineStore()
    with Bundle.open(bundle) as opened:
        want = automatic._wanted(opened, "tensorrt-rtx", "decoder")
    device = verdict.device_of(gpu_of(FLAVOURS["tensorrt-rtx"], 0))
    good = verdict.read(store, want, device)
    assert good.reason == ""
    assert verdict.read(store, want, f"{device}.1") is None
    verdict.write(store, want, verdict.Verdict("0" * 64, device))
    assert verdict.read(store, want, device) is None
    verdict.write(store, want, good)
    store.discard(want.key)
    assert verdict.read(store, want, device) is None
