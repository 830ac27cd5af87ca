"""Denoising: what a diffusion or flow model learns (Ho 2020, arXiv:2006.11239; Lipman 2023, arXiv:2210.02747)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgegen.schedules import Schedule, trajectory
from edgegen.schedules.noise import alphas_cumprod
from edgegen.schedules.table import Walk
from edgegen.train.objective import Batch, Objective, adam


class Denoising(Objective):
    """The mean squared error of what `schedule.prediction` names, at a random time step for each image.

    Modules: `denoiser`: sample, timestep float32[batch] (, class_ids) -> prediction. Class `classes`, one past the last,
    means no class.

    Args:
        modules: the denoiser.
        schedule: kind of noise, number of time steps, and what is predicted: noise, velocity (Salimans 2022,
            arXiv:2202.00512), sample, or a flow's velocity.
        shape: of an image: channel, height, width.
        dropout: the share of images whose class is withheld, for classifier-free guidance (Ho 2022, arXiv:2207.12598).
        min_snr: bound on the weight of a time step's signal-to-noise ratio (Hang 2023, arXiv:2303.09556), often 5;
            None: unbounded.
        rate: learning rate of AdamW.
        clip: the largest norm of a step's gradient.
        guidance: of sample sheets.
        sheet_steps: of sample sheets.
    """

    signal: Tensor

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        schedule: Schedule,
        *,
        shape: tuple[int, int, int],
        dropout: float = 0.1,
        min_snr: float | None = None,
        rate: float = 1e-3,
        clip: float = 1.0,
        decay: float = 0.999,
        classes: int = 0,
        guidance: float = 2.0,
        sheet_steps: int = 25,
    ) -> None:
        super().__init__(modules, decay=decay, classes=classes)
        self.schedule, self.shape, self.dropout, self.min_snr, self.clip = schedule, shape, dropout, min_snr, clip
        self.guidance, self.sheet_steps = guidance, sheet_steps
        if schedule.kind != "flow":
            self.register_buffer("signal", torch.tensor(alphas_cumprod(schedule), dtype=torch.float32), persistent=False)
        self.optimizers = {"adam": adam(self.trained.values(), rate, (0.9, 0.99), weight_decay=1e-4)}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:  # noqa: ARG002  # the same in each step
        """Loss: denoising."""
        self.train()
        noise = torch.randn_like(batch.images)
        sample, timestep, target, weight = self._noised(batch.images, noise)
        labels = self.labels(batch)
        given = []
        if labels is not None:
            withheld = torch.rand(len(labels), device=labels.device) < self.dropout
            given = [torch.where(withheld, self.classes, labels)]
        with self.autocast():
            prediction = self.trained["denoiser"](sample, timestep, *given).float()
        loss = ((prediction - target).square().mean((1, 2, 3)) * weight).mean()
        self.update("adam", loss, clip=self.clip)
        return {"denoising": loss.detach()}

    def _noised(self, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample, timestep [batch], target and weight [batch] at random time steps."""
        count = len(clean)
        if self.schedule.kind == "flow":
            sigma = torch.rand(count, device=clean.device)
            shift = self.schedule.shift
            sigma = shift * sigma / (1 + (shift - 1) * sigma)
            share = sigma[:, None, None, None]
            time = sigma * self.schedule.train_steps
            return torch.lerp(clean, noise, share), time, noise - clean, torch.ones_like(sigma)
        time = torch.randint(self.schedule.train_steps, (count,), device=clean.device)
        power = self.signal[time]
        keep, spread = (x.sqrt()[:, None, None, None] for x in (power, 1 - power))
        targets = {"noise": noise, "velocity": keep * noise - spread * clean, "sample": clean}
        weight = self._weight(power / (1 - power))
        return keep * clean + spread * noise, time.float(), targets[self.schedule.prediction], weight

    def _weight(self, ratio: Tensor) -> Tensor:
        """The weight of each image by its signal-to-noise ratio [batch]: bounded, in the units of what is predicted."""
        if self.min_snr is None:
            return torch.ones_like(ratio)
        bounded = ratio.clamp(max=self.min_snr)
        if self.schedule.prediction == "sample":
            return bounded
        # Without a signal all is noise: its prediction weighs 1 there, the limit.
        ratio = ratio.clamp(min=1e-8)
        return bounded.clamp(min=1e-8) / (ratio if self.schedule.prediction == "noise" else ratio + 1)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """From noise, guided, deterministic: the steppers are those of the device."""
        denoiser = self.exported()["denoiser"].eval()
        way = trajectory(self.schedule, "flow_euler" if self.schedule.kind == "flow" else "ddim", self.sheet_steps)
        start = torch.randn(count, *self.shape) * way.initial_scale
        walk, labels = Walk(way, start.numpy()), self.sample_classes(count)
        for index, at in enumerate(way.steps):
            sample = torch.from_numpy(walk.sample).to(self.device) * at.input_scale
            time = torch.full((count,), float(at.time), device=self.device)
            prediction = self._guided(denoiser, sample, time, labels)
            walk.advance(index, prediction.float().cpu().numpy())
        return torch.from_numpy(walk.sample)

    def _guided(self, denoiser: nn.Module, sample: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            plain: Tensor = denoiser(sample, time)
            return plain
        none = torch.full_like(labels, self.classes)
        both = denoiser(torch.cat([sample, sample]), torch.cat([time, time]), torch.cat([labels, none]))
        with_class, without = both.chunk(2)
        guided: Tensor = without + self.guidance * (with_class - without)
        return guided
