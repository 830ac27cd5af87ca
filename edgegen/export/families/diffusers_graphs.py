"""The components of a diffusers pipeline as modules with positional tensors, each one graph of a bundle."""

from typing import Any

import torch
from torch import Tensor


class Unet(torch.nn.Module):
    """sample, timestep, encoder_hidden_states (, pooled, time_ids) -> prediction: Stable Diffusion 1, 2, XL."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, hidden: Tensor, *added: Tensor) -> Any:
        """The prediction."""
        more = {"added_cond_kwargs": {"text_embeds": added[0], "time_ids": added[1]}} if added else {}
        return self.unet(sample, timestep, encoder_hidden_states=hidden, return_dict=False, **more)[0]


class UnconditionalUnet(torch.nn.Module):
    """sample, timestep (, class_ids) -> prediction: what works on pixels, without text."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, *class_ids: Tensor) -> Any:
        """The prediction."""
        return self.unet(sample, timestep, *class_ids, return_dict=False)[0]


class Sd3Transformer(torch.nn.Module):
    """sample, timestep, encoder_hidden_states, pooled -> prediction: Stable Diffusion 3."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, sample: Tensor, timestep: Tensor, hidden: Tensor, pooled: Tensor) -> Any:
        """The prediction."""
        return self.transformer(
            hidden_states=sample, timestep=timestep, encoder_hidden_states=hidden, pooled_projections=pooled, return_dict=False
        )[0]


class FluxTransformer(torch.nn.Module):
    """sample, timestep, encoder_hidden_states, pooled (, guidance) -> prediction: Flux, its 2 x 2 packing inside the graph."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, sample: Tensor, timestep: Tensor, hidden: Tensor, pooled: Tensor, *guidance: Tensor) -> Any:
        """The prediction, unpacked again."""
        batch, channels, height, width = sample.shape
        rows, columns = height // 2, width // 2
        tokens = sample.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        places = torch.stack(
            [
                torch.zeros(rows, columns),
                torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, columns),
                torch.arange(columns, dtype=torch.float32)[None, :].expand(rows, columns),
            ],
            dim=-1,
        )
        made = self.transformer(
            hidden_states=tokens.reshape(batch, rows * columns, channels * 4),
            timestep=timestep / 1000,
            guidance=guidance[0] if guidance else None,
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=torch.zeros(hidden.shape[1], 3),
            img_ids=places.reshape(rows * columns, 3),
            return_dict=False,
        )[0]
        return (
            made.reshape(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)
        )


class ClipText(torch.nn.Module):
    """token_ids -> hidden (, pooled). `layer` -1: after the last norm; -2: before the last layer."""

    def __init__(self, encoder: Any, layer: int, *, hidden: bool = True, pooled: bool = False) -> None:
        super().__init__()
        self.encoder, self.layer, self.hidden, self.pooled = encoder, layer, hidden, pooled

    def forward(self, token_ids: Tensor) -> Any:
        """What was asked for, hidden first."""
        made = self.encoder(token_ids, output_hidden_states=self.layer != -1)
        outputs = []
        if self.hidden:
            outputs.append(made.last_hidden_state if self.layer == -1 else made.hidden_states[self.layer])
        if self.pooled:
            outputs.append(made.text_embeds if "text_embeds" in made else made.pooler_output)
        return tuple(outputs)


class T5Text(torch.nn.Module):
    """token_ids -> hidden. Padding is not masked: so these models were trained."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, token_ids: Tensor) -> Any:
        """The last hidden states."""
        return self.encoder(token_ids)[0]


class VaeDecoder(torch.nn.Module):
    """latent -> image."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Any:
        """The image."""
        return self.vae.decode(latent, return_dict=False)[0]


class VaeEncoder(torch.nn.Module):
    """image -> mean, log_variance."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Any:
        """Mean and log-variance of the latents."""
        found = self.vae.encode(image).latent_dist
        return found.mean, found.logvar
