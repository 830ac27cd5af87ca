"""The evidence lower bound of variational autoencoders (Kingma 2014, arXiv:1312.6114), with beta (Higgins 2017)."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgegen.train.objective import Batch, Objective, adam, from_latents


class EvidenceLowerBound(Objective):
    """Minimizes reconstruction + beta * KL, in nats for each image.

    Modules: `encoder`: image (, class_ids) -> mean, log_variance; `decoder`: latent (, class_ids) -> image, of whose latents
    see `edgegen.train.objective.latents`.

    Args:
        modules: the two.
        beta: weight of the divergence from the prior.
        likelihood: "bernoulli": the decoder gives probabilities from 0 to 1; "gaussian": it gives the mean of a normal
            distribution of deviation `sigma`.
        sigma: deviation of a pixel.
        rate: learning rate of Adam.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        beta: float = 1.0,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        sigma: float = 1.0,
        rate: float = 1e-3,
        decay: float = 0.99,
        classes: int = 0,
    ) -> None:
        super().__init__(modules, decay=decay, classes=classes)
        self.beta, self.likelihood, self.sigma = beta, likelihood, sigma
        self.optimizers = {"adam": adam(self.trained.values(), rate, (0.9, 0.999))}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:  # noqa: ARG002  # the same in each step
        """Losses: reconstruction and divergence, in nats for each image, the latter without beta."""
        labels = self.labels(batch)
        given = () if labels is None else (labels,)
        self.train()
        with self.autocast():
            mean, log_variance = (x.float() for x in self.trained["encoder"](batch.images, *given))
            latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
            image = self.trained["decoder"](latent, *given).float()
        with self.autocast(enabled=False):
            reconstruction = self._reconstruction(image, batch.images)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        self.update("adam", reconstruction + self.beta * divergence)
        return {"reconstruction": reconstruction.detach(), "divergence": divergence.detach()}

    def _reconstruction(self, image: Tensor, wanted: Tensor) -> Tensor:
        """Minus the log likelihood, summed over pixels."""
        if self.likelihood == "bernoulli":
            return F.binary_cross_entropy(image, wanted, reduction="none").sum((1, 2, 3)).mean()
        squares = ((image - wanted) / self.sigma).square().sum((1, 2, 3)).mean()
        return 0.5 * squares + wanted[0].numel() * math.log(self.sigma * math.sqrt(2 * math.pi))

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Decode latents drawn from the prior."""
        return from_latents(self.exported()["decoder"].eval(), count, self.sample_classes(count), self.device)
