"""How far an output pixel of a network looks: what tiles must overlap by."""

import math
from fractions import Fraction

import torch


def receptive_field(module: torch.nn.Module, image: torch.Tensor, scale: Fraction, multiple: int = 1) -> int | None:
    """How many input pixels away an output pixel still depends on.

    A few pixels in the middle are made not-a-number, which every sum and activation passes on: what comes out as such
    depends on them, whatever the weights are.

    Args:
        module: takes [batch, channel, height, width]; gives `scale` times as many rows and columns.
        image: what it is tried with; large enough, or the answer is None.
        scale: output pixels for each input pixel.
        multiple: the pixels come in blocks of so many, for networks that treat neighbours differently.

    Returns:
        The radius in input pixels; None where it reaches the image's edge (or has no end, as with attention or instance norm).
    """
    spoiled = image.clone()
    top, left = (side // 2 // multiple * multiple for side in image.shape[2:])
    spoiled[:, :, top : top + multiple, left : left + multiple] = torch.nan
    with torch.no_grad():
        reached = torch.isnan(module(spoiled)).any(dim=0).any(dim=0)  # [height * scale, width * scale]
    radii = [_radius(reached.any(dim=1), top, multiple, scale), _radius(reached.any(dim=0), left, multiple, scale)]
    return None if None in radii else max(radius for radius in radii if radius is not None)


def _radius(reached: torch.Tensor, place: int, multiple: int, scale: Fraction) -> int | None:
    """Along one axis: `reached` bool [side * scale]."""
    found: list[int] = reached.nonzero().flatten().tolist()
    if not found or found[0] == 0 or found[-1] == len(reached) - 1:
        return None
    first, last = math.floor(found[0] / scale), math.ceil((found[-1] + 1) / scale)
    return max(place - first, last - (place + multiple), 0)
