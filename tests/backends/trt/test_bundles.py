"""Bundles through the simulated TensorRT, as a user loads them; and which backend `auto` takes."""

import logging
import subprocess
import sys

import bundles
import pytest

import edgegen
from edgegen.backends import BACKENDS, choose, open_session, present_backends, variant_for
from edgegen.backends.engines import worker
from edgegen.backends.engines.ahead import build_bundle
from edgegen.backends.engines.store import EngineStore
from edgegen.backends.engines.wanted import wanted_here
from edgegen.backends.gpu import why_no_gpu, why_not
from edgegen.backends.trt.cuda import Cuda, load_runtime
from edgegen.backends.trt.flavours import FLAVOURS
from edgegen.backends.trt.open import open_tensorrt
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.bundle import Bundle
from edgegen.errors import BackendError, ContextFullError
from edgegen.health import examine

ASKED = {"temperature": 20.0, "seed": 5, "max_new_tokens": 24}


@pytest.fixture
def tiny(tmp_path):
    return bundles.make_bundle(tmp_path / "tiny.bundle")


@pytest.mark.parametrize("preset", ["10.16", "11.4", "rtx"])
def test_a_bundle_gives_the_same_text_as_on_onnxruntime(machine, tiny, preset):
    backend = machine(preset).backend
    with edgegen.load(tiny, backend="onnxruntime") as reference, edgegen.load(tiny, backend=backend) as model:
        assert model.session.backend == backend
        wanted = reference.generate("a b c", **ASKED)
        assert model.generate("a b c", **ASKED) == wanted
        assert len(set(wanted.token_ids)) > 3  # a text, not one token over and over


@pytest.mark.parametrize("preset", ["10.16", "rtx"])
def test_an_engine_that_was_built_ahead_for_less_is_found_and_gives_the_same_text_until_it_is_full(machine, tiny, preset):
    backend = machine(preset).backend
    build_bundle(tiny, backend)
    build_bundle(tiny, backend, context=40, prefill=8)
    prompt = " ".join("abcdefghijklm" * 2)
    with edgegen.load(tiny, backend="onnxruntime") as reference, edgegen.load(tiny, backend=backend) as model:
        axes = model.session.axes
        assert (axes["cache"].max, axes["sequence"].max) == (40, 8)
        asked = {**ASKED, "max_new_tokens": 64, "logit_bias": {2: -1e4}}  # without the token that ends a text
        wanted, found = reference.generate(prompt, **asked), model.generate(prompt, **asked)
        assert found.prompt_tokens > 2 * 8
        assert found.finish_reason == "context"
        assert found.prompt_tokens + len(found.token_ids) == 40
        assert found.token_ids == wanted.token_ids[: len(found.token_ids)]
        with pytest.raises(ContextFullError, match=r"the cache of 40 entries .*a context of 64\) .*build --context 64"):
            model.generate(" ".join("a" * 45))


def test_who_builds_again_with_other_options_gets_that_engine(machine, tiny):
    backend = machine("rtx").backend
    for context in (40, 24, 40):  # the last is in the cache already
        build_bundle(tiny, backend, context=context)
    with edgegen.load(tiny, backend=backend) as model:
        assert model.session.axes["cache"].max == 40
    with Bundle.open(tiny) as bundle, open_session(backend, bundle, "decoder", build=BuildOptions(cache_length=24)) as session:
        assert session.axes["cache"].max == 24


def test_who_says_a_context_gets_the_last_engine_for_just_that_one(machine, tiny):
    backend = machine("rtx").backend
    for context, prefill in ((40, 16), (40, 8), (24, None)):
        build_bundle(tiny, backend, context=context, prefill=prefill)
    for context, engine in ((40, (40, 8)), (24, (24, 24)), (32, (32, 32)), (64, (64, 64))):
        with edgegen.load(tiny, backend=backend, context=context) as model:
            axes = model.session.axes
            assert (axes["cache"].max, axes["sequence"].max, model.context.length) == (*engine, context)
    assert len(EngineStore().entries()) == 5


def test_one_engine_has_one_name_however_it_is_asked_for(machine, tiny):
    backend = machine("rtx").backend
    for context, prefill in ((None, None), (64, None), (None, 64), (64, 9999)):
        build_bundle(tiny, backend, context=context, prefill=prefill)
    assert len(EngineStore().entries()) == 1


def test_what_rtx_compiles_while_it_runs_is_kept_beside_its_engine_and_goes_with_it(machine, tiny):
    backend = machine("rtx").backend
    for state in ("cold", "hot"):
        with edgegen.load(tiny, backend=backend) as model:
            assert model.session.details["runtime cache"] == state
    store = EngineStore()
    (engine,) = store.entries()
    assert engine.with_suffix(".kernels").exists()
    engine.unlink()
    build_bundle(tiny, backend, context=40)  # whatever is built next sweeps
    assert [path.suffix for path in store.root.iterdir()] == [".engine"]


def test_auto_takes_tensorrt_where_its_library_and_a_gpu_are_there(machine, caplog):
    machine("11.4")
    assert choose("auto") == "tensorrt"
    assert why_no_gpu() is None
    machine("11.4", devices=0)
    with caplog.at_level(logging.INFO, "edgegen"):
        assert choose("auto") == "onnxruntime"
    said = "auto does not take tensorrt: no GPU can be used: cudaGetDeviceCount failed: cudaErrorInsufficientDriver"
    assert said in caplog.text


