"""Quality of a bundle's images, end to end on pipelines of numpy; reading references; the command."""

import json
import re
import types

import numpy as np
import pytest
from command_line import run

import edgegen.bench.evaluate
import edgegen.runtime
from edgegen.backends.fake import FakeSession
from edgegen.bench.evaluate import evaluate
from edgegen.bench.quality import compare_sets, pixel_features
from edgegen.errors import BundleError, InputError
from edgegen.media import drawn, write_folder
from edgegen.pipelines.features import Features, FeaturesSettings
from edgegen.pipelines.images import Images, PixelRange
from edgegen.pipelines.vae import Vae, VaeSettings
from edgegen.tensors import Axis, TensorSpec


def noise_images(count, seed=0, size=12):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 1), dtype=np.uint8)


def fake_manifest(name, first_input):
    variant = types.SimpleNamespace(inputs=[TensorSpec(first_input, "float32", ())])
    graphs = {"graph": types.SimpleNamespace(variants={"canonical": variant})}
    return types.SimpleNamespace(name=name, family="gan", precision="fp32", graphs=graphs, settings={})


class FakeModel:
    """Makes noise, or where it is told to, one image for ever."""

    settings = types.SimpleNamespace(classes=3)
    collapsed = False

    def __init__(self):
        manifest = fake_manifest("fake", "z")
        self.bundle = types.SimpleNamespace(manifest=manifest)
        self.calls = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def generate(self, *, count, seed, class_ids=None, psi=None, progress=None):
        self.calls.append((count, seed, class_ids, psi))
        pixels = noise_images(count, seed=seed + 1)
        return Images(np.repeat(pixels[:1], count, 0) if self.collapsed else pixels)


@pytest.fixture
def model(monkeypatch):
    fake = FakeModel()
    monkeypatch.setattr(edgegen.runtime, "load", lambda *_, **__: fake)
    monkeypatch.setattr(edgegen.bench.evaluate, "choose", lambda name: name)
    return fake


@pytest.fixture
def reference(tmp_path):
    np.savez_compressed(tmp_path / "real.npz", images=noise_images(64)[..., 0])
    return tmp_path / "real.npz"


def test_noise_is_like_noise_and_a_collapsed_model_is_found_out(model, reference):
    good = evaluate("b", reference, count=64, seed=5)
    assert model.calls == [(64, 5, [i % 3 for i in range(64)], None)]
    assert good["settings"]["images"] == 64
    assert good["reconstruction"] is None
    assert "not Inception" in good["note"]
    assert "mean colours" in good["note"]
    model.collapsed = True
    bad = evaluate("b", reference, count=64, seed=5)
    assert good["sets"]["recall"] > 0.8
    assert bad["sets"]["recall"] == 0
    assert bad["sets"]["diversity"] == 0
    assert bad["sets"]["frechet_distance"] > good["sets"]["frechet_distance"] * 1.5
    assert bad["sets"]["kernel_distance"] > abs(good["sets"]["kernel_distance"])


def test_labels_and_options_reach_the_model(model, tmp_path):
    np.savez(tmp_path / "r.npz", images=noise_images(8), labels=np.arange(8) % 2)
    evaluate("b", tmp_path / "r.npz", count=5, options={"psi": 0.5})
    assert model.calls == [(5, 0, [place % 2 for place in drawn(8, 5)], 0.5)]


def test_other_real_images_are_measured_like_the_models(model, reference, tmp_path):
    assert evaluate("b", reference, count=64)["baseline"] is None
    others = noise_images(70, seed=9)
    np.savez(tmp_path / "others.npz", images=np.repeat(others, 3, axis=3))  # grey as RGB loses nothing
    found = evaluate("b", reference, baseline=tmp_path / "others.npz", count=64)
    assert found["baseline"]["images"] == str(tmp_path / "others.npz")
    wanted = compare_sets(pixel_features(noise_images(64)), pixel_features(others[drawn(70, 64)]))
    assert found["baseline"]["sets"] == pytest.approx(wanted)
    assert found["baseline"]["sets"] != found["sets"]
    np.savez(tmp_path / "few.npz", images=others[:63])
    with pytest.raises(InputError, match="the baseline has 63 images, the reference 64"):
        evaluate("b", reference, baseline=tmp_path / "few.npz", count=64)


