"""Adversarial objectives: a generator against a discriminator, plain (Goodfellow 2014) and as in StyleGAN2 (Karras 2020)."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgegen.errors import TrainingError
from edgegen.models.stylegan2 import Mapping as StyleMapping
from edgegen.models.stylegan2 import Synthesis
from edgegen.train.augment import augment
from edgegen.train.objective import Batch, Objective, adam, from_latents

Penalty = Literal["r1", "gradient", "none"]


class Adversarial(Objective):
    """The min-max game in its non-saturating form (Goodfellow 2014, arXiv:1406.2661), with a penalty on gradients.

    One step of the discriminator, then one of the generator. Modules: `generator`; of its latents see `latents`.

    Args:
        modules: `generator`: z (, class_ids) -> image.
        discriminator: image (, class_ids) -> logit [batch].
        penalty: "r1", the squared gradient at real images (Mescheder 2018, arXiv:1801.04406); "gradient", the distance of the
            gradient's norm from 1 between real and made images (Gulrajani 2017, arXiv:1704.00028); or "none".
        gamma: weight of the penalty.
        every: the penalty is taken each so many steps, and weighs so much more (Karras 2020, arXiv:1912.04958, section 3.1).
        rates: learning rates of the generator and of the discriminator.
        betas: of Adam.
        augmented: change all that the discriminator sees, at random (see `edgegen.train.augment`): for few images.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        discriminator: nn.Module,
        *,
        penalty: Penalty = "r1",
        gamma: float = 1.0,
        every: int = 1,
        rates: tuple[float, float] = (2e-4, 2e-4),
        betas: tuple[float, float] = (0.5, 0.999),
        decay: float = 0.995,
        classes: int = 0,
        augmented: bool = False,
    ) -> None:
        super().__init__(modules, decay=decay, classes=classes)
        self.discriminator, self.augmented = discriminator, augmented
        self.penalty, self.gamma, self.every = penalty, gamma, every
        self.optimizers = {
            "generator": adam(self.trained.values(), rates[0], betas),
            "discriminator": adam([discriminator], rates[1], betas),
        }

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Losses: discriminator, generator, and the penalty in the steps that take it."""
        labels = self.labels(batch)
        self.train()
        losses = self._discriminator_step(batch.images, labels, step)
        self.discriminator.requires_grad_(False)
        with self.autocast():
            made = self.make(len(batch.images), labels)
            loss = F.softplus(-self.judge(made, labels)).mean()
        extra = self.generator_penalties(len(batch.images), labels, step)
        self.update("generator", loss + sum(extra.values()))
        self.discriminator.requires_grad_(True)
        return losses | {"generator": loss.detach()} | {name: value.detach() for name, value in extra.items()}

    def make(self, count: int, labels: Tensor | None) -> Tensor:
        """Images of random latents, with the modules that are trained."""
        return from_latents(self.trained["generator"], count, labels, self.device)

    def judge(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The discriminator's logits, float32 [batch]."""
        if self.augmented:
            images = augment(images)
        logits: Tensor = self.discriminator(images) if labels is None else self.discriminator(images, labels)
        return logits.float()

    def generator_penalties(self, count: int, labels: Tensor | None, step: int) -> dict[str, Tensor]:  # noqa: ARG002  # StyleGAN2's
        """What else the generator minimizes in this step."""
        return {}

    def _discriminator_step(self, real: Tensor, labels: Tensor | None, step: int) -> dict[str, Tensor]:
        with torch.no_grad(), self.autocast():
            made = self.make(len(real), labels).float()
        with self.autocast():
            loss = F.softplus(-self.judge(real, labels)).mean() + F.softplus(self.judge(made, labels)).mean()
        losses = {"discriminator": loss}
        if self.penalty != "none" and step % self.every == 0:
            losses[self.penalty] = self._penalty(real, made, labels) * self.every
        self.update("discriminator", torch.stack(list(losses.values())).sum())
        return {name: value.detach() for name, value in losses.items()}

    def _penalty(self, real: Tensor, made: Tensor, labels: Tensor | None) -> Tensor:
        """In float32: squares of small gradients."""
        if self.penalty == "r1":
            at = real.detach().requires_grad_()
        else:
            share = torch.rand(len(real), 1, 1, 1, device=real.device)
            at = torch.lerp(real, made, share).requires_grad_()
        with self.autocast(enabled=False):
            (gradient,) = torch.autograd.grad(self.judge(at, labels).sum(), at, create_graph=True)
        if self.penalty == "r1":
            return gradient.square().sum((1, 2, 3)).mean() * (self.gamma / 2)
        return (gradient.square().sum((1, 2, 3)).add(1e-12).sqrt() - 1).square().mean() * self.gamma

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Images of random latents, with the exported generator."""
        return from_latents(self.exported()["generator"].eval(), count, self.sample_classes(count), self.device)


class StyleAdversarial(Adversarial):
    """StyleGAN2's game (Karras 2020, arXiv:1912.04958): style mixing, R1 and path-length regularization, both lazily.

    Modules: `mapping` and `synthesis`. A penalty is added to the loss of the step that takes it, so that the optimizers'
    rates need no correction for further steps.

    Args:
        modules: `mapping`: z (, class_ids) -> w; `synthesis`: w, noise... -> image.
        discriminator: image -> logit.
        mixing: the share of images with two styles (Karras 2019, section 3.1).
        path_weight: of path-length regularization (section 3.2 and appendix B).
        path_every: taken each so many steps, on half of the batch.
        options: of `Adversarial`; gamma, every, rates and betas are by default those of the paper.
    """

    path_mean: Tensor

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        discriminator: nn.Module,
        *,
        mixing: float = 0.9,
        path_weight: float = 2.0,
        path_every: int = 8,
        **options: Any,
    ) -> None:
        defaults: dict[str, Any] = {"gamma": 10.0, "every": 16, "rates": (2e-3, 2e-3), "betas": (0.0, 0.99), "decay": 0.998}
        super().__init__(modules, discriminator, **(defaults | options))
        if not isinstance(modules.get("synthesis"), Synthesis) or not isinstance(modules.get("mapping"), StyleMapping):
            raise TrainingError(f"StyleGAN2 trains mapping and synthesis of edgegen.models.stylegan2; here are {list(modules)}")
        self.mixing, self.path_weight, self.path_every = mixing, path_weight, path_every
        self.register_buffer("path_mean", torch.zeros(()))

    def make(self, count: int, labels: Tensor | None) -> Tensor:
        """Images of random latents, some with two styles, with random noise."""
        w = self._styles(self.trained, count, labels)
        first, second = w, self._styles(self.trained, count, labels)
        layers = w.shape[1]
        # Where the second style begins: anywhere after the first layer, or nowhere.
        crossing = torch.randint(1, layers, (count, 1), device=w.device)
        crossing[torch.rand(count, 1, device=w.device) >= self.mixing] = layers
        takes_first = torch.arange(layers, device=w.device)[None] < crossing
        image: Tensor = self._synthesize(self.trained, torch.where(takes_first[:, :, None], first, second))
        return image

    def generator_penalties(self, count: int, labels: Tensor | None, step: int) -> dict[str, Tensor]:
        """Path length: how far an image moves for a step in w shall be the same everywhere."""
        if not self.path_weight or step % self.path_every:
            return {}
        half = max(1, count // 2)
        with self.autocast(enabled=False):
            w = self._styles(self.trained, half, None if labels is None else labels[:half])
            image = self._synthesize(self.trained, w)
            direction = torch.randn_like(image) / math.sqrt(image.shape[2] * image.shape[3])
            (gradient,) = torch.autograd.grad((image * direction).sum(), w, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()  # [image]
        mean = lengths.detach().mean()
        if self.accelerator is not None:
            mean = self.accelerator.reduce(mean, "mean")
        self.path_mean.lerp_(mean, 0.01)
        return {"path": (lengths - self.path_mean).square().mean() * (self.path_weight * self.path_every)}

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Images of random latents, with the exported graphs."""
        modules = self.exported()
        return self._synthesize(modules, self._styles(modules, count, self.sample_classes(count)))

    def _styles(self, modules: Any, count: int, labels: Tensor | None) -> Tensor:
        """W [count, layer, style] of random latents, the same in each layer."""
        z = torch.randn(count, modules["mapping"].latent, device=self.device)
        w: Tensor = modules["mapping"](z) if labels is None else modules["mapping"](z, labels)
        return w[:, None].expand(-1, modules["synthesis"].layers, -1)

    def _synthesize(self, modules: Any, w: Tensor) -> Tensor:
        image: Tensor = modules["synthesis"](w, *modules["synthesis"].noise(len(w), self.device))
        return image
