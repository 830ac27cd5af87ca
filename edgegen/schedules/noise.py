"""How noise is laid out over time: the schedule that a diffusion model was trained with, and where it is sampled."""

import math
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError

Prediction = Literal["noise", "velocity", "sample", "flow"]
Doubles = NDArray[np.float64]

_LEAST_SIGNAL = 2.0**-24  # what stands for zero where one divides by the signal: the smallest float16
_KARRAS_RHO = 7.0


class DynamicShift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A flow's shift that grows with the image: linear in the number of the transformer's tokens (Esser et al. 2024).

    `patch` is the side, in latent pixels, of what the transformer takes as one token.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    patch: int = 2
    kind: Literal["exponential", "linear"] = "exponential"

    def shift(self, tokens: int) -> float:
        """The shift for an image of so many tokens."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = self.base_shift + slope * (tokens - self.base_tokens)
        return math.exp(mu) if self.kind == "exponential" else mu


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model was trained with, and what its sampling keeps to.

    Attributes:
        kind: the variance schedule: linear (Ho et al. 2020), cosine (Nichol & Dhariwal 2021), scaled_linear (linear in the
            square root, Rombach et al. 2022), or flow: straight paths from data to noise (Lipman et al. 2023).
        prediction: what the denoiser gives: the noise, the velocity (Salimans & Ho 2022), the sample itself, or a flow's own
            velocity.
        train_steps: how many time steps the model knows.
        beta_start, beta_end: of linear and scaled_linear.
        betas: the variances themselves, where the model brings its own; they replace `kind`.
        spacing, steps_offset: how `steps` of the `train_steps` are chosen (Lin et al. 2024, table 2).
        final_alpha_one: whether the last step ends at a signal of exactly one (DDIM, PLMS, LCM).
        zero_terminal_snr: variances rescaled so that the last step is noise alone (Lin et al. 2024).
        clip: the estimated sample is kept within -clip and clip; None: as it is.
        threshold: dynamic thresholding (Saharia et al. 2022): the quantile above which the estimated sample is cut; None: off.
        threshold_max: the largest value that the threshold may take.
        karras: sigmas spaced as Karras et al. 2022, equation 5.
        sigma_min, sigma_max: their ends; None: the schedule's own.
        final_sigma: whether the sigma steppers end at zero, or at the least of the schedule.
        variance: of DDPM's noise: the smaller or the larger of the two bounds of Ho et al. 2020, section 3.2.
        shift: of a flow's sigmas; more noise for larger images (Esser et al. 2024, equation 23).
        dynamic_shift: a shift that follows the size of the image instead.
        shift_terminal: the sigma that the last flow step starts from, to which the others are stretched; None: off.
        flow_grid: where flow sigmas lie before the shift: "table", between the ends of the training table, or "unit", from 1 to
            1 / steps.
        stochastic: flow steps go through an estimate of the sample and fresh noise.
        lcm_steps, lcm_scaling: the steps that a consistency model was distilled with, and the scaling of its boundary
            conditions (Luo et al. 2023).
    """

    kind: Literal["linear", "cosine", "scaled_linear", "flow"] = "linear"
    prediction: Prediction = "noise"
    train_steps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    betas: tuple[float, ...] | None = None
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 0
    final_alpha_one: bool = True
    zero_terminal_snr: bool = False
    clip: float | None = None
    threshold: float | None = None
    threshold_max: float = 1.0
    karras: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigma: Literal["zero", "min"] = "zero"
    variance: Literal["small", "large"] = "small"
    shift: float = 1.0
    dynamic_shift: DynamicShift | None = None
    shift_terminal: float | None = None
    flow_grid: Literal["table", "unit"] = "table"
    stochastic: bool = False
    lcm_steps: int = 50
    lcm_scaling: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.train_steps <= 1_000_000:
            raise ValueError(f"train_steps is {self.train_steps}; it is 1 to 1,000,000")
        if (self.kind == "flow") != (self.prediction == "flow"):
            raise ValueError(f"a {self.kind} schedule does not go with the prediction {self.prediction!r}")
        if self.betas is not None and len(self.betas) != self.train_steps:
            raise ValueError(f"{len(self.betas)} betas for {self.train_steps} train_steps")
        if self.zero_terminal_snr and self.prediction == "noise":
            raise ValueError("with zero_terminal_snr the noise says nothing of the sample at the last step; predict velocity")


def alphas_cumprod(schedule: Schedule) -> Doubles:
    """The share of the signal's power that is left at each time step: float64 [train_steps] of float32 numbers.

    Models are trained with float32 tables; where nearly all is noise, their rounding is a good part of what is left.
    """
    alphas = np.float32(1) - _betas(schedule)
    signal = np.cumprod(alphas, dtype=np.float64).astype(np.float32)
    if schedule.zero_terminal_snr:
        signal = _without_terminal_signal(signal)
    return signal.astype(np.float64)


