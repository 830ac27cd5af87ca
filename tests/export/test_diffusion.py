"""A denoiser of one's own becomes a bundle whose whole trajectory is proven, and which generates without PyTorch."""

import json

import diffusers
import numpy as np
import pytest
import torch
from command_line import run

import edgegen
from edgegen.backends import open_session
from edgegen.backends.fake import FakeSession
from edgegen.errors import ExportError, ProofError
from edgegen.export.families import diffusion
from edgegen.export.parts import Modules, parse_spec
from edgegen.export.request import Request
from edgegen.models.unet import ClassUNet
from edgegen.proof import tensors, verify_bundle
from edgegen.proof.npz import read_npz
from edgegen.proof.tensors import TOLERANCES, compare, require
from edgegen.tensors import Axis

SAMPLE = "float32[batch, 1, 8, 8]"
SCHEDULE = {"kind": "linear", "prediction": "noise", "clip": 1.0, "beta_start": 0.0001, "beta_end": 0.02}


def tiny_unet(widths=(8, 16)):
    torch.manual_seed(0)
    return ClassUNet(size=8, widths=widths, groups=4, classes=3).eval()


def source(**changes):
    fields = {
        "kind": "module",
        "name": "tiny",
        "sha256": "0" * 64,
        "licence": "MIT",
        "modules": {"denoiser": tiny_unet()},
        "inputs": {
            "denoiser": tuple(map(parse_spec, (f"sample {SAMPLE}", "timestep float32[batch]", "class_ids int64[batch]")))
        },
        "axes": {"batch": Axis(1, 2, 4)},
        "settings": {"schedule": SCHEDULE, "stepper": "ddpm", "steps": 6, "classes": 3, "null_class": 3},
    }
    return Modules(**{**fields, **changes})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    place = tmp_path_factory.mktemp("diffusion") / "tiny.bundle"
    report = diffusion.export(Request(source(), place, "fp32", "tiny"), lambda *_: None)
    return place, report


def test_the_whole_trajectory_is_proven_step_by_step(bundle):
    place, report = bundle
    names = [error.name for error in report.fidelity[0].errors]
    assert names == ["step.0", "step.1", "step.2", "step.3", "image"]
    assert report.fidelity[0].worst.largest < 1e-4  # float32 sums in another order
    assert verify_bundle(str(place)).passed


def test_the_first_step_that_differs_is_named(bundle):
    place, _ = bundle
    wanted = read_npz((place / "proof/outputs.npz").read_bytes())
    got = {name: array.copy() for name, array in wanted.items()}
    for name in ("step.2", "step.3", "image"):
        got[name] += 0.1
    found = compare(got.items(), wanted, "canonical", "float32", TOLERANCES["float32"])
    with pytest.raises(ProofError, match="step\\.2 differs"):
        require(found)


def faulty(first):
    """Opens sessions whose predictions are wrong from the denoising step `first` on."""

    def opened(*given, **more):
        inner, times = open_session(*given, **more), []

        def run(feed, _state):
            time = float(feed["timestep"][0])
            if time not in times:
                times.append(time)
            wrong = 0.5 if len(times) > first else 0.0
            return {"prediction": inner.run(feed)["prediction"] + np.float32(wrong)}

        return FakeSession(run, list(inner.inputs.values()), list(inner.outputs.values()))

    return opened


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_fault_planted_at_a_step_is_found_at_that_step(bundle, step, monkeypatch):
    place, _ = bundle
    monkeypatch.setattr(tensors, "open_session", faulty(step))
    report = verify_bundle(str(place))
    assert not report.passed
    assert report.fidelity.failure.startswith(f"step.{step} differs by ")
    wrong = [error.name for error in report.fidelity.errors if error.largest > report.fidelity.tolerance.largest]
    assert wrong == [*(f"step.{later}" for later in range(step, 4)), "image"]
    told = run("verify", str(place))
    assert told.exit_code == 1
    assert f"step.{step} differs by " in told.output


