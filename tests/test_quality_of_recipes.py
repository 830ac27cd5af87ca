"""benchmarks/quality_of_recipes.py: what is made, what is written; training and measuring are tried elsewhere."""

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("quality_of_recipes", ROOT / "benchmarks" / "quality_of_recipes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.commands = []
    monkeypatch.setattr(module, "edgegen", lambda *arguments: module.commands.append([str(a) for a in arguments]))
    return module


def evaluated(bundle, reference, *, baseline, features, count, options, threads):
    sets = dict.fromkeys(("frechet_distance", "precision", "recall", "density", "coverage", "diversity"), 2.5)
    sets["kernel_distance"] = 0.0125
    reconstruction = {"psnr_db": 20.0, "ssim": 0.7} if "cvae" in str(bundle) else None
    return {
        "settings": {"images": count, "options": options},
        "features": {"name": "classifier", "bundle": str(features)},
        "sets": sets,
        "baseline": {"images": f"of {baseline.name}", "sets": sets},
        "reconstruction": reconstruction,
        "seconds_per_image": 0.0015,
    }


def test_every_model_has_a_recipe(script):
    for name in (script.CLASSIFIER, *(recipe for recipe, _ in script.MODELS.values())):
        assert (script.RECIPES / f"{name}.py").is_file()


def test_only_what_is_missing_is_made(script, tmp_path):
    script.bundle_of("cvae_fashion_mnist", tmp_path)
    assert [command[0] for command in script.commands] == ["train", "export"]
    (tmp_path / "dcgan_fashion_mnist.safetensors").touch()
    script.bundle_of("dcgan_fashion_mnist", tmp_path)
    assert [command[0] for command in script.commands] == ["train", "export", "export"]
    (tmp_path / "ddpm_fashion_mnist.bundle").touch()
    script.bundle_of("ddpm_fashion_mnist", tmp_path)
    assert len(script.commands) == 3


def test_the_figures_are_shown_and_written_without_the_paths_of_a_machine(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "evaluate", evaluated)
    done = CliRunner().invoke(script.main, [str(tmp_path / "made"), "--count", "64", "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    rows = {line.split("│")[1].strip(): line for line in done.output.splitlines() if line.startswith("│")}
    columns = len(script.MODELS)
    assert rows["Frechet distance"].count("2.5") == columns + 1  # and the training images
    assert rows["kernel distance x 1000"].count("12.5") == columns + 1
    assert rows["PSNR of reconstructions, dB"].count("20") == 1
    assert rows["ms an image"].count("1.5") == columns
    assert "not Inception" in done.output
    text = (tmp_path / "out.json").read_text()
    assert str(tmp_path) not in text
    assert [result["model"] for result in json.loads(text)["results"]] == list(script.MODELS)
