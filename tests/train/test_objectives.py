import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgegen.errors import TrainingError
from edgegen.models.stylegan2 import Discriminator, Mapping, Synthesis
from edgegen.schedules import Schedule
from edgegen.schedules.noise import alphas_cumprod
from edgegen.train.adversarial import Adversarial, StyleAdversarial
from edgegen.train.denoising import Denoising
from edgegen.train.elbo import EvidenceLowerBound
from edgegen.train.objective import Batch, Objective


class Slope(nn.Module):
    """A judge whose gradient at every image is `slope` for every pixel."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, image: Tensor) -> Tensor:
        return self.slope * image.sum((1, 2, 3))


class Constant(nn.Module):
    """A generator of images that are all `value`."""

    latent = 2

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, z: Tensor) -> Tensor:
        return self.value.expand(len(z), 1, 2, 2)


def game(penalty: str, **options: object) -> Adversarial:
    return Adversarial({"generator": Constant(0.5)}, Slope(0.3), penalty=penalty, decay=0.0, **options)  # type: ignore[arg-type]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_non_saturating_losses_are_those_of_the_paper() -> None:
    objective = game("none", rates=(0.0, 0.0))
    losses = objective.step(Batch(torch.ones(3, 1, 2, 2)), 0)
    real, made = 0.3 * 4, 0.3 * 4 * 0.5  # logits: minus log sigmoid(x) is softplus(-x)
    assert losses["discriminator"].item() == pytest.approx(softplus(-real) + softplus(made), rel=1e-5)
    assert losses["generator"].item() == pytest.approx(softplus(-made), rel=1e-5)


def test_r1_is_half_the_squared_gradient_and_lazily_weighs_more() -> None:
    objective = game("r1", gamma=10.0, every=4)
    batch = Batch(torch.ones(3, 1, 2, 2))
    assert objective.step(batch, 0)["r1"].item() == pytest.approx(4 * 10 / 2 * 4 * 0.3**2, rel=1e-5)
    assert "r1" not in objective.step(batch, 1)
    assert "r1" in objective.step(batch, 4)


def test_the_gradient_penalty_is_the_squared_distance_of_the_norm_from_one() -> None:
    losses = game("gradient", gamma=10.0).step(Batch(torch.ones(3, 1, 2, 2)), 0)
    assert losses["gradient"].item() == pytest.approx(10 * (math.sqrt(4 * 0.3**2) - 1) ** 2, rel=1e-5)


def test_the_discriminators_step_leaves_the_generator_and_the_other_way_round() -> None:
    for rates, moved, still in (((0.1, 0.0), "generator", "discriminator"), ((0.0, 0.1), "discriminator", "generator")):
        objective = game("r1", rates=rates)
        before = {name: parameter.clone() for name, parameter in objective.named_parameters()}
        objective.step(Batch(torch.ones(3, 1, 2, 2)), 0)
        changed = [name for name, parameter in objective.named_parameters() if not torch.equal(parameter, before[name])]
        assert any(moved in name for name in changed)
        assert not any(still in name for name in changed)


def test_path_lengths_are_those_of_a_linear_synthesis() -> None:
    torch.manual_seed(0)
    modules = {"mapping": Mapping(latent=4, layers=1), "synthesis": Synthesis(size=8, style=4, widths=(4, 4))}
    objective = StyleAdversarial(modules, Discriminator(size=8, widths=(4, 4)), path_weight=2.0, path_every=4)
    slopes = torch.tensor([0.5, 2.0, 1.0])  # of a stand-in: each layer adds slope * w[0] to every pixel

    def synthesize(_modules: object, w: Tensor) -> Tensor:
        return (w[:, :3, 0] * slopes).sum(1)[:, None, None, None].expand(-1, 3, 8, 8)

    objective._synthesize = synthesize  # type: ignore[method-assign]
    torch.manual_seed(1)
    penalty = objective.generator_penalties(4, None, 0)["path"]
    torch.manual_seed(1)
    torch.randn(2, 4)  # the latents
    sums = (torch.randn(2, 3, 8, 8) / 8).sum((1, 2, 3)).abs()
    lengths = ((sums[:, None] * slopes).square().sum(1) / objective.trained["synthesis"].layers).sqrt()
    mean = 0.01 * lengths.mean()
    assert objective.path_mean.item() == pytest.approx(mean.item(), rel=1e-5)
    assert penalty.item() == pytest.approx(((lengths - mean).square().mean() * 8).item(), rel=1e-5)
    assert objective.generator_penalties(4, None, 1) == {}


def test_style_mixing_uses_two_styles_in_a_row_of_layers() -> None:
    modules = {"mapping": Mapping(latent=4, layers=1), "synthesis": Synthesis(size=8, style=4, widths=(4, 4))}
    objective = StyleAdversarial(modules, Discriminator(size=8, widths=(4, 4)), mixing=1.0)
    seen: list[Tensor] = []
    objective._synthesize = lambda _, w: seen.append(w) or w  # type: ignore[assignment, func-returns-value, method-assign]
    objective.make(16, None)
    for w in seen[0]:
        changes = [i for i in range(1, len(w)) if not torch.equal(w[i], w[i - 1])]
        assert len(changes) == 1
    objective.mixing = 0.0
    objective.make(4, None)
    assert torch.equal(seen[1], seen[1][:, :1].expand_as(seen[1]))


class Posterior(nn.Module):
    def __init__(self, mean: float, log_variance: float) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(log_variance))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean.expand(len(image), 2), self.log_variance.expand(len(image), 2)


def test_the_bound_is_the_closed_form_of_two_normals_and_the_likelihood() -> None:
    batch = Batch(torch.full((3, 1, 2, 2), 0.25))
    expected = 0.5 * (0.7**2 + math.exp(-1.2) - 1 + 1.2) * 2  # of N(0.7, e^-1.2) from N(0, 1), in two dimensions
    entropy = -4 * (0.25 * math.log(0.4) + 0.75 * math.log(0.6))
    density = 4 * (0.5 * (0.15 / 0.5) ** 2 + math.log(0.5 * math.sqrt(2 * math.pi)))
    for likelihood, reconstruction in (("bernoulli", entropy), ("gaussian", density)):
        modules = {"encoder": Posterior(0.7, -1.2), "decoder": Constant(0.4)}
        losses = EvidenceLowerBound(modules, likelihood=likelihood, sigma=0.5).step(batch, 0)  # type: ignore[arg-type]
        assert losses["divergence"].item() == pytest.approx(expected, rel=1e-5)
        assert losses["reconstruction"].item() == pytest.approx(reconstruction, rel=1e-5)


class Oracle(nn.Module):
    """Keeps what it is given and predicts zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, sample: Tensor, timestep: Tensor, class_ids: Tensor | None = None) -> Tensor:
        self.given = SimpleNamespace(sample=sample, timestep=timestep, class_ids=class_ids)
        return torch.zeros_like(sample) + self.bias