def test_it_generates_as_diffusers_own_loop_does(bundle):
    place, _ = bundle
    scheduler = diffusers.DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=True)
    scheduler.set_timesteps(5)
    unet = tiny_unet()
    latents = np.random.default_rng(1).standard_normal((2, 1, 8, 8), np.float32)
    sample, classes = torch.from_numpy(latents), torch.tensor([0, 2])
    with torch.no_grad():
        for time in scheduler.timesteps:
            told, untold = (unet(sample, time.float().expand(2), ids) for ids in (classes, torch.full((2,), 3)))
            sample = scheduler.step(untold + 2.5 * (told - untold), time, sample).prev_sample
    wanted = (sample * 127.5 + 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    with edgegen.load(place) as model:
        made = model.generate(latents=latents, class_ids=[0, 2], guidance=2.5, stepper="ddim", steps=5)
    # Float32 sums in another order may move a pixel over the border between two levels.
    assert np.abs(made.pixels.astype(int) - wanted).max() <= 1


def test_every_image_keeps_its_seed_in_onnxruntime(bundle):
    place, _ = bundle
    with edgegen.load(place) as model:
        together = model.generate(count=6, seed=40, class_ids=1, guidance=2.0)
        alone = model.generate(seed=45, class_ids=1, guidance=2.0)
    # Other batch sizes may sum in another order.
    assert np.abs(together.pixels[5].astype(int) - alone.pixels[0]).max() <= 1


def test_half_precision_is_proven_too(tmp_path):
    made = source(modules={"denoiser": tiny_unet((8,))})
    report = diffusion.export(Request(made, tmp_path / "half.bundle", "fp16", "tiny"), lambda *_: None)
    assert [fidelity.arithmetic for fidelity in report.fidelity] == ["float32", "float16"]
    assert all(fidelity.failure is None for fidelity in report.fidelity)


def test_a_latent_model_of_ones_own_is_exported_with_its_vae(tmp_path):
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(4, 4), norm_num_groups=2, sample_size=16,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae

        def forward(self, image):
            found = self.vae.encode(image).latent_dist
            return found.mean, found.logvar

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae

        def forward(self, latent):
            return self.vae.decode(latent).sample

    latent, image = "float32[batch, 2, 8, 8]", "float32[batch, 1, 16, 16]"
    unet = ClassUNet(size=8, channels=2, widths=(8,), groups=4, classes=0).eval()
    made = source(
        modules={"denoiser": unet, "vae_decoder": Decoder(), "vae_encoder": Encoder()},
        inputs={
            "denoiser": tuple(map(parse_spec, (f"sample {latent}", "timestep float32[batch]"))),
            "vae_decoder": (parse_spec(f"latent {latent}"),),
            "vae_encoder": (parse_spec(f"image {image}"),),
        },
        outputs={
            "vae_decoder": (parse_spec(f"image {image}"),),
            "vae_encoder": (parse_spec(f"mean {latent}"), parse_spec(f"log_variance {latent}")),
        },
        settings={
            "schedule": {"kind": "flow", "prediction": "flow", "shift": 2.0},
            "stepper": "flow_euler",
            "steps": 3,
            "latent": {"channels": 2, "factor": 2, "scale": 0.7, "shift": 0.1},
        },
    )
    report = diffusion.export(Request(made, tmp_path / "latent.bundle", "fp32", "latent"), lambda *_: None)
    assert [error.name for error in report.fidelity[0].errors] == [
        "mean",
        "log_variance",
        "step.0",
        "step.1",
        "step.2",
        "image",
    ]
    with edgegen.load(tmp_path / "latent.bundle") as model:
        first = model.generate(seed=1)
        changed = model.generate(seed=1, init_image=first.pixels[0], strength=0.4)
    assert first.pixels.shape == changed.pixels.shape == (1, 16, 16, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": {"generator": torch.nn.Identity()}}, "has the graph denoiser"),
        ({"inputs": {}}, "its inputs are \\[\\]"),
        ({"settings": {"schedule": {"kind": "quadratic"}}}, "schedule"),
        ({"settings": {"stepper": "eulr", "classes": 3}}, "did you mean 'euler'"),
        ({"settings": {"colour": 1}}, "colour"),
        (
            {
                "modules": {"denoiser": tiny_unet(), "vae_decoder": torch.nn.Identity()},
                "inputs": source().inputs | {"vae_decoder": (parse_spec(f"latent {SAMPLE}"),)},
                "outputs": {"vae_decoder": (parse_spec(f"image {SAMPLE}"),)},
            },
            "there is a VAE.*--setting 'latent=",
        ),
    ],
)
def test_what_is_missing_is_named(changes, message):
    with pytest.raises(ExportError, match=message):
        diffusion.build(source(**changes))


def test_another_kind_of_source_is_refused(tmp_path):
    with pytest.raises(ExportError, match="gpt is no diffusion model"):
        diffusion.export(Request(object(), tmp_path / "x.bundle", "fp32", "gpt"), lambda *_: None)


def test_the_manifest_says_how_it_was_trained(bundle):
    place, _ = bundle
    settings = json.loads((place / "manifest.json").read_text())["settings"]
    assert settings["schedule"]["prediction"] == "noise"
    assert (settings["height"], settings["width"], settings["stepper"]) == (8, 8, "ddpm")


class Looked(torch.nn.Module):
    """A denoiser that looks up its time and its class, as many do."""

    def __init__(self):
        super().__init__()
        self.times, self.classes = torch.nn.Embedding(1000, 1), torch.nn.Embedding(4, 1)

    def forward(self, sample, timestep, class_ids):
        return sample * (self.times(timestep) + self.classes(class_ids))[:, :, None, None]


def looked(time="int64", **settings):
    listed = ("sample float32[batch, 1, 4, 4]", f"timestep {time}[batch]", "class_ids int64[batch]")
    inputs = {"denoiser": tuple(map(parse_spec, listed))}
    chosen = {"classes": 3, "null_class": 3, "steps": 3} | settings
    return source(modules={"denoiser": Looked().eval()}, inputs=inputs, outputs={}, settings=chosen)


def test_a_time_that_is_looked_up_is_rounded_in_the_graph(tmp_path):
    made = looked()
    report = diffusion.export(Request(made, tmp_path / "looked.bundle", "fp32", "looked"), lambda *_: None)
    assert report.fidelity[0].failure is None
    with edgegen.load(tmp_path / "looked.bundle") as model:
        images = model.generate(seed=1, class_ids=2, stepper="euler", steps=4)  # its times lie between whole ones
    assert images.pixels.shape == (1, 4, 4, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": 5}, "does not take 4 in class_ids, .*--setting classes=N"),
        ({"null_class": 4}, "does not take 4 in class_ids, .*--setting null_class=N"),
    ],
)
def test_classes_that_the_embedding_lacks_are_refused(settings, said):
    with pytest.raises(ExportError, match=said):
        diffusion.build(looked(**settings))


def test_a_time_of_another_type_is_refused_with_its_cure():
    with pytest.raises(ExportError, match=r"timestep int32\[batch\] must be float32, .*cast it inside"):
        diffusion.build(looked("int32"))