def test_looking_for_a_gpu_takes_none_of_its_memory(machine):
    simulation = machine("11.4")
    assert why_not("tensorrt") is None
    assert choose("auto") == "tensorrt"
    assert simulation.cuda.contexts == set()  # a context takes hundreds of megabytes, of a Jetson's only memory


def test_an_engine_is_built_on_the_gpu_that_it_is_for(machine, tiny, tmp_path):
    machine("11.4", devices=2)
    gpu = Cuda(load_runtime(), 1).gpu()
    with Bundle.open(tiny) as bundle:
        request = wanted_here(bundle, "decoder", "canonical", FLAVOURS["tensorrt"], gpu, EngineStore()).request
        with (tmp_path / "engine").open("w+b") as file:
            worker.run(worker.Job(request, 0, file.fileno()), lambda said: None)
            file.seek(0)
            assert b'"device": 1' in file.read()
        files = bundle.graph("decoder", "canonical")
        Cuda(load_runtime(), 0).use()
        given = {"external": files.external, "folder": files.folder, "device": 1}
        with open_tensorrt(files.model, files.weights, files.variant, files.axes, **given) as session:
            assert session._engine._native.about["device"] == session.gpu.number == 1


def test_without_a_gpu_and_without_onnxruntime_the_cure_is_said(machine, monkeypatch):
    machine("11.4", devices=0)
    monkeypatch.setattr("edgegen.backends.present_backends", lambda: ["tensorrt"])
    with pytest.raises(
        BackendError, match=r'no inference library here works \(tensorrt: no GPU .*pip install "edgegen\[cpu\]"'
    ):
        choose("auto")


@pytest.mark.parametrize(("preset", "more"), [("rtx", "engines can be built here all the same: edgegen build; "), ("10.3", "")])
def test_running_without_a_gpu_is_refused_and_says_what_works(machine, tiny, preset, more):
    simulation = machine(preset, devices=0)
    with pytest.raises(BackendError, match=rf"on an NVIDIA GPU, and none can be used here \(.*\)(; )?{more}.*on onnxruntime"):
        edgegen.load(tiny, backend=simulation.backend)


def test_auto_passes_over_a_library_that_does_not_support_the_gpu_or_is_broken(machine, monkeypatch, caplog):
    simulation = machine("rtx")
    assert choose("auto") == "tensorrt-rtx"
    simulation.cuda.devices[0].major, simulation.cuda.devices[0].minor = 9, 0
    with caplog.at_level(logging.INFO, "edgegen"):
        assert choose("auto") == "onnxruntime"
    assert "Simulated GPU is SM 90, and it supports SM 75, 80, 86, 89, 120, 121" in caplog.text
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "tensorrt_rtx" in why_not("tensorrt-rtx")


def test_an_rtx_engine_is_built_for_the_gpu_that_is_there(machine, tiny):
    simulation = machine("rtx")
    simulation.cuda.devices[0].major, simulation.cuda.devices[0].minor = 9, 0
    with pytest.raises(BackendError, match=r"for SM 90; it supports SM 75, .*use the tensorrt backend"):
        edgegen.load(tiny, backend="tensorrt-rtx")


def test_an_old_tensorrt_takes_the_legacy_variant_where_there_is_one(machine, tiny):
    with Bundle.open(tiny) as bundle:
        machine("10.3")
        assert variant_for("tensorrt", bundle, "decoder") == "canonical"  # whose refusal says what to export
        variants = bundle.manifest.graphs["decoder"].variants
        variants["tensorrt-legacy"] = variants["canonical"]
        assert variant_for("tensorrt", bundle, "decoder") == "tensorrt-legacy"
        machine("11.4")
        assert variant_for("tensorrt", bundle, "decoder") == "canonical"


def test_the_table_and_the_flavours_agree():
    for name, flavour in FLAVOURS.items():
        assert BACKENDS[name].library == flavour.module
        assert BACKENDS[name].extra == flavour.extra
        assert BACKENDS[name].needs_gpu


def test_doctor_says_that_a_library_without_a_gpu_is_not_enough(machine):
    machine("11.4", devices=0)
    state = examine().backends["tensorrt"]
    assert state.startswith("installed, tensorrt 11.4.0.106, but no GPU can be used: cudaGetDeviceCount failed")
    machine("11.4")
    assert examine().backends["tensorrt"] == "works, tensorrt 11.4.0.106"


def test_what_installs_tensorrt_is_said_with_the_way_of_a_jetson(monkeypatch):
    monkeypatch.setattr("edgegen.backends.present_backends", list)
    for name, cure in (
        ("tensorrt", r'pip install tensorrt "edgegen\[tensorrt\]"; on a Jetson .*python3-libnvinfer'),
        ("tensorrt-rtx", r'pip install "edgegen\[tensorrt-rtx\]"$'),
    ):
        with pytest.raises(BackendError, match=rf"which is not installed; install it: {cure}"):
            choose(name)


def test_looking_for_backends_imports_none():
    code = "import sys, edgegen.backends as b; b.present_backends(); print(*{m.partition('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorrt", "tensorrt_rtx", "cuda", "onnxruntime", "numpy"} & set(found)
    assert isinstance(present_backends(), list)