def _betas(schedule: Schedule) -> NDArray[np.float32]:
    count, start, end = schedule.train_steps, schedule.beta_start, schedule.beta_end
    if schedule.betas is not None:
        return np.asarray(schedule.betas, np.float32)
    if schedule.kind == "linear":
        return np.linspace(start, end, count, dtype=np.float64).astype(np.float32)
    if schedule.kind == "scaled_linear":
        return np.square(np.linspace(start**0.5, end**0.5, count, dtype=np.float64).astype(np.float32))
    if schedule.kind == "cosine":  # equation 17 of Nichol & Dhariwal 2021, with their s = 0.008 and cap of 0.999
        power: Doubles = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.asarray(np.minimum(1 - power[1:] / power[:-1], 0.999), np.float32)
    raise InputError("a flow schedule has no variances; its stepper is flow_euler")


def _without_terminal_signal(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Algorithm 1 of Lin et al. 2024: shift the square roots so that the last is zero, scale so that the first stays."""
    root = np.sqrt(signal)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    squared = root**2
    alphas = np.concatenate([squared[:1], squared[1:] / squared[:-1]])
    betas = np.float32(1) - alphas
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def sigmas_of(signal: Doubles) -> Doubles:
    """Noise per signal, sqrt((1 - a) / a), of a table of `alphas_cumprod`; a signal of zero counts as 2**-24."""
    power = np.where(signal == 0, _LEAST_SIGNAL, signal)
    return np.sqrt((1 - power) / power)


def spaced(schedule: Schedule, steps: int, *, whole: bool = True, spare: int = 0) -> Doubles:
    """`steps` time steps, from noisy to clean: float64 [steps].

    whole: rounded to whole steps where the spacing gives fractions.
    spare: how many further steps at the clean end are counted when spacing, and left out (DPM-Solver++).
    """
    count = schedule.train_steps
    if schedule.spacing == "trailing":
        whole_count: Doubles = np.round(np.arange(count, 0, -count / steps))[:steps] - 1
        return whole_count
    if schedule.spacing == "leading":
        times = (np.arange(steps + spare) * (count // (steps + spare)))[::-1][:steps].astype(np.float64) + schedule.steps_offset
        if times[0] >= count or (steps > 1 and times[0] == times[1]):
            raise InputError(f"{steps} steps do not fit between {schedule.steps_offset} and {count}; take fewer")
        return times
    points = np.linspace(0, count - 1, steps + spare)[::-1][:steps]
    return np.round(points) if whole else points.astype(np.float32).astype(np.float64)


def karras_sigmas(schedule: Schedule, steps: int, least: float, largest: float) -> Doubles:
    """Equation 5 of Karras et al. 2022, from the largest to the least, which the schedule may set itself."""
    low = (least if schedule.sigma_min is None else schedule.sigma_min) ** (1 / _KARRAS_RHO)
    high = (largest if schedule.sigma_max is None else schedule.sigma_max) ** (1 / _KARRAS_RHO)
    sigmas: Doubles = (high + np.linspace(0, 1, steps) * (low - high)) ** _KARRAS_RHO
    return sigmas


def times_of(sigmas: Doubles, table: Doubles) -> Doubles:
    """The fractional time steps at which a table of rising sigmas has these, linear in the logarithm."""
    return np.asarray(np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(table), np.arange(len(table))), np.float64)


def flow_sigmas(schedule: Schedule, steps: int, tokens: int) -> Doubles:
    """The share of noise at each step of a flow, from noisy to clean, zero at the end: float64 [steps + 1]."""
    if schedule.flow_grid == "unit":
        grid = np.linspace(1.0, 1 / steps, steps)
    else:  # the ends of the training table, which was already shifted where the shift does not follow the size
        ends = np.array([1.0, 1 / schedule.train_steps])
        first, last = ends if schedule.dynamic_shift else _shifted(ends, schedule.shift)
        grid = np.linspace(first, last, steps)
    shift = schedule.dynamic_shift.shift(tokens) if schedule.dynamic_shift else schedule.shift
    sigmas = _shifted(grid, shift)
    if schedule.shift_terminal is not None:
        sigmas = 1 - (1 - sigmas) * ((1 - schedule.shift_terminal) / (1 - sigmas[-1]))
    if schedule.karras:
        sigmas = karras_sigmas(schedule, steps, float(sigmas[-1]), float(sigmas[0]))
    return np.append(sigmas, 0.0)


def _shifted(sigmas: Doubles, shift: float) -> Doubles:
    moved: Doubles = shift * sigmas / (1 + (shift - 1) * sigmas)
    return moved
