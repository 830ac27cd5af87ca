"""Differentiable augmentation of what a discriminator sees, for data sets of few images (Zhao et al. 2020, arXiv:2006.10738).

Real and made images are changed alike, and the gradient goes through the change: the discriminator cannot learn the few images
by heart, and the generator does not learn the changes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT, CUT = 1 / 8, 1 / 2  # of the side: the largest move, and the side of the hole


def augment(images: Tensor) -> Tensor:
    """Colour, place and a hole, at random for each image: float [batch, channel, height, width] -> the same.

    Randomness comes from torch's generator.
    """
    return cut_out(translate(recolour(images)))


def recolour(images: Tensor) -> Tensor:
    """Brightness by -0.5 to 0.5, saturation by 0 to 2 times, contrast by 0.5 to 1.5 times."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images + (brightness - 0.5)
    images = torch.lerp(images.mean(1, keepdim=True), images, 2 * saturation)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + 0.5)


def translate(images: Tensor) -> Tensor:
    """Move each image by up to an eighth of its sides; what comes in from beyond the border is zero."""
    count, _, height, width = images.shape
    down, right = (_whole(-int(side * SHIFT), int(side * SHIFT), count, images.device) for side in (height, width))
    rows = (torch.arange(height, device=images.device) - down[:, None] + 1).clamp(0, height + 1)  # 0: above, height + 1: below
    columns = (torch.arange(width, device=images.device) - right[:, None] + 1).clamp(0, width + 1)
    each = torch.arange(count, device=images.device)[:, None, None]
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor) -> Tensor:
    """Make a rectangle of half the sides zero, anywhere: also partly outside."""
    count, _, height, width = images.shape
    kept = []
    for side in (height, width):
        hole = int(side * CUT)
        start = _whole(-(hole // 2), side - hole + hole // 2, count, images.device)[:, None]
        at = torch.arange(side, device=images.device)
        kept.append((at < start) | (at >= start + hole))  # [batch, side]
    return images * (kept[0][:, None, :, None] | kept[1][:, None, None, :])


def _whole(least: int, most: int, count: int, device: torch.device) -> Tensor:
    return torch.randint(least, most + 1, (count,), device=device)