def denoising(schedule: Schedule, **options: object) -> Denoising:
    return Denoising({"denoiser": Oracle()}, schedule, shape=(1, 4, 4), decay=0.0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction", ["noise", "velocity", "sample"])
def test_samples_and_targets_follow_the_schedule_of_the_device(prediction: str) -> None:
    schedule = Schedule(kind="cosine", prediction=prediction)  # type: ignore[arg-type]
    objective = denoising(schedule)
    clean, noise = torch.randn(64, 1, 4, 4), torch.randn(64, 1, 4, 4)
    sample, time, target, weight = objective._noised(clean, noise)
    power = torch.tensor(alphas_cumprod(schedule)[time.long().numpy()], dtype=torch.float32)[:, None, None, None]
    keep, spread = power.sqrt(), (1 - power).sqrt()
    torch.testing.assert_close(sample, keep * clean + spread * noise)
    # Whatever is predicted, with the sample it gives the clean image: Salimans 2022, table 1.
    estimates = {
        "noise": (sample - spread * target) / keep.clamp(min=1e-4),
        "velocity": keep * sample - spread * target,
        "sample": target,
    }
    known = power.flatten() > 1e-3  # beyond, a division by the signal magnifies the rounding
    torch.testing.assert_close(estimates[prediction][known], clean[known], atol=1e-3, rtol=1e-3)
    assert torch.equal(weight, torch.ones(64))


def test_flow_goes_in_a_straight_line_from_data_to_noise() -> None:
    clean, noise = torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4)
    sample, time, target, _ = denoising(Schedule(kind="flow", prediction="flow"))._noised(clean, noise)
    share = (time / 1000)[:, None, None, None]
    assert float(share.min()) >= 0
    assert float(share.max()) <= 1
    torch.testing.assert_close(sample - share * target, clean)


