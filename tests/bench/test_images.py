"""The image benchmark on pipelines made of numpy, in a bundle of their own: its fields, its counts, its refusals."""

import io
import itertools
import json
import sys
import types

import numpy as np
import pytest
from bundles import make_bundle
from command_line import run
from rich.console import Console

import edgegen.bench.images
from edgegen.backends.fake import FakeSession
from edgegen.bench.images import TimedSession, bench_images
from edgegen.bench.report import image_report
from edgegen.errors import InputError
from edgegen.manifest import Graph, Variant
from edgegen.pipelines import FAMILIES
from edgegen.pipelines.images import Images
from edgegen.tensors import Axis, TensorSpec

COLD = {"runtime_import_s": 0.1, "load_s": 0.2, "first_generation_s": 0.3, "peak_memory_bytes": 5 << 20}
CALLS = []


class Steps:
    """Runs the graph `decoder` once for each step."""

    settings = types.SimpleNamespace(classes=2)

    def __init__(self, session, bundle):
        self.session, self.bundle = session, bundle

    @classmethod
    def from_bundle(cls, bundle, open_session):
        return cls(open_session("decoder"), bundle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bundle.close()

    def generate(self, *, count=1, seed=None, class_ids=None, steps=3, progress=None):
        CALLS.append((count, seed, class_ids, steps))
        for step in range(steps):
            self.session.run({"sample": np.zeros((count, 2), np.float32)})
            progress(step + 1, steps)
        return Images(np.zeros((count, 4, 4, 3), np.uint8))


class Translates(Steps):
    """Image to image; nothing is made from seeds."""

    settings = types.SimpleNamespace()

    def translate(self, pixels):
        CALLS.append(pixels.shape)
        self.session.run({"image": np.zeros((len(pixels), 3, 8, 8), np.float32)})
        return Images(pixels)


class Neither(Translates):
    translate = property()  # hasattr says no


@pytest.fixture
def bundles(tmp_path, monkeypatch):
    CALLS.clear()
    made = {
        "steps": (Steps, TensorSpec("sample", "float32", ("batch", 2))),
        "translates": (Translates, TensorSpec("image", "float32", ("batch", 3, 8, 8))),
        "neither": (Neither, TensorSpec("image", "float32", ("batch", 3, 8, 8))),
    }
    monkeypatch.setitem(sys.modules, "fake_benched", types.SimpleNamespace(**{name: kind for name, (kind, _) in made.items()}))
    for name in made:
        monkeypatch.setitem(FAMILIES, name, f"fake_benched:{name}")

    def opened(backend, bundle, graph, *, threads):
        spec = made[bundle.manifest.family][1]
        return FakeSession(lambda feed, _: {"out": np.zeros(1)}, [spec], [TensorSpec("out", "float32", (1,))])

    monkeypatch.setattr(edgegen.bench.images, "open_session", opened)
    monkeypatch.setattr(
        edgegen.bench.images, "measure_cold_call", lambda *asked: COLD | {"asked": len(CALLS.append(asked) or "")}
    )
    axes, path = {"batch": Axis(1, 1, 4)}, "graphs/decoder.onnx"
    graphs = {name: Graph({"canonical": Variant(path, (), (spec,), ())}, axes) for name, (_, spec) in made.items()}
    return {
        name: make_bundle(tmp_path / f"{name}.bundle", family=name, graphs={"decoder": graph}) for name, graph in graphs.items()
    }


def test_batches_steps_and_graphs_are_counted(bundles, monkeypatch):
    result = json.loads(json.dumps(bench_images(bundles["steps"], batches=(1, 3), steps=4, warmup=2, repeats=3)))
    assert [call for call in CALLS if len(call) == 4] == [(1, 0, [0], 4)] * 5 + [(3, 0, [0, 1, 0], 4)] * 5
    for entry, batch in zip(result["batches"], (1, 3), strict=True):
        assert (entry["batch"], entry["call"]["count"], entry["graphs"]["decoder"]["runs"]) == (batch, 3, 4)
        assert entry["per_image"]["p50_s"] == pytest.approx(entry["call"]["p50_s"] / batch)
        assert 0 < entry["graphs"]["decoder"]["share"] < 1
    assert result["cold"]["load_s"] == 0.2
    assert result["settings"]["options"] == {"steps": 4}
    assert result["sessions"] == {"decoder": {}}
    cold = next(call for call in CALLS if len(call) == 6)
    assert cold[3:] == ("generate", [], {"steps": 4, "class_ids": [0], "count": 1, "seed": 0})


def test_numbers_follow_the_clock(bundles):
    ticks = itertools.count()
    result = bench_images(bundles["steps"], batches=(2,), warmup=1, repeats=2, clock=lambda: float(next(ticks)))
    (entry,) = result["batches"]
    # Three runs of one tick each, with one tick before each and one after the last: seven from the call's start to its end.
    assert entry["call"]["p50_s"] == entry["call"]["max_s"] == 7
    assert entry["per_image"]["p99_s"] == 3.5
    assert entry["images_per_s"] == pytest.approx(2 / 7)
    assert entry["steps_per_s"] == pytest.approx(3 / 7)
    assert entry["graphs"]["decoder"] == {"runs": 3, "seconds": 3, "share": pytest.approx(3 / 7)}
    assert (entry["rest_s"], entry["rest_share"]) == (4, pytest.approx(4 / 7))


def test_the_usual_batch_is_what_the_graphs_were_exported_for(bundles, monkeypatch):
    (entry,) = bench_images(bundles["steps"], repeats=1)["batches"]
    assert entry["batch"] == 1  # opt of the bundle's axis is 1
    real = edgegen.bench.images._usual_batch
    monkeypatch.setattr(edgegen.bench.images, "_usual_batch", lambda *given: real(*given) + 3)
    assert [entry["batch"] for entry in bench_images(bundles["steps"], repeats=1)["batches"]] == [1, 4]


def test_image_to_image_is_measured_on_a_black_image_of_the_usual_size(bundles):
    result = bench_images(bundles["translates"], batches=(2,), warmup=0, repeats=1)
    assert CALLS[0] == (2, 8, 8, 3)
    assert CALLS[1][3:] == ("translate", [{"image": (8, 8, 3)}], {})
    assert result["batches"][0]["steps_per_s"] is None


def test_what_cannot_be_measured_is_one_line(bundles):
    for said, name, options in (
        ("takes no steps", "translates", {"steps": 3}),
        ("makes no images", "neither", {}),
        ("at least 1", "steps", {"batches": (0,)}),
        ("at least 1", "steps", {"repeats": 0}),
        ("at least 1", "steps", {"warmup": -1}),
    ):
        with pytest.raises(InputError, match=said):
            bench_images(bundles[name], **options)


def test_the_report_shows_every_batch_and_graph(bundles):
    console = Console(width=80, file=io.StringIO())  # a pipe, and many a terminal
    console.print(image_report(bench_images(bundles["steps"], batches=(1, 2), repeats=1)))
    text = console.file.getvalue()
    for word in ("images/s", "steps/s", "decoder", "(rest)", "Cold", "p99"):
        assert word in text
    assert "…" not in text  # nothing is cut off


def test_the_command_measures_each_kind_of_bundle_with_its_own_options(bundles, tiny_bundle):
    told = json.loads(run("bench", str(bundles["steps"]), "--batch", "2", "--repeats", "1", "--json", "-").stdout)
    assert told["results"][0]["batches"][0]["batch"] == 2
    assert "images/s" in run("bench", str(bundles["steps"]), "--repeats", "1").stdout
    for bundle, option, kind in ((bundles["steps"], "--new-tokens", "an image"), (tiny_bundle, "--batch", "a language")):
        result = run("bench", str(bundle), option, "3")
        assert (result.exit_code, result.stderr) == (1, f"edgegen: {bundle} is {kind} model, which has no {option}\n")


def test_a_timed_session_is_the_inner_one_with_a_clock():
    spec = TensorSpec("x", "float32", ("batch",))
    inner = FakeSession(lambda feed, _: {"y": feed["x"] * 2}, [spec], [spec], axes={"batch": Axis(1, 1, 2)})
    with TimedSession(inner, itertools.count().__next__) as session:
        assert session.run({"x": np.ones(2, np.float32)}, outputs=["y"])["y"].tolist() == [2, 2]
        with pytest.raises(InputError):
            session.run({"x": np.ones(3, np.float32)})
        assert (session.take(), session.take()) == ((2, 2), (0, 0))
        assert session.inputs == inner.inputs
        assert session.outputs == inner.outputs
        with pytest.raises(InputError, match="no state"):
            session.new_state(3)
