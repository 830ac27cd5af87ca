"""Directories of the diffusers library, saved in its own layout: export, bundle, onnxruntime, and the library's own image."""

import shutil

import diffusers
import numpy as np
import pytest
import torch
from tiny_diffusers import NEGATIVE, PIPELINES, PROMPT, SCALED, flux, saved, stable_diffusion, stable_diffusion_3

import edgegen
from edgegen.errors import EdgegenError, ExportError, InputError, SourceError
from edgegen.export import export
from edgegen.export.families import diffusers_model
from edgegen.export.families.diffusers_scheduler import schedule_of
from edgegen.export.sources import open_source, source_kind
from edgegen.proof import verify_bundle

# Greys of 0 to 1 after some 10 runs of the denoiser, float32 sums in another order; one level of 255 is 4e-3.
TOLERANCE = 2e-3


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    from edgegen.export.sources.diffusers_files import quiet_diffusers

    with quiet_diffusers():
        yield


def image_of_diffusers(pipeline, latents, steps, guidance, *, negative=None):
    """The library's image from the same noise: floats of 0 to 1 [height, width, channel]."""
    start = torch.from_numpy(latents)
    height, width = (side * pipeline.vae_scale_factor for side in latents.shape[2:])
    if isinstance(pipeline, diffusers.FluxPipeline):
        start = pipeline._pack_latents(start, *latents.shape)
    more = {} if negative is None else {"negative_prompt": negative}
    made = pipeline(
        PROMPT, latents=start, num_inference_steps=steps, guidance_scale=guidance, output_type="np", height=height, width=width,
        generator=torch.Generator().manual_seed(0), **more,
    )  # fmt: skip
    return made.images[0]


AXES = ["height=8..16..32", "width=8..16..32"]


@pytest.mark.parametrize("name", list(PIPELINES))
@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about their own interfaces
def test_the_image_is_that_of_diffusers(name, tmp_path, captured_once):
    directory = saved(tmp_path / name, PIPELINES[name](tmp_path))
    report = export(str(directory), tmp_path / "made.bundle", axes=AXES)
    assert report.fidelity[0].failure is None
    assert {"encoder_hidden_states", "step.0", "step.3", "image", "mean"} <= {error.name for error in report.fidelity[0].errors}
    assert verify_bundle(str(tmp_path / "made.bundle")).passed
    original = diffusers.DiffusionPipeline.from_pretrained(directory, local_files_only=True)
    original.set_progress_bar_config(disable=True)
    negative = None if name == "flux" else NEGATIVE
    options = {"prompt": PROMPT, "negative_prompt": negative, "steps": 5, "guidance": 4.0}
    with edgegen.load(tmp_path / "made.bundle") as model:
        settings = model.settings
        assert (settings.height, settings.width) == (16, 16)
        for height, width in [(16, 16), (16, 32), (24, 8)]:
            shape = (1, settings.latent.channels, height // settings.latent.factor, width // settings.latent.factor)
            latents = np.random.default_rng(5).standard_normal(shape, np.float32)
            made = model.generate(**options, latents=latents, height=height, width=width).pixels[0]
            wanted = image_of_diffusers(original, latents, 5, 4.0, negative=negative)
            assert made.shape == (height, width, 3)
            # Half a level is what rounding to bytes may add.
            assert np.abs(made / 255 - wanted).max() <= TOLERANCE + 0.5 / 255
            assert wanted.std() > 0.01
        several = model.generate(prompt=[PROMPT, "a house"], seed=1, steps=2).pixels
        changed = model.generate(prompt=PROMPT, init_image=made, strength=0.5, steps=4, height=height, width=width).pixels
        with pytest.raises(InputError, match="height is 64 pixels; this model was exported for 8 to 32"):
            model.generate(prompt=PROMPT, height=64)
        factor, bounds = settings.latent.factor, model.graphs["denoiser"].axes["latent_height"]
        assert bounds.step == (1 if name == "sdxl" else 2)
        if bounds.step > 1:
            with pytest.raises(InputError, match=f"exported for 8 to 32, in multiples of {2 * factor}"):
                model.generate(prompt=PROMPT, height=8 + factor)
    assert not np.array_equal(several[0], several[1])
    assert changed.shape == (1, height, width, 3)


@pytest.mark.filterwarnings("ignore")
def test_without_axes_the_images_have_the_size_that_the_directory_names(directory):
    model = diffusers_model.build(open_source(str(directory)))
    assert str(model.parts["denoiser"].inputs[0]) == "sample float32[batch, 4, 8, 8]"
    assert str(model.parts["vae_decoder"].outputs[0]) == "image float32[batch, 3, 16, 16]"
    assert list(model.axes) == ["batch"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"axes": ["height=8..18..30"]}, r"height takes multiples of 4 alone, not 8\.\.18\.\.30; give --axis height="),
        ({"axes": ["height=17"]}, r"height takes multiples of 2 alone, not 17\.\.17\.\.17"),
        ({"axes": ["depth=8..16"]}, "no tensor has an axis named depth; there are batch, height, width"),
        ({"inputs": ["z float32[batch, 3]"]}, "takes --axis alone"),
        ({"family": "gan"}, "is a diffusers directory, which the family diffusion reads, not gan"),
        ({"family": "decoder_lm"}, "which the family diffusion reads, not decoder_lm"),
        ({"family": "vae"}, "to export its VAE alone, give its folder vae"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_a_directory_does_not_take_is_one_line(options, said, directory, tmp_path):
    with pytest.raises(EdgegenError, match=said) as caught:
        export(str(directory), tmp_path / "x.bundle", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **SCALED),
    "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False, steps_offset=1, **SCALED),
    "plms": lambda: diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SCALED),
    "euler": lambda: diffusers.EulerDiscreteScheduler(steps_offset=1, prediction_type="v_prediction", **SCALED),
    "euler_ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(steps_offset=1, **SCALED),
    "heun": lambda: diffusers.HeunDiscreteScheduler(steps_offset=1, **SCALED),
    "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(steps_offset=1, use_karras_sigmas=True, **SCALED),
    "lcm": lambda: diffusers.LCMScheduler(steps_offset=1),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("sd")
    return saved(place / "sd", stable_diffusion(place))


