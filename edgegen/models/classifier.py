"""A small convolutional classifier without its last layer: what it sees in an image, in numbers."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Features(nn.Module):
    """image float32[batch, channel, height, width] -> features float32[batch, feature], none below 0.

    Convolutions of 3x3 with batch norm and ReLU, sides halved between them; the last is averaged over all places, as those of
    Inception's last pooling are (Szegedy 2016, arXiv:1512.00567).

    Args:
        channels: of the images.
        widths: of each resolution, from the full one down, halving; the last is the number of features.
    """

    def __init__(self, *, channels: int = 1, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise([channels, *widths])):
            layers.append(nn.Conv2d(before, after, 3, padding=1, bias=False))
            if index < len(widths) - 1:
                layers.append(nn.MaxPool2d(2))  # before the norm, which then has a quarter to do
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        self.body, self.features = nn.Sequential(*layers), widths[-1]

    def forward(self, image: Tensor) -> Tensor:
        """Describe images."""
        features: Tensor = self.body(image).mean((2, 3))
        return features
