"""`load` puts bundle, backend and pipeline together, and lets go of the bundle when that fails."""

import logging
import types

import pytest
from bundles_to_plan import convolutions

import edgegen
import edgegen.backends
import edgegen.runtime
from edgegen.backends import BACKENDS, choose, open_session
from edgegen.errors import BackendError, BundleError, ContextFullError, InputError, UnknownNameError
from edgegen.manifest import Graph, Variant


class StubBundle:
    """A bundle with one graph in two variants; it remembers what was asked of it."""

    def __init__(self, variants=("canonical", "onnxruntime"), family="decoder_lm"):
        found = {name: Variant(path=f"{name}.onnx", weights=(), inputs=(), outputs=()) for name in variants}
        graphs = {"decoder": Graph(variants=found, axes={})}
        self.manifest = types.SimpleNamespace(name="stub", family=family, graphs=graphs)
        self.asked: list[tuple[str, str]] = []
        self.closed = False

    def graph(self, name, variant):
        self.asked.append((name, variant))
        described = self.manifest.graphs[name].variants[variant]
        return types.SimpleNamespace(model=b"", weights={}, variant=described, axes={}, external=(), folder=None)

    def close(self):
        self.closed = True


class StubPipeline:
    def __init__(self, session):
        self.session = session

    @classmethod
    def from_bundle(cls, bundle, open_graph):
        return cls(open_graph("decoder"))


@pytest.fixture
def bundle(monkeypatch):
    stub = StubBundle()
    opened = types.SimpleNamespace(open=lambda path, verify=True: stub)
    monkeypatch.setattr(edgegen.runtime, "Bundle", opened)
    monkeypatch.setattr(edgegen.runtime, "pipeline_class", lambda family: StubPipeline)
    monkeypatch.setattr(edgegen.backends, "_load", lambda backend: lambda *files, **options: (files, options))
    return stub


@pytest.mark.parametrize(
    ("variants", "chosen"), [(("canonical", "onnxruntime"), "onnxruntime"), (("canonical", "tensorrt"), "canonical")]
)
def test_a_backend_takes_its_own_variant_before_the_canonical_one(bundle, variants, chosen):
    stub = StubBundle(variants)
    open_session("onnxruntime", stub, "decoder")
    assert stub.asked == [("decoder", chosen)]


def test_an_unknown_graph_is_named(bundle):
    with pytest.raises(UnknownNameError, match="decoder"):
        open_session("onnxruntime", bundle, "decodr")


def test_load_hands_the_threads_to_the_session(bundle):
    (_, options) = edgegen.runtime.load("x.bundle", threads=3).session
    assert options["threads"] == 3


def test_load_says_which_backend_auto_took(bundle, caplog):
    with caplog.at_level(logging.INFO, logger="edgegen"):
        edgegen.runtime.load("x.bundle")
    assert "decoder_lm on onnxruntime" in caplog.text


def test_load_closes_the_bundle_when_the_pipeline_cannot_be_made(bundle, monkeypatch):
    def refuse(*files, **options):
        raise BackendError("no")

    monkeypatch.setattr(edgegen.backends, "_load", lambda backend: refuse)
    with pytest.raises(BackendError):
        edgegen.runtime.load("x.bundle")
    assert bundle.closed


def test_a_real_bundle_generates_the_same_text_from_its_folder_and_its_tar(tiny_bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    from edgegen.bundle import pack

    pack(tiny_bundle, tmp_path / "tiny.tar")
    texts = []
    for path in (tiny_bundle, tmp_path / "tiny.tar"):
        with edgegen.load(path, threads=1) as model:
            texts.append(model.generate("abc", max_new_tokens=6).token_ids)
    assert len(texts[0]) > 0
    assert texts[0] == texts[1]


def test_a_context_is_the_most_that_prompt_and_text_have_together(tiny_bundle):
    pytest.importorskip("onnxruntime")
    never_ends = {2: -1e4}
    asked = {"temperature": 20.0, "seed": 5, "max_new_tokens": 64, "logit_bias": never_ends}
    with edgegen.load(tiny_bundle, threads=1) as whole, edgegen.load(tiny_bundle, context=20, threads=1) as model:
        found, wanted = model.generate("a b c", **asked), whole.generate("a b c", **asked)
        assert (found.finish_reason, found.prompt_tokens + len(found.token_ids)) == ("context", 20)
        assert found.token_ids == wanted.token_ids[: len(found.token_ids)]
        with pytest.raises(ContextFullError, match=r"30 tokens; the cache of 20 entries .*a context of 64\).*context=64"):
            model.generate(" ".join("a" * 30))


@pytest.mark.parametrize(("context", "said"), [(0, "for 1 to 64"), (65, "for 1 to 64"), (2.5, "a number of tokens")])
def test_a_context_that_cannot_be_is_refused(tiny_bundle, context, said):
    with pytest.raises(InputError, match=said):
        edgegen.load(tiny_bundle, "onnxruntime", context=context)


def test_a_context_is_for_language_models(tmp_path):
    with pytest.raises(InputError, match="keeps no cache: a context is for language models"):
        edgegen.load(convolutions(tmp_path / "images.bundle"), "onnxruntime", context=64)


def test_a_bundle_that_is_not_there_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError):
        edgegen.runtime.load(tmp_path / "none.bundle")


def test_an_unknown_family_or_backend_gets_a_hint():
    with pytest.raises(UnknownNameError, match="decoder_lm"):
        edgegen.runtime.pipeline_class("decoder_ml")
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        choose("onnxruntimes")


@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_a_missing_library_names_the_extra(monkeypatch, name):
    monkeypatch.setattr(edgegen.backends, "present_backends", list)
    with pytest.raises(BackendError, match=r'pip install "edgegen\[cpu\]"'):
        choose(name)


def test_a_library_that_does_not_import_names_the_extra(monkeypatch):
    broken = BACKENDS["onnxruntime"]._replace(place="no_such_library_at_all:Session")
    with pytest.raises(BackendError, match="pip install"):
        edgegen.backends._load(broken)


def test_a_missing_module_of_our_own_is_a_bug_to_see():
    with pytest.raises(ModuleNotFoundError):
        edgegen.backends._load(BACKENDS["onnxruntime"]._replace(place="edgegen.backends.none:Session"))
