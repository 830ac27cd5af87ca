"""What the manifest's `settings` hold for a diffusion model."""

from typing import Literal

import msgspec

from edgegen.pipelines.images import PixelRange
from edgegen.schedules import Schedule


class Latent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a latent diffusion model works: sample = (VAE's latent - shift) * scale, each for `factor` x `factor` pixels."""

    channels: int
    factor: int
    scale: float = 1.0
    shift: float = 0.0


class TextEncoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One text encoder: a graph token_ids int64 [batch, length] -> hidden [batch, length, width] and pooled [batch, width].

    Attributes:
        graph: its name.
        tokenizer: the path of its tokenizer.json in the bundle.
        length: of the token ids, padded with `pad_id` or cut before the last special token.
        hidden: how its hidden states join the others': "side" by side for each token, in "rows" after them, or not at all.
        pooled: whether its pooled text is used; those of several encoders are joined side by side.
    """

    graph: str
    tokenizer: str
    length: int
    pad_id: int
    hidden: Literal["side", "rows", "no"] = "side"
    pooled: bool = False


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a prompt becomes what the denoiser takes.

    Attributes:
        encoders: in the order in which they are joined.
        width: of the joined hidden states, to which those "side" by side are filled up with zeros; 0: as they are.
        zero_rows: so many zero rows stand for an encoder that is missing.
        zero_negative: without a negative prompt the guidance goes away from zeros, instead of from an empty prompt.
    """

    encoders: tuple[TextEncoder, ...]
    width: int = 0
    zero_rows: int = 0
    zero_negative: bool = False


class DiffusionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest's `settings` hold for a diffusion model.

    Attributes:
        schedule: what it was trained with.
        stepper, steps, guidance: what it is sampled with, unless one asks for something else.
        pixels: the numbers for black and white.
        height, width: of its images, in pixels, unless one asks for something else; 0: what the graph has.
        latent: of a latent diffusion model; None where the denoiser works on pixels.
        classes: how many there are, where the denoiser takes `class_ids`; `null_class` is what stands for no class.
        text: where the denoiser takes `encoder_hidden_states`.
    """

    schedule: Schedule = Schedule()
    stepper: str = "ddim"
    steps: int = 50
    guidance: float = 1.0
    pixels: PixelRange = PixelRange()
    height: int = 0
    width: int = 0
    latent: Latent | None = None
    classes: int = 0
    null_class: int | None = None
    text: Text | None = None
