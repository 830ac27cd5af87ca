"""Tiny random models in the layout of the diffusers library: pipelines, an autoencoder, an unconditional U-Net."""

import json

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

PROMPT, NEGATIVE = "a red house", "blurry"
WORDS = ["a", "red", "house", "small", "blurry", "beside"]
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


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


def unet(width, levels=2, **more):
    torch.manual_seed(2)
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8)[:levels], norm_num_groups=2, layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=width, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D")[:levels],
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")[-levels:], **more,
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
        clip_encoder(transformers.CLIPTextModelWithProjection, tokenizer), tokenizer, tokenizer, unet(16, 1, **added),
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


def ddpm(classes=None, scheduler=None):
    torch.manual_seed(5)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=classes,
    ).eval()  # fmt: skip
    return diffusers.DDPMPipeline(unet, scheduler or diffusers.DDPMScheduler(clip_sample=True))


def saved(place, pipeline):
    pipeline.save_pretrained(place, safe_serialization=True)
    return place
