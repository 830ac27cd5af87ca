"""Single networks as the diffusers library saves them: autoencoders, and unconditional models with their scheduler."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from command_line import run
from tiny_diffusers import ddpm, saved, vae

import edgegen
from edgegen.errors import EdgegenError, InputError
from edgegen.export import export
from edgegen.export.families.diffusers_unet import build
from edgegen.export.families.diffusion import pipeline_on_torch
from edgegen.export.sources import open_source, source_kind
from edgegen.proof import verify_bundle

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, about its own interfaces
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # float32 sums in another order
SIDES = ["height=8..16..32", "width=8..16..32"]


def as_input(pixels):
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def pixels_of(image):
    return np.rint((image.permute(0, 2, 3, 1).numpy() + 1) * 127.5).clip(0, 255)


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_an_autoencoder_of_a_pipeline_is_exported_for_a_range_of_sizes(tmp_path, captured_once):
    """Its folder says neither its family nor its sizes: the first is known, the second are options."""
    network = vae(scaling_factor=0.3, shift_factor=0.1)
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    report = export(str(saved(tmp_path / "vae", network)), tmp_path / "v.bundle", axes=["batch=1..2..4", *SIDES])
    assert [error.name for error in report.fidelity[0].errors] == ["mean", "log_variance", "latent", "image"]
    assert verify_bundle(str(tmp_path / "v.bundle")).passed
    with edgegen.load(tmp_path / "v.bundle") as pipeline, torch.no_grad():
        manifest = pipeline.bundle.manifest
        assert (manifest.family, manifest.source.licence, manifest.name) == ("vae", "mit", "vae")
        assert (pipeline.settings.scale, pipeline.settings.scaling_factor, pipeline.settings.shift_factor) == (2, 0.3, 0.1)
        for pixels in (random_pixels(3, 16, 16, 3), random_pixels(1, 32, 10, 3)):
            mean = network.encode(as_input(pixels)).latent_dist.mean
            np.testing.assert_allclose(pipeline.encode(pixels).mean, (mean - 0.1) * 0.3, **CLOSE)
            # One level: a float on the edge between two is rounded either way.
            wanted = pixels_of(network.decode(mean).sample)
            np.testing.assert_allclose(pipeline.reconstruct(pixels).pixels, wanted, atol=1)


def test_without_a_size_an_autoencoder_has_the_one_it_names(tmp_path):
    from edgegen.export.families.vae import build

    source = open_source(str(saved(tmp_path / "vae", vae())))
    model = build(source)
    assert str(model.parts["encoder"].inputs[0]) == "image float32[batch, 3, 16, 16]"
    assert str(model.parts["decoder"].inputs[0]) == "latent float32[batch, 4, 8, 8]"
    assert list(model.axes) == ["batch"]


def test_a_tiny_autoencoder_has_latents_without_spread(tmp_path):
    from edgegen.export.declare import Declared, declare
    from edgegen.export.families.vae import build

    network = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    ).eval()  # fmt: skip
    source = open_source(str(saved(tmp_path / "tiny", network)))
    with pytest.raises(InputError, match="nothing says how large the axis height may be; give --axis height="):
        declare(source, Declared(), "vae")
    model = build(declare(source, Declared(axes=["height=16", "width=16"]), "vae"))
    inputs, outputs = model.reference()
    with torch.no_grad():
        wanted = network.decode(network.encode(torch.from_numpy(inputs["image"])).latents).sample  # forward rounds between
    assert [spec.name for spec in model.parts["encoder"].outputs] == ["mean"]
    np.testing.assert_allclose(outputs["image"], wanted, **CLOSE)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("ddpm") / "ddpm", ddpm())


def flat(pipeline, place):
    """As the first of these models were published: everything beside `model_index.json`."""
    place.mkdir()
    for file in (*(pipeline / "unet").iterdir(), *(pipeline / "scheduler").iterdir(), pipeline / "model_index.json"):
        shutil.copy(file, place)
    return place


def test_an_unconditional_pipeline_is_exported_with_its_scheduler(unconditional, tmp_path):
    result = run("export", str(unconditional), "-o", str(tmp_path / "d.bundle"), *(f"--axis={axis}" for axis in SIDES))
    assert result.exit_code == 0, result.output
    assert verify_bundle(str(tmp_path / "d.bundle")).passed
    with edgegen.load(tmp_path / "d.bundle") as model:
        settings = model.settings
        assert (settings.stepper, settings.steps, settings.schedule.clip, settings.height) == ("ddpm", 1000, 1.0, 16)
        for height, width in ((16, 16), (8, 32)):
            latents = np.random.default_rng(1).standard_normal((2, 1, height, width), np.float32)
            made = model.generate(latents=latents, stepper="ddim", steps=4, height=height, width=width).pixels
            np.testing.assert_allclose(made, image_of_ddim(unconditional, latents), atol=1)  # level: rounded either way
        with pytest.raises(InputError, match="width is 64 pixels; this model was exported for 8 to 32"):
            model.generate(width=64)


def image_of_ddim(directory, latents):
    pipeline = diffusers.DDPMPipeline.from_pretrained(directory)
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(4)
    sample = torch.from_numpy(latents)
    with torch.no_grad():
        for time in scheduler.timesteps:
            sample = scheduler.step(pipeline.unet(sample, time).sample, time, sample).prev_sample
    return pixels_of(sample)


@pytest.mark.parametrize("layout", ["folders", "flat", "flat without an index", "unet of a pipeline", "another class"])
def test_the_proof_is_the_librarys_own_loop_in_every_layout(layout, unconditional, tmp_path):
    place = unconditional
    if layout.startswith("flat"):
        place = flat(unconditional, tmp_path / "flat")
    if layout == "flat without an index":
        (place / "model_index.json").unlink()
    if layout == "unet of a pipeline":
        place = unconditional / "unet"
    if layout == "another class":
        place = saved(tmp_path / "ddim", diffusers.DDIMPipeline(ddpm().unet, diffusers.DDPMScheduler()))
    model = build(open_source(str(place)))
    assert model.settings.stepper == ("ddim" if layout == "another class" else "ddpm")
    inputs, outputs = model.reference()
    got = dict(pipeline_on_torch(model.parts, model.settings, model.axes).replay(inputs))
    assert list(got) == list(outputs) == ["step.0", "step.1", "step.2", "step.3", "image"]
    for key, wanted in outputs.items():
        np.testing.assert_allclose(got[key], wanted, atol=2e-4 * np.abs(wanted).max(), err_msg=key)  # float32 rounding


SCHEDULERS = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_other_schedulers_take_the_librarys_way_too_and_classes_are_told(name, tmp_path):
    place = saved(tmp_path / "d", ddpm(classes=3, scheduler=SCHEDULERS[name]()))
    model = build(open_source(str(place)))
    assert (model.settings.stepper, model.settings.steps, model.settings.classes) == (name, 50, 3)
    inputs, outputs = model.reference()
    got = dict(pipeline_on_torch(model.parts, model.settings, model.axes).replay(inputs))
    for key, wanted in outputs.items():
        np.testing.assert_allclose(got[key], wanted, atol=2e-4 * np.abs(wanted).max(), err_msg=key)  # float32 rounding


def test_a_denoiser_without_a_scheduler_needs_one_said(unconditional, tmp_path):
    place = tmp_path / "unet"
    shutil.copytree(unconditional / "unet", place)
    with pytest.raises(EdgegenError, match=r"has no scheduler_config\.json.*--setting stepper="):
        export(str(place), tmp_path / "x.bundle")
    said = ['schedule={"kind": "cosine", "prediction": "noise"}', 'stepper="ddim"', "steps=5"]
    with pytest.raises(EdgegenError, match="takes multiples of 2 alone"):
        export(str(place), tmp_path / "x.bundle", settings=said, axes=["height=7..8..9"])
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]


def damaged(directory, tmp_path, name, change):
    place = tmp_path / "broken"
    shutil.copytree(directory, place)
    config = json.loads((place / name).read_text())
    (place / name).write_text(json.dumps(change(config)))
    return str(place)


def test_what_cannot_be_read_is_one_line(unconditional, tmp_path):
    def refused(place, said, **options):
        with pytest.raises(EdgegenError, match=said) as caught:
            export(place, tmp_path / "x.bundle", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "x.bundle").exists()
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)

    unet = unconditional / "unet"
    assert source_kind(str(unet)) == "diffusers_single"
    other = {"_class_name": "UNet2DConditionModel"}
    refused(damaged(unet, tmp_path, "config.json", lambda c: c | other), "holds a UNet2DConditionModel; edgegen exports Auto")
    refused(damaged(unet, tmp_path, "config.json", lambda c: c | {"class_embed_type": "identity"}), "class_embed_type")
    refused(damaged(unconditional, tmp_path, "unet/config.json", lambda c: c | other), "an unconditional model has a UNet2DMod")
    refused(
        damaged(unconditional, tmp_path, "scheduler/scheduler_config.json", lambda c: c | {"_class_name": "TheirScheduler"}),
        "of a TheirScheduler, which the installed diffusers does not know",
    )
    refused(str(unet), "which the family diffusion reads, not vae", family="vae")
    refused(str(unet), "which the family diffusion reads, not decoder_lm", family="decoder_lm")
    refused(str(unet), "--checkpoint does not go with it", checkpoint=unet / "diffusion_pytorch_model.safetensors")
    place = saved(tmp_path / "vae", vae())
    refused(str(place), "height takes multiples of 2 alone, not 17", axes=["height=17", "width=16"])
    refused(str(place), "no tensor has an axis named depth; there are batch", axes=["depth=3"])
    refused(str(place), "vae is a diffusers directory, which the family vae reads, not gan", family="gan")
    refused(str(place), "which the family vae reads, not diffusion", family="diffusion")
    refused(damaged(place, tmp_path, "config.json", lambda c: c | {"latents_mean": [0.0] * 4}), "latents_mean")
    weights = place / "diffusion_pytorch_model.safetensors"
    weights.rename(place / "diffusion_pytorch_model.bin")
    refused(str(place), "is a pickle")