def halving_vae():
    """Its latent is every second grey level."""
    image = TensorSpec("image", "float32", ("batch", 1, "h", "w"))
    mean, latent = (TensorSpec(name, "float32", ("batch", 1, "h", "w")) for name in ("mean", "latent"))
    axes = {"batch": Axis(1, 1, 4), "h": Axis(1, 12, 64), "w": Axis(1, 12, 64)}
    encoder = FakeSession(lambda feed, _: {"mean": feed["image"] // 2}, [image], [mean], axes=axes)
    decoder = FakeSession(lambda feed, _: {"image": feed["latent"] * 2}, [latent], [image], axes=axes)
    vae = Vae(
        {"encoder": encoder, "decoder": decoder}, VaeSettings(PixelRange(0, 255), scale=1), {"encoder": axes, "decoder": axes}
    )
    vae.bundle = types.SimpleNamespace(manifest=fake_manifest("v", "latent"), close=lambda: None)
    return vae


def test_a_vae_is_measured_by_what_it_reconstructs(model, reference, monkeypatch):
    monkeypatch.setattr(edgegen.runtime, "load", lambda *_, **__: halving_vae())
    found = evaluate("b", reference, count=64)["reconstruction"]
    assert found["images"] == 64
    # Half of the pixels are one grey level off: a mean square of about 0.5.
    assert found["psnr_db"] == pytest.approx(10 * np.log10(255**2 / 0.5), abs=0.2)
    assert found["ssim"] > 0.999
    assert found["seconds_per_image"] > 0


def features_network():
    image = TensorSpec("image", "float32", ("batch", 1, 12, 12))
    axes = {"batch": Axis(1, 4, 8)}
    session = FakeSession(
        lambda feed, _: {"features": feed["image"].reshape(len(feed["image"]), -1)[:, :5]},
        [image],
        [TensorSpec("features", "float32", ("batch", 5))],
        axes=axes,
    )
    return Features(session, FeaturesSettings(PixelRange(0, 1)), axes)


def test_features_are_extracted_in_batches():
    pixels = noise_images(19)
    with features_network() as network:
        np.testing.assert_allclose(network.extract(pixels), pixels.reshape(19, -1)[:, :5] / 255, rtol=1e-6)
        assert [name for name, _ in network.replay({"image": np.zeros((1, 1, 12, 12), np.float32)})] == ["features"]
        with pytest.raises(InputError, match="must be 12"):
            network.extract(noise_images(3, size=9))
    bundle = types.SimpleNamespace(manifest=types.SimpleNamespace(settings={"more": 1}, graphs={}))
    with pytest.raises(BundleError, match="settings"):
        Features.from_bundle(bundle, None)


def test_features_of_a_bundle_name_their_space(model, reference, monkeypatch):
    network = features_network()
    monkeypatch.setattr(edgegen.runtime, "load", lambda path, *_, **__: network if path == "f.bundle" else model)
    manifest = types.SimpleNamespace(name="clothes", family="features")
    opened = types.SimpleNamespace(manifest=manifest, __enter__=None)

    class Opened:
        def __enter__(self):
            return opened

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("edgegen.bundle.Bundle.open", lambda path: Opened())
    assert "is clothes, not Inception" in evaluate("b", reference, features="f.bundle", count=64)["note"]
    manifest.family = "gan"
    with pytest.raises(InputError, match="wants one of the family features"):
        evaluate("b", reference, features="f.bundle", count=64)


def test_too_few_images_or_of_another_size_are_one_line(tmp_path, model):
    write_folder(tmp_path / "few", noise_images(3), ["a", "b", "c"])
    with pytest.raises(InputError, match="too few"):
        evaluate("b", tmp_path / "few")
    write_folder(tmp_path / "large", noise_images(8, size=20), list("abcdefgh"))
    with pytest.raises(InputError, match="20 x 20, the model makes 12 x 12"):
        evaluate("b", tmp_path / "large")


def test_the_command_prints_a_table_and_says_that_it_is_not_inception(model, reference):
    result = run("eval", "b", "--reference", str(reference), "--count", "64")
    assert result.exit_code == 0, result.output
    for said in ("Frechet distance", "recall", "coverage", "ms an image", "64 images against as many", "not Inception"):
        assert said in result.stdout
    result = run("eval", "b", "--reference", str(reference), "--baseline", str(reference), "--count", "64", "--json")
    found = json.loads(result.stdout)
    assert found["baseline"]["sets"]["frechet_distance"] == pytest.approx(0, abs=1e-9)  # the same images
    assert found["seconds_per_image"] > 0


def test_the_command_shows_what_real_images_score_and_how_a_vae_reconstructs(model, reference, monkeypatch):
    monkeypatch.setattr(edgegen.runtime, "load", lambda *_, **__: halving_vae())
    result = run("eval", "b", "--reference", str(reference), "--baseline", str(reference), "--count", "64")
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if line.startswith("│")}
    assert re.search(r"│ [\d.e-]+ +│ [\d.e-]+ +│", rows["Frechet distance"])
    assert "51." in rows["reconstruction: PSNR, dB"]
    assert "ms an image" in rows