@pytest.mark.parametrize("name", list(SCHEDULERS))
@pytest.mark.filterwarnings("ignore")  # of diffusers, about its own interfaces
def test_every_scheduler_takes_the_way_that_diffusers_takes(name, directory):
    # On PyTorch's modules: the graphs are the same for every scheduler.
    from edgegen.export.families.diffusion import pipeline_on_torch
    from edgegen.export.sources.diffusers import open_checkpoint

    loaded = open_checkpoint(directory, None).load()
    loaded.scheduler = SCHEDULERS[name]()
    source = open_checkpoint(directory, None)
    object.__setattr__(source, "load", lambda: loaded)
    model = diffusers_model.build(source)
    inputs, outputs = model.reference()
    got = dict(pipeline_on_torch(model.parts, model.settings, model.axes, model.files).replay(inputs))
    assert list(got) == list(outputs)
    assert sum(key.startswith("step.") for key in got) == {"plms": 5, "heun": 7}.get(name, 4)
    for key, wanted in outputs.items():
        np.testing.assert_allclose(got[key], wanted, atol=2e-4 * np.abs(wanted).max(), err_msg=key)  # float32 rounding


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_stochastic_flow_takes_the_way_that_diffusers_takes(name, tmp_path):
    from edgegen.export.families.diffusion import pipeline_on_torch
    from edgegen.export.sources.diffusers import open_checkpoint

    pipeline = PIPELINES[name](tmp_path)
    pipeline.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, stochastic_sampling=True))
    model = diffusers_model.build(open_checkpoint(saved(tmp_path / name, pipeline), None))
    inputs, outputs = model.reference()
    got = dict(pipeline_on_torch(model.parts, model.settings, model.axes, model.files).replay(inputs))
    assert {"noise.0", "noise.2"} <= inputs.keys()
    for key, wanted in outputs.items():
        np.testing.assert_allclose(got[key], wanted, atol=2e-4 * np.abs(wanted).max(), err_msg=key)  # float32 rounding


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_diffusers_itself_does_not_run_is_named(directory):
    from edgegen.export.sources.diffusers import open_checkpoint

    source = open_checkpoint(directory, None)
    loaded = source.load()
    # Two of its steps round to one time, and it then looks for a step that is not there.
    loaded.scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    object.__setattr__(source, "load", lambda: loaded)
    with pytest.raises(ExportError, match=r"diffusers library itself does not run .* DPMSolverMultistepScheduler: index"):
        diffusers_model.build(source).reference()


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_saved_for_images_has_the_same_components(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "sd")
    index = tmp_path / "sd" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"))
    opened = open_source(str(tmp_path / "sd"))
    assert (opened.pipeline, type(opened.load()).__name__) == ("StableDiffusionPipeline", "StableDiffusionPipeline")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pipeline", [lambda folder: stable_diffusion_3(folder, False), lambda folder: flux(folder, False)])