def test_min_snr_bounds_the_weight_of_easy_steps_in_units_of_the_clean_image() -> None:
    ratio = torch.tensor([0.0, 0.5, 5.0, 50.0])
    weights = {p: denoising(Schedule(prediction=p), min_snr=5.0)._weight(ratio) for p in ("noise", "velocity", "sample")}  # type: ignore[arg-type]
    # An error of the noise is 1/snr, of the velocity 1/(snr+1) times as large in the clean image: Hang 2023, section 3.4.
    torch.testing.assert_close(weights["noise"], torch.tensor([1.0, 1.0, 1.0, 0.1]))
    torch.testing.assert_close(weights["velocity"], torch.tensor([0.0, 0.5 / 1.5, 5 / 6, 5 / 51]))
    torch.testing.assert_close(weights["sample"], torch.tensor([0.0, 0.5, 5.0, 5.0]))


def test_classes_are_withheld_in_their_share_and_guidance_asks_for_both() -> None:
    torch.manual_seed(0)
    objective = denoising(Schedule(), classes=3, dropout=0.25, sheet_steps=2)
    objective.step(Batch(torch.zeros(4000, 1, 4, 4), torch.ones(4000, dtype=torch.long)), 0)
    given = objective.trained["denoiser"].given.class_ids
    assert set(given.tolist()) == {1, 3}
    # 4 sigma of the share of 4,000 draws.
    assert (given == 3).float().mean().item() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    assert objective.sample(4).shape == (4, 1, 4, 4)
    assert objective.trained["denoiser"].given.class_ids.tolist() == [0, 1, 2, 0, 3, 3, 3, 3]


def test_sampling_with_the_right_noise_gives_back_the_image() -> None:
    objective = denoising(Schedule(kind="cosine"), sheet_steps=20)
    clean = 0.5

    def exact(_self: object, sample: Tensor, time: Tensor, _labels: object) -> Tensor:
        power = objective.signal[time.long()][:, None, None, None]
        return (sample - power.sqrt() * clean) / (1 - power).sqrt()

    objective._guided = exact  # type: ignore[assignment, method-assign]
    # A perfect denoiser of a single image: the last step ends on it.
    np.testing.assert_allclose(objective.sample(2).numpy(), clean, atol=1e-3)


def test_averages_follow_the_weights_and_counters_are_copied() -> None:
    objective = Objective({"generator": nn.BatchNorm2d(1)}, decay=0.5)
    trained, averaged = objective.trained["generator"], objective.exported()["generator"]
    with torch.no_grad():
        trained.weight.fill_(3.0)
        trained.running_mean.fill_(4.0)
        trained.num_batches_tracked.fill_(7)
    objective.average(0)  # the decay begins at (1 + 0) / (10 + 0)
    assert averaged.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    assert averaged.running_mean.item() == pytest.approx(0.9 * 4)
    assert averaged.num_batches_tracked.item() == 7
    objective.average(1000)
    assert averaged.weight.item() == pytest.approx(0.5 * 2.8 + 0.5 * 3)


def test_classes_without_labels_are_refused() -> None:
    with pytest.raises(TrainingError, match="3 classes, the data has no labels"):
        denoising(Schedule(), classes=3).step(Batch(torch.zeros(2, 1, 4, 4)), 0)


def test_stylegan2_wants_its_own_two_modules() -> None:
    with pytest.raises(TrainingError, match="mapping and synthesis"):
        StyleAdversarial({"generator": Constant()}, Slope(1.0))
