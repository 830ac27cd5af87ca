"""The turns, the arithmetic and the record of benchmarks/images_against_torch.py; the engines themselves are not needed."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from rich.console import Console

from edgegen.backends.fake import FakeSession
from edgegen.pipelines.diffusion import Diffusion
from edgegen.pipelines.diffusion_settings import DiffusionSettings
from edgegen.tensors import TensorSpec

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MACHINE = {"cpu": "a processor", "architecture": "x86_64", "logical_cpus": 2}
WAYS = ("eager", "channels_last", "compile", "compile, frozen")


@pytest.fixture
def images(monkeypatch):
    """The package, imported as the benchmark does it and forgotten again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("images.rounds.PAUSE_S", 0)
    import images.bundles
    import images.figures
    import images.record
    import images.rounds

    yield images
    for name in [name for name in sys.modules if name.partition(".")[0] == "images"]:
        del sys.modules[name]


class Steady:
    """A worker that always takes as long as it is told, and counts how often it was asked."""

    def __init__(self, **times_s):
        self.times_s, self.requests = times_s, []

    def request(self, batch, runs):
        self.requests.append((batch, runs))
        return {"times_s": {name: [time_s] * runs for name, time_s in self.times_s.items()}}


def medians_of(**changes):
    """Three rounds in which edgegen is twice as fast as the best of PyTorch, and costs 1% over the bare call."""
    found = {"edgegen": [1.01] * 3, "bare call": [1.0] * 3, "plain onnxruntime": [1.1] * 3}
    found |= {way: [2.02 + place] * 3 for place, way in enumerate(WAYS)}
    return found | changes


def row_of(images, subject="dcgan", batch=1, *, quiet=True, medians=None, **more):
    row = images.figures.summarize(subject, batch, medians or medians_of())
    return row | {"quiet": quiet, "others_share": 0.01 if quiet else 0.5, "commit": "abc"} | more


def test_everyone_has_a_turn_in_each_round_in_an_order_that_rotates(images):
    asked = []
    workers = {name: Steady(**{name: 0.25}) for name in ("a", "b", "c")}
    for name, worker in workers.items():
        worker.request = lambda batch, runs, name=name: asked.append(name) or {"times_s": {name: [0.25] * runs}}
    found = images.rounds.measure(workers, 1, dict.fromkeys(workers, 0.25), 3, ())
    assert asked == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert found == {name: [0.25] * 3 for name in "abc"}


def test_a_hopeless_rival_is_asked_in_two_rounds_only_and_others_always(images):
    workers = {"ours": Steady(ours=9.0), "fast": Steady(fast=1.0), "slow": Steady(slow=1.31), "near": Steady(near=1.29)}
    found = images.rounds.measure(workers, 1, dict.fromkeys(workers, 2.0), 4, ("fast", "slow", "near"))
    assert {name: len(times_s) for name, times_s in found.items()} == {"ours": 4, "fast": 4, "slow": 2, "near": 4}


@pytest.mark.parametrize(("took_s", "runs"), [(2.0, 1), (0.1, 4), (0.4, 3), (0.0001, 101)])  # one of several gets it warm
def test_a_turn_takes_about_as_long_whatever_a_run_takes(images, took_s, runs):
    worker = Steady(only=took_s)
    images.rounds.measure({"only": worker}, 8, {"only": took_s}, 1, ())
    assert worker.requests == [(8, runs)]


def test_long_rounds_are_fewer(images):
    assert images.rounds.rounds_for(7, {"a": 0.001, "b": 0.001}) == 7
    assert images.rounds.rounds_for(7, {"a": 9.0, "b": 1.5}) == 5
    assert images.rounds.rounds_for(1, {"a": 9.0, "b": 1.5}) == 1


def test_getting_ready_tells_the_longest_of_what_a_worker_times(images):
    assert images.rounds.get_ready({"edgegen": Steady(whole=3.0, bare=2.0)}, 1) == {"edgegen": 3.0}


