"""Exported bundles on TensorRT: the simulated one gives what onnxruntime gives; TensorRT-RTX itself builds their engines."""

import pytest

torch = pytest.importorskip("torch")

import importlib.util

import numpy as np
from simulated_tensorrt import simulate
from torch import nn

import edgegen
from edgegen.backends import open_session, present_backends
from edgegen.backends.gpu import why_not
from edgegen.backends.trt.build import build_engine
from edgegen.backends.trt.flavours import FLAVOURS
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.bundle import Bundle
from edgegen.export.families import gan
from edgegen.export.parts import Modules
from edgegen.export.request import Request
from edgegen.pipelines.decoder_lm import DecoderLM
from edgegen.proof import verify_bundle
from edgegen.tensors import Axis, TensorSpec

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed; it has no wheels for this machine"
)
TEXTS = [("llama", "fp32"), ("llama_untied", "int4")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A GAN of two layers, float16."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(8, 4 * 16), nn.Unflatten(1, (4, 4, 4)), nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1)
    )
    inputs = {"": (TensorSpec("z", "float32", ("batch", 8)),)}
    source = Modules("module", "tiny", "0" * 64, "MIT", {"": module.eval()}, inputs, {}, {"batch": Axis(1, 1, 4)}, {})
    path = tmp_path_factory.mktemp("pictures") / "a.bundle"
    gan.export(Request(source, path, "fp16", "tiny"), lambda *_: None)
    return path


@pytest.mark.parametrize("preset", ["10.3", "11.4", "rtx"])
def test_a_generator_gives_the_same_pixels_on_tensorrt(pictures, monkeypatch, preset):
    backend = simulate(preset).install(monkeypatch).backend
    with edgegen.load(pictures, backend="onnxruntime") as reference, edgegen.load(pictures, backend=backend) as model:
        for count in (1, 3):
            wanted, found = (one.generate(count=count, seed=count).pixels for one in (reference, model))
            # onnxruntime's variant may add up in another order than the canonical graph in float16: one grey level.
            assert np.abs(wanted.astype(int) - found).max() <= 1
            assert len(np.unique(wanted)) > 20


@needs_rtx
def test_rtx_builds_a_generators_engine(pictures):
    with Bundle.open(pictures) as bundle:
        for graph in bundle.manifest.graphs:
            assert build_engine(FLAVOURS["tensorrt-rtx"], bundle.graph(graph, "canonical"), BuildOptions((86, 89, 120)))


@pytest.mark.parametrize(("architecture", "precision"), TEXTS)
@pytest.mark.parametrize("preset", ["11.4", "rtx"])
def test_a_language_model_gives_the_same_text_on_tensorrt(exported, monkeypatch, architecture, precision, preset):
    path = exported(architecture, precision)[1]
    simulation = simulate(preset).install(monkeypatch)

    def canonical(bundle: Bundle, backend: str) -> DecoderLM:
        return DecoderLM.from_bundle(bundle, lambda graph: open_session(backend, bundle, graph, variant="canonical"))

    prompt, options = "the quick brown fox", {"temperature": 0.0, "max_new_tokens": 20}
    with canonical(Bundle.open(path), "onnxruntime") as reference, canonical(Bundle.open(path), simulation.backend) as model:
        # The very same operators on the very same values: not one token may differ.
        assert model.generate(prompt, **options).token_ids == reference.generate(prompt, **options).token_ids
        assert model.session.details["state"] == "in place"
        steps = {"plain": 3, "recorded": 1, "replayed": 17}  # the prompt and two steps; then the rest in one launch each
        assert model.session.counts == (steps if preset == "11.4" else {"plain": 20, "recorded": 0, "replayed": 0})


@needs_rtx
@pytest.mark.parametrize(("architecture", "precision"), TEXTS)
def test_rtx_builds_a_language_models_engine(exported, architecture, precision):
    with Bundle.open(exported(architecture, precision)[1]) as bundle:
        assert build_engine(FLAVOURS["tensorrt-rtx"], bundle.graph("decoder", "canonical"), BuildOptions((86, 89, 120)))


@pytest.mark.parametrize(("architecture", "precision"), TEXTS)
def test_a_proof_passes_through_the_cache_on_tensorrt(exported, monkeypatch, architecture, precision):
    backend = simulate("11.4").install(monkeypatch).backend
    assert verify_bundle(str(exported(architecture, precision)[1]), backend=backend).passed


@pytest.mark.gpu
@pytest.mark.parametrize("backend", list(FLAVOURS))
@pytest.mark.parametrize("kind", ["text", "pictures"])
def test_a_proof_passes_on_the_gpu(exported, pictures, backend, kind):
    if backend not in present_backends():
        pytest.skip(f"{backend} is not installed")
    if why := why_not(backend):
        pytest.skip(f"{backend}: {why}")
    path = exported("llama", "fp32")[1] if kind == "text" else pictures
    assert verify_bundle(str(path), backend=backend).passed
