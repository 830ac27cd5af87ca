"""Directories of the diffusers library, saved in its own layout: export, bundle, onnxruntime, and the library's own image."""

import json

import diffusers
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import edgegen
from edgegen.errors import ExportError, SourceError
from edgegen.export import assemble, export
from edgegen.export.families.diffusers_graphs import VaeDecoder, VaeEncoder
from edgegen.export.families.diffusers_scheduler import schedule_of
from edgegen.export.sources import open_source, source_kind
from edgegen.proof import verify_bundle

PROMPT, NEGATIVE = "a red house", "blurry"
WORDS = ["a", "red", "house", "small", "blurry", "beside"]
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# Greys of 0 to 1 after some 10 runs of the denoiser, float32 sums in another order; one level of 255 is 4e-3.
TOLERANCE = 2e-3


def clip_tokenizer(folder):
    """vocab.json and merges.txt, as CLIP's are published: the device's tokenizer.json must be made of them."""
    folder.mkdir()
    letters = sorted({letter for word in (*WORDS, PROMPT, "lk,tdwn") for letter in word if letter != " "})
    merged, merges = [], []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = [pieces[0] + pieces[1]]
            merged.append(pieces[0])
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"])
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def t5_tokenizer():
    words = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in WORDS), "\u2581", *"abcdefghijklmnopqrstuvwxyz,"]
    library = Tokenizer(models.Unigram([(word, -float(index)) for index, word in enumerate(words)], unk_id=2))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def clip_encoder(kind, tokenizer, width=8, **more):
    torch.manual_seed(3)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=width, **ids, **more,
    )  # fmt: skip
    return kind(config).eval()


def t5_encoder(tokenizer, width):
    torch.manual_seed(4)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    return transformers.T5EncoderModel(config).eval()


def vae(channels=4, **more):
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        latent_channels=channels, block_out_channels=(4, 8), norm_num_groups=2, sample_size=16, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
    ).eval()  # fmt: skip


def unet(width, **more):
    torch.manual_seed(2)
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=width, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **more,
    ).eval()  # fmt: skip


def stable_diffusion(folder, scheduler=None):
    tokenizer = clip_tokenizer(folder / "words")
    return diffusers.StableDiffusionPipeline(
        vae(), clip_encoder(transformers.CLIPTextModel, tokenizer), tokenizer, unet(8),
        scheduler or diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SCALED), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(folder):
    tokenizer = clip_tokenizer(folder / "words")
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32}
    return diffusers.StableDiffusionXLPipeline(
        vae(), clip_encoder(transformers.CLIPTextModel, tokenizer),
        clip_encoder(transformers.CLIPTextModelWithProjection, tokenizer), tokenizer, tokenizer, unet(16, **added),
        diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **SCALED), add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3(folder, with_t5=True):
    tokenizer, words = clip_tokenizer(folder / "words"), t5_tokenizer()
    torch.manual_seed(2)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=20, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    encoders = [clip_encoder(transformers.CLIPTextModelWithProjection, tokenizer) for _ in range(2)]
    return diffusers.StableDiffusion3Pipeline(
        transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae(shift_factor=0.06, scaling_factor=1.5),
        encoders[0], tokenizer, encoders[1], tokenizer, t5_encoder(words, 20) if with_t5 else None, words if with_t5 else None,
    )  # fmt: skip


def flux(folder, guidance_embeds=True):
    tokenizer, words = clip_tokenizer(folder / "words"), t5_tokenizer()
    torch.manual_seed(2)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=20, pooled_projection_dim=8, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds)
    pipeline = diffusers.FluxPipeline(
        scheduler, vae(shift_factor=0.1, scaling_factor=0.4), clip_encoder(transformers.CLIPTextModel, tokenizer), tokenizer,
        t5_encoder(words, 20), words, transformer,
    )  # fmt: skip
    pipeline.default_sample_size = 8
    return pipeline


PIPELINES = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    from edgegen.export.sources.diffusers import quiet_diffusers

    with quiet_diffusers():
        yield