def test_what_a_pipeline_may_leave_out_is_left_out_as_diffusers_does(pipeline, tmp_path):
    from edgegen.export.families.diffusion import pipeline_on_torch

    model = diffusers_model.build(open_source(str(saved(tmp_path / "made", pipeline(tmp_path)))))
    inputs, outputs = model.reference()
    got = dict(pipeline_on_torch(model.parts, model.settings, model.axes, model.files).replay(inputs))
    for key, wanted in outputs.items():
        np.testing.assert_allclose(got[key], wanted, atol=2e-4 * np.abs(wanted).max(), err_msg=key)  # float32 rounding


def test_an_unknown_scheduler_is_refused_with_the_known_ones():
    with pytest.raises(ExportError, match="is a UniPCMultistepScheduler; edgegen has DDPMScheduler, DDIMScheduler"):
        schedule_of(diffusers.UniPCMultistepScheduler())
    with pytest.raises(ExportError, match="solver_order=3 is not supported; allowed is 2"):
        schedule_of(diffusers.DPMSolverMultistepScheduler(solver_order=3))
    with pytest.raises(ExportError, match="variance_type"):
        schedule_of(diffusers.DDPMScheduler(variance_type="learned"))


def test_what_is_no_known_pipeline_is_refused(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "KandinskyPipeline"}')
    assert source_kind(str(tmp_path)) == "diffusers"
    with pytest.raises(SourceError, match="holds a KandinskyPipeline; edgegen exports StableDiffusionPipeline"):
        open_source(str(tmp_path))
    index.write_text('{"_class_name": "FluxPipeline", "transformer": ["their_module", "Their"]}')
    with pytest.raises(SourceError, match="transformer brings code of its own"):
        open_source(str(tmp_path))
    index.write_text('{"_class_name": ["pipeline", "Their"]}')
    with pytest.raises(SourceError, match="is a pipeline with code of its own"):
        open_source(str(tmp_path))
    index.write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(SourceError, match="has no safetensors"):
        open_source(str(tmp_path))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match="is a pickle"):
        open_source(str(tmp_path))
    index.write_text("[")
    with pytest.raises(SourceError, match="is not JSON"):
        open_source(str(tmp_path))


def cut(broken):
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])


def forget_a_tensor(broken):
    from safetensors.torch import load_file, save_file

    weights = next((broken / "unet").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "conv_in.bias"}, weights)


def pickle_one(broken):
    next((broken / "vae").glob("*.safetensors")).rename(broken / "vae" / "diffusion_pytorch_model.bin")


def name_another_class(broken):
    index = broken / "model_index.json"
    index.write_text(index.read_text().replace("UNet2DConditionModel", "TheirUNet"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "unet.*is not a whole safetensors file"),
        (forget_a_tensor, "unet.*conv_in.bias"),
        (pickle_one, "vae.*is a pickle"),
        (name_another_class, "is a TheirUNet, which the installed diffusers does not know"),
        (lambda broken: shutil.rmtree(broken / "vae"), "has no folder vae with the AutoencoderKL"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_component_is_one_line_and_leaves_nothing(damage, said, tmp_path, directory):
    broken = tmp_path / "sd"
    shutil.copytree(directory, broken)
    damage(broken)
    with pytest.raises(SourceError, match=said) as caught:
        export(str(broken), tmp_path / "x.bundle")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]
