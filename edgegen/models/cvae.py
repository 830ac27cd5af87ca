"""A conditional variational autoencoder (Kingma 2014, arXiv:1312.6114; Sohn 2015) of convolutions."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from edgegen.models.dcgan import start_of


class Encoder(nn.Module):
    """image float32[batch, channel, size, size] (, class_ids int64[batch]) -> mean, log_variance float32[batch, latent]."""

    def __init__(self, *, latent: int = 16, size: int = 28, channels: int = 1, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        side, halvings = start_of(size)
        widths = [channels, *(width * 2**i for i in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        features = widths[-1] * side * side
        self.embedding = nn.Embedding(classes, 32) if classes else None
        self.head = nn.Sequential(nn.Linear(features + (32 if classes else 0), 256), nn.SiLU(), nn.Linear(256, 2 * latent))

    def forward(self, image: Tensor, class_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The normal distribution of the latent. With `classes`, `class_ids` must be given."""
        features = self.body(image)
        if self.embedding is not None:
            features = torch.cat([features, self.embedding(class_ids)], dim=1)
        mean, log_variance = self.head(features).chunk(2, dim=1)
        # Beyond this the exponential only overflows: no such precision is meant.
        return mean, log_variance.clamp(-20.0, 10.0)


class Decoder(nn.Module):
    """latent float32[batch, latent] (, class_ids int64[batch]) -> image float32[batch, channel, size, size], from 0 to 1."""

    def __init__(self, *, latent: int = 16, size: int = 28, channels: int = 1, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        side, doublings = start_of(size)
        widths = [*(width * 2**i for i in reversed(range(doublings))), width]
        self.latent, self.classes = latent, classes
        self.embedding = nn.Embedding(classes, 32) if classes else None
        self.first = nn.Sequential(
            nn.Linear(latent + (32 if classes else 0), 256),
            nn.SiLU(),
            nn.Linear(256, widths[0] * side * side),
            nn.SiLU(),
            nn.Unflatten(1, (widths[0], side, side)),
        )
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.SiLU()]
        self.rest = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, latent: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """The mean image of a latent. With `classes`, `class_ids` must be given."""
        if self.embedding is not None:
            latent = torch.cat([latent, self.embedding(class_ids)], dim=1)
        image: Tensor = self.rest(self.first(latent))
        return image