def test_edgegen_is_held_against_the_best_way_of_those_that_ran_to_the_end(images):
    slow_in_the_end = medians_of(compile=[2.0, 1.9], channels_last=[2.5, 2.2, 2.4])
    row = images.figures.summarize("dcgan", 1, slow_in_the_end)
    assert row["best_of_torch"] == "eager"
    assert images.figures.target(row, "torch / edgegen")["median"] == pytest.approx(2.0)


def test_a_ratio_is_the_median_of_those_within_the_rounds(images):
    row = images.figures.summarize("dcgan", 1, medians_of(edgegen=[0.5, 1.0, 2.0], eager=[0.75, 2.0, 3.0]))
    found = images.figures.target(row, "torch / edgegen")
    assert (found["median"], found["spread"]) == (1.5, [1.5, 2.0])


@pytest.mark.parametrize(
    ("subject", "torch_s", "met"), [("vae-128", 1.06, True), ("vae-128", 1.04, False), ("esrgan-slim", 1.0, False)]
)
def test_what_is_wanted_depends_on_the_subject_and_being_as_fast_is_not_ahead(images, subject, torch_s, met):
    medians = medians_of(edgegen=[1.0] * 3, eager=[torch_s] * 3)
    assert images.figures.target(images.figures.summarize(subject, 1, medians), "torch / edgegen")["met"] == met


def test_the_cost_of_a_pipeline_and_of_its_session_are_told_apart(images):
    medians = medians_of(edgegen=[1.05] * 3, session=[1.02] * 3, **{"bare call": [1.0] * 3})
    row = images.figures.summarize("ddim-20", 1, medians)
    session, image = (images.figures.target(row, name) for name in ("overhead", "image overhead"))
    assert (session["median"], session["met"]) == (pytest.approx(1.02), True)
    assert (image["median"], image["met"]) == (pytest.approx(1.05 / 1.02), True)
    assert not images.figures.target(
        images.figures.summarize("ddim-20", 1, medians | {"edgegen": [1.06] * 3}), "image overhead"
    )["met"]


def test_a_row_passes_where_every_target_is_met_and_the_machine_was_quiet(images):
    assert images.figures.verdict(row_of(images)) == "pass"
    assert images.figures.verdict(row_of(images, medians=medians_of(**{"edgegen fp16": [1.2] * 3}))) == "miss"
    assert images.figures.verdict(row_of(images, quiet=False)) == "busy"


def test_a_disturbed_row_does_not_replace_a_quiet_one(images):
    known = images.record.read(None, MACHINE)
    for quiet, share, put in ((False, 0.5, True), (True, 0.02, True), (False, 0.4, False), (True, 0.01, True)):
        assert images.record.merge(known, row_of(images, quiet=quiet, others_share=share)) == put
    assert [row["others_share"] for row in known["rows"]] == [0.01]


def test_what_other_sittings_measured_stays_in_the_file_and_in_order(images, tmp_path):
    file = tmp_path / "results" / "here.json"
    for subject, batch in (("vae-128", 1), ("dcgan", 8), ("dcgan", 1)):
        known = images.record.read(file, MACHINE)
        images.record.merge(known, row_of(images, subject, batch))
        images.record.write(file, known, ["dcgan", "vae-128"])
    known = images.record.read(file, MACHINE)
    assert [(row["subject"], row["batch"]) for row in known["rows"]] == [("dcgan", 1), ("dcgan", 8), ("vae-128", 1)]
    assert images.record.is_done(known, "dcgan", (1, 8))
    assert not images.record.is_done(known, "vae-128", (1, 8))


def test_a_subject_is_not_done_while_a_row_of_it_is_busy(images):
    known = images.record.read(None, MACHINE)
    images.record.merge(known, row_of(images, quiet=False))
    assert not images.record.is_done(known, "dcgan", (1,))


