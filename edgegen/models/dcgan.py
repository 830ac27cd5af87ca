"""DCGAN (Radford et al. 2016, arXiv:1511.06434): a generator and a discriminator of strided convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def start_of(size: int) -> tuple[int, int]:
    """The side of the first feature map, and how often it is doubled, for images of `size`: 28 = 7 doubled twice."""
    side, doublings = size, 0
    while side % 2 == 0 and side > 4:
        side, doublings = side // 2, doublings + 1
    if not 3 <= side <= 8 or doublings == 0:
        raise ValueError(f"images of {size} pixels: give 4 to 7 times a power of two, such as 28, 32 or 64")
    return side, doublings


class Generator(nn.Module):
    """z float32[batch, latent] (, class_ids int64[batch]) -> image float32[batch, channel, size, size], from -1 to 1.

    Transposed convolutions of 4x4 and stride 2, batch norm, ReLU; tanh at the end. `width` is that of the last feature map and
    doubles towards the first. With `classes`, an embedding of the class is joined to the latent (Mirza 2014, arXiv:1411.1784).
    """

    def __init__(self, *, latent: int = 64, size: int = 28, channels: int = 1, width: int = 32, classes: int = 0) -> None:
        super().__init__()
        side, doublings = start_of(size)
        widths = [width * 2**i for i in reversed(range(doublings))]
        self.latent, self.classes = latent, classes
        self.embedding = nn.Embedding(classes, latent) if classes else None
        self.first = nn.Sequential(
            nn.ConvTranspose2d(latent * (2 if classes else 1), widths[0] * 2, side, bias=False),
            nn.BatchNorm2d(widths[0] * 2),
            nn.ReLU(),
        )
        layers: list[nn.Module] = []
        for before, after in zip([widths[0] * 2, *widths], widths, strict=False):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Tanh())
        initialize(self)

    def forward(self, z: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """Make images. With `classes`, `class_ids` must be given."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(class_ids)], dim=1)
        image: Tensor = self.rest(self.first(z[:, :, None, None]))
        return image


class Discriminator(nn.Module):
    """image float32[batch, channel, size, size] (, class_ids int64[batch]) -> logit float32[batch]: above 0 is real.

    Strided convolutions and leaky ReLU, without batch norm: gradient penalties are taken for each image alone (Gulrajani 2017).
    With `classes`, the features are projected on the class (Miyato 2018, arXiv:1802.05637).
    """

    def __init__(self, *, size: int = 28, channels: int = 1, width: int = 32, classes: int = 0) -> None:
        super().__init__()
        side, halvings = start_of(size)
        widths = [width * 2**i for i in range(halvings)]
        layers: list[nn.Module] = []
        for before, after in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], widths[-1] * 2, side), nn.LeakyReLU(0.2), nn.Flatten())
        self.last = nn.Linear(widths[-1] * 2, 1)
        self.embedding = nn.Embedding(classes, widths[-1] * 2) if classes else None
        for part in self.body:
            if isinstance(part, nn.Conv2d):  # without norms the paper's small weights would let no signal through (He 2015)
                nn.init.kaiming_normal_(part.weight, a=0.2)

    def forward(self, image: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """Judge images. With `classes`, `class_ids` must be given."""
        features: Tensor = self.body(image)
        logit: Tensor = self.last(features)[:, 0]
        return logit if self.embedding is None else logit + F.cosine_similarity(features, self.embedding(class_ids))


def initialize(module: nn.Module) -> None:
    """Weights of the generator as in the paper: normal with deviation 0.02, about 1 for norms."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, 0.02)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)
