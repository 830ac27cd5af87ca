"""The denoiser of a diffusion model: diffusers' U-Net, small, behind the three tensors of the diffusion family."""

from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor, nn


class ClassUNet(nn.Module):
    """sample float32[batch, channel, size, size], timestep float32[batch], class_ids int64[batch] -> prediction, like sample.

    Class `classes`, one past the last, stands for no class: what classifier-free guidance needs (Ho 2022, arXiv:2207.12598).
    With `classes` 0, `class_ids` is not taken. A graph of it takes batches of 63 at most:
    diffusers' upsampling does otherwise beyond.

    Args:
        size: of the images, in pixels.
        channels: of the images.
        widths: of each resolution, from the full one down, halving; each a multiple of `groups`.
        attention: the last so many resolutions attend over all places.
        layers: residual blocks of each resolution.
        groups: of the group norms.
        patch: side of the squares of pixels that the network takes as channels of one place: 2 leaves a quarter of the work.
        classes: number of classes.
    """

    def __init__(
        self,
        *,
        size: int = 28,
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 64),
        attention: int = 1,
        layers: int = 1,
        groups: int = 8,
        patch: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        plain = len(widths) - attention
        if size % (patch * 2 ** (len(widths) - 1)):
            raise ValueError(f"{size} pixels in patches of {patch} cannot be halved {len(widths) - 1} times")
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.size, self.channels, self.classes = size, channels, classes
        unet: Any = UNet2DModel  # its constructor is not typed
        self.unet: nn.Module = unet(
            sample_size=size // patch,
            in_channels=channels * patch**2,
            out_channels=channels * patch**2,
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attention,
            up_block_types=("AttnUpBlock2D",) * attention + ("UpBlock2D",) * plain,
            layers_per_block=layers,
            norm_num_groups=groups,
            attention_head_dim=widths[-1] // 2,
            num_class_embeds=classes + 1 if classes else None,
        )

    def forward(self, sample: Tensor, timestep: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """Predict what the objective asked for: noise, velocity, ..."""
        made = self.unet(self.fold(sample), timestep, class_labels=class_ids, return_dict=False)[0]
        prediction: Tensor = self.unfold(made)
        return prediction