def test_a_file_of_another_machine_is_refused(images, tmp_path):
    file = tmp_path / "there.json"
    images.record.write(file, images.record.read(None, MACHINE), [])
    with pytest.raises(click.ClickException, match=r"another machine \(a processor, here another\)"):
        images.record.read(file, MACHINE | {"cpu": "another"})


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"machine": {}, "rows": []})])
def test_a_file_that_is_something_else_is_refused(images, tmp_path, content):
    file = tmp_path / "notes.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(click.ClickException, match="no file of this benchmark"):
        images.record.read(file, MACHINE)


def test_the_tables_say_what_passes_and_what_was_measured_with_other_code(images):
    known = images.record.read(None, MACHINE)
    images.record.merge(known, row_of(images))
    images.record.merge(known, row_of(images, "vae-128", medians=medians_of(edgegen=[3.0] * 3), commit="older"))
    images.record.merge(known, row_of(images, "ddim-20", quiet=False, medians=medians_of(session=[1.0] * 3)))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(images.record.report(known))
    text = console.export_text()
    lines = {line.split()[1]: line for line in text.splitlines() if line.count("│") == 11}
    assert "2.00 (2.00 to 2.00)" in lines["dcgan"]
    assert "1.40" in lines["dcgan"]
    assert "+1.0%" in lines["dcgan"]
    assert [
        name for name, word in (("dcgan", "pass"), ("vae-128", "miss"), ("ddim-20", "busy")) if word in lines[name]
    ] == list(lines)
    assert "Measured with different code: abc, older." in text


def test_a_bundle_is_made_again_only_where_its_makers_changed(images, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(images.bundles, "cache", lambda: tmp_path)
    monkeypatch.setattr(
        images.bundles, "_export", lambda subject, target, precision: made.append((target.parent.name, precision))
    )
    subject = images.subjects.Subject("ddim-20", "diffusion", "denoiser", {}, {}, {}, {}, bundle="unet")
    for digest in ("one", "one", "two"):
        monkeypatch.setattr(images.bundles, "digest", lambda digest=digest: digest)
        assert images.bundles.bundle_of(subject) == tmp_path / "bundles" / "unet-fp32" / "model.bundle"
    assert made == [("unet-fp32", "fp32")] * 2


def test_an_export_that_failed_is_not_taken_for_a_bundle(images, monkeypatch, tmp_path):
    monkeypatch.setattr(images.bundles, "cache", lambda: tmp_path)
    monkeypatch.setattr(images.bundles, "digest", lambda: "one")
    subject = images.subjects.Subject("dcgan", "gan", "generator", {}, {}, {}, {})
    tries = []

    def fail_once(*_):
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("refused")

    monkeypatch.setattr(images.bundles, "_export", fail_once)
    with pytest.raises(RuntimeError, match="refused"):
        images.bundles.bundle_of(subject)
    images.bundles.bundle_of(subject)
    assert len(tries) == 2


def test_the_image_of_pytorch_is_the_image_of_edgegen(monkeypatch):
    """The same noise and the same denoiser: both loops do the same work, so that their times may be compared."""
    for folder in ("images", "peers"):
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))
    make_images = load_worker("torch_worker")._images
    times = []

    def denoise(sample, timestep):
        times.append(float(timestep[0]))
        return sample * 0.1 + timestep[:, None, None, None] / 4000

    def run(feed, _):
        return {"prediction": denoise(feed["sample"], feed["timestep"])}

    sample, clock = TensorSpec("sample", "float32", (2, 3, 8, 8)), TensorSpec("timestep", "float32", (2,))
    session = FakeSession(run, [sample, clock], [TensorSpec("prediction", "float32", sample.axes)])
    noise = torch.randn(sample.axes, generator=torch.Generator().manual_seed(0))
    with Diffusion({"denoiser": session}, DiffusionSettings()) as pipeline:
        ours = pipeline.generate(latents=noise.numpy(), steps=20, stepper="ddim").pixels
    theirs = make_images(denoise, 20)(noise, torch.zeros(2))
    assert (times[:20], len(times)) == (times[20:], 40)
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # float32 sums in another order may round to the next level


def load_worker(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / "images" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for top in ("protocol", "subjects"):
        sys.modules.pop(top, None)
    return module