@pytest.fixture(scope="module")
def captured_once():
    """The pipelines here share their VAE: modules with the same weights and tensors are captured only the first time."""
    capture, known = assemble.capture_part, {}

    def remember(name, part, axes):
        if not isinstance(part.module, VaeDecoder | VaeEncoder):
            return capture(name, part, axes)
        weights = tuple(tensor.numpy().tobytes() for tensor in part.module.state_dict().values())
        key = (type(part.module), weights, part.inputs, part.outputs)
        if key not in known:
            known[key] = capture(name, part, axes)
        return known[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "capture_part", remember)
        yield


def saved(place, pipeline):
    pipeline.save_pretrained(place, safe_serialization=True)
    return place


def image_of_diffusers(directory, latents, steps, guidance, *, negative=None, size):
    """The library's image from the same noise: floats of 0 to 1 [height, width, channel]."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(directory, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.from_numpy(latents)
    if isinstance(pipeline, diffusers.FluxPipeline):
        start = pipeline._pack_latents(start, *latents.shape)
    more = {} if negative is None else {"negative_prompt": negative}
    made = pipeline(
        PROMPT, latents=start, num_inference_steps=steps, guidance_scale=guidance, output_type="np", height=size, width=size,
        generator=torch.Generator().manual_seed(0), **more,
    )  # fmt: skip
    return made.images[0]


@pytest.mark.parametrize("name", list(PIPELINES))
@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about their own interfaces
def test_the_image_is_that_of_diffusers(name, tmp_path, captured_once):
    directory = saved(tmp_path / name, PIPELINES[name](tmp_path))
    report = export(str(directory), tmp_path / "made.bundle")
    assert report.fidelity[0].failure is None
    assert {"encoder_hidden_states", "step.0", "step.3", "image", "mean"} <= {error.name for error in report.fidelity[0].errors}
    assert verify_bundle(str(tmp_path / "made.bundle")).passed
    with edgegen.load(tmp_path / "made.bundle") as model:
        settings = model.settings
        side = settings.height // settings.latent.factor
        latents = np.random.default_rng(5).standard_normal((1, settings.latent.channels, side, side), np.float32)
        negative = None if name == "flux" else NEGATIVE
        options = {"prompt": PROMPT, "negative_prompt": negative, "steps": 5, "guidance": 4.0, "latents": latents}
        made = model.generate(**options).pixels[0]
        several = model.generate(prompt=[PROMPT, "a house"], seed=1, steps=2).pixels
        changed = model.generate(prompt=PROMPT, init_image=made, strength=0.5, steps=4).pixels
    wanted = image_of_diffusers(directory, latents, 5, 4.0, negative=negative, size=settings.height)
    # Half a level is what rounding to bytes may add.
    assert np.abs(made / 255 - wanted).max() <= TOLERANCE + 0.5 / 255
    assert wanted.std() > 0.01
    assert not np.array_equal(several[0], several[1])
    assert changed.shape == (1, settings.height, settings.width, 3)


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
    from edgegen.export.families import diffusers_model
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
@pytest.mark.parametrize("pipeline", [lambda folder: stable_diffusion_3(folder, False), lambda folder: flux(folder, False)])
def test_what_a_pipeline_may_leave_out_is_left_out_as_diffusers_does(pipeline, tmp_path):
    from edgegen.export.families import diffusers_model
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


def test_what_is_no_pipeline_of_the_four_is_refused(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "KandinskyPipeline"}')
    assert source_kind(str(tmp_path)) == "diffusers"
    with pytest.raises(SourceError, match="holds a KandinskyPipeline; edgegen exports StableDiffusionPipeline"):
        open_source(str(tmp_path))
    index.write_text('{"_class_name": "FluxPipeline", "transformer": ["their_module", "Their"]}')
    with pytest.raises(SourceError, match="transformer brings code of its own"):
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


def test_a_damaged_component_is_one_line(tmp_path, directory):
    import shutil

    broken = tmp_path / "sd"
    shutil.copytree(directory, broken)
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SourceError, match="cannot read"):
        open_source(str(broken)).load()
