"""Steppers: from a schedule and a number of steps to a table of coefficients (`edgegen.schedules.table`).

Each keeps to the numbers of the implementation in the diffusers library, which models are published with.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgegen.errors import InputError, UnknownNameError
from edgegen.schedules.noise import Doubles, Schedule, alphas_cumprod, flow_sigmas, karras_sigmas, sigmas_of, spaced, times_of
from edgegen.schedules.table import Limit, Step, Terms, Trajectory


@dataclass(frozen=True)
class Request:
    """What a trajectory is wanted for.

    `begin` is how many of `steps` are left out at the noisy end; `eta` the share of DDPM's noise that DDIM adds; `tokens` the
    size of the image, for a dynamic shift; `strength` what LCM spaces by.
    """

    schedule: Schedule
    steps: int
    begin: int = 0
    eta: float = 0.0
    tokens: int = 0
    strength: float = 1.0


def trajectory(
    schedule: Schedule, stepper: str, steps: int, *, strength: float = 1.0, eta: float = 0.0, tokens: int = 0
) -> Trajectory:
    """The way from noise to sample, or its last part.

    Args:
        schedule: of the model.
        stepper: a name of STEPPERS.
        steps: of the whole way; Heun runs the model twice in all but the last.
        strength: the share of the steps to take, counted from the clean end: how much of a given image is made anew.
        eta: the share of DDPM's noise that DDIM adds at each step.
        tokens: of the denoiser's transformer, where the schedule has a dynamic shift.

    Raises:
        UnknownNameError: no such stepper.
        InputError: more steps than the model knows, another option out of range, or a stepper that does not suit the schedule.
    """
    if stepper not in STEPPERS:
        raise UnknownNameError("stepper", stepper, STEPPERS)
    if (schedule.kind == "flow") != (stepper == "flow_euler"):
        suits = "flow_euler" if schedule.kind == "flow" else ", ".join(name for name in STEPPERS if name != "flow_euler")
        raise InputError(f"the stepper {stepper} does not suit this model's {schedule.kind} schedule; take {suits}")
    if not 1 <= steps <= schedule.train_steps:
        raise InputError(f"steps is {steps}; this model was trained with 1 to {schedule.train_steps}")
    if not 0 < strength <= 1 or not 0 <= eta <= 1:
        raise InputError(f"strength is {strength} and eta {eta}; strength is above 0 and at most 1, eta 0 to 1")
    begin = steps - min(int(steps * strength), steps)
    if begin == steps:
        raise InputError(f"strength {strength} of {steps} steps is less than one step; take more of either")
    return STEPPERS[stepper](Request(schedule, steps, begin, eta, tokens, strength))


def _ddpm(request: Request) -> Trajectory:
    """Ancestral sampling, Ho et al. 2020, algorithm 2, with equation 7 for the mean."""
    schedule, signal = request.schedule, alphas_cumprod(request.schedule)
    times = spaced(schedule, request.steps)
    made = []
    for index in range(request.begin, request.steps):
        time = int(times[index])
        here, there = signal[time], signal[int(times[index + 1])] if index + 1 < request.steps else 1.0
        # The quotient in float32, as the model's table is: where steps are short, it is nearly one, and its rounding counts.
        alpha = float(np.float32(here) / np.float32(there))
        spread = max((1 - there) / (1 - here) * (1 - alpha) if schedule.variance == "small" else 1 - alpha, 1e-20)
        after = {
            "estimate": there**0.5 * (1 - alpha) / (1 - here),
            "sample": alpha**0.5 * (1 - there) / (1 - here),
            "noise": spread**0.5 if time > 0 else 0.0,
        }
        made.append(_step(schedule, time, here, after))
    return _variance_preserving(schedule, made)


def _ddim(request: Request) -> Trajectory:
    """Song et al. 2021, equation 12; `eta` from its section 4.1."""
    schedule, signal = request.schedule, alphas_cumprod(request.schedule)
    stride, final = schedule.train_steps // request.steps, _final(schedule, signal)
    made = []
    for time in map(int, spaced(schedule, request.steps)[request.begin :]):
        here, there = signal[time], signal[time - stride] if time >= stride else final
        noise = request.eta * math.sqrt(max((1 - there) / (1 - here) * (1 - here / there), 0.0))
        direction = math.sqrt(max(1 - there - noise**2, 0.0))
        after = {"estimate": there**0.5, "noise": noise}
        for name, factor in _noise_terms(schedule, here).items():
            after[name] = after.get(name, 0.0) + direction * factor
        made.append(_step(schedule, time, here, after))
    return _variance_preserving(schedule, made)


def _plms(request: Request) -> Trajectory:
    """Pseudo linear multistep, Liu et al. 2022, without its Runge-Kutta start: the model runs twice at the second time step."""
    schedule, signal = request.schedule, alphas_cumprod(request.schedule)
    stride, final = schedule.train_steps // request.steps, _final(schedule, signal)
    times = [int(time) for time in spaced(schedule, request.steps)[request.begin :]]
    asked = [*times[:1], *times[1:2], *times[1:]]  # what the model is told
    made: list[Step] = []
    for index, time in enumerate(asked):
        start = time + stride if index == 1 else time
        end = start - stride
        here, there = signal[start] if start < len(signal) else signal[-1], signal[end] if end >= 0 else final
        of = _HISTORY[min(index, len(_HISTORY) - 1)]
        order = index if index < 2 else index - 1  # of the prediction among those that are kept
        mean = {("prediction" if back == 0 else f"prediction.{(order - back) % 4}"): weight for back, weight in enumerate(of)}
        base = "begin" if index == 1 else "sample"
        after = _transfer(schedule, here, there, mean, base)
        keep: dict[str, Terms] = {} if index == 1 else {f"prediction.{order % 4}": {"prediction": 1.0}}
        if index == 0:
            keep["begin"] = {"sample": 1.0}
        made.append(_step(schedule, time, signal[time], after, keep))
    return _variance_preserving(schedule, made)


# Adams-Bashforth weights of the newest prediction and those before it; the second run averages the first two (Heun).
_HISTORY = ((1.0,), (1 / 2, 1 / 2), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _transfer(schedule: Schedule, here: float, there: float, mean: Terms, base: str) -> Terms:
    """Equation 11 of Liu et al. 2022: the sample `base` moved along a mean of predictions."""
    if schedule.prediction not in {"noise", "velocity"}:
        raise InputError(f"the stepper plms takes models that predict noise or velocity, not {schedule.prediction}; take ddim")
    slope = -(there - here) / (here * (1 - there) ** 0.5 + (here * (1 - here) * there) ** 0.5)
    after = {base: (there / here) ** 0.5}
    scale = 1.0
    if schedule.prediction == "velocity":
        after[base] += slope * (1 - here) ** 0.5
        scale = here**0.5
    return after | {name: slope * scale * weight for name, weight in mean.items()}


def _lcm(request: Request) -> Trajectory:
    """Multistep consistency sampling, Luo et al. 2023, algorithm 3, with the boundary conditions of their section 4.1."""
    schedule, signal, steps = request.schedule, alphas_cumprod(request.schedule), request.steps
    taught = np.arange(1, int(schedule.lcm_steps * request.strength) + 1) * (schedule.train_steps // schedule.lcm_steps) - 1
    if steps > len(taught):
        raise InputError(f"steps is {steps}; this consistency model was distilled with {len(taught)} at this strength")
    times = taught[::-1][np.floor(np.linspace(0, len(taught), steps, endpoint=False)).astype(int)]
    made = []
    for index, time in enumerate(map(int, times)):
        scaled = time * schedule.lcm_scaling
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)  # the data's spread is 0.5
        there = signal[int(times[index + 1])] if index + 1 < steps else 1.0
        after = {"estimate": there**0.5 * out, "sample": there**0.5 * skip, "noise": (1 - there) ** 0.5}
        made.append(_step(schedule, time, signal[time], after))
    return _variance_preserving(schedule, made)


def _euler(request: Request) -> Trajectory:
    """Karras et al. 2022, algorithm 2 without churn: the probability flow in terms of sigma."""
    sigmas, times = _sigma_steps(request)
    made = []
    for index in range(request.begin, request.steps):
        here, there = sigmas[index], sigmas[index + 1]
        made.append(_sigma_step(request.schedule, times[index], here, {"sample": there / here, "estimate": 1 - there / here}))
    return _sigma_trajectory(request, made, sigmas[0])


def _euler_ancestral(request: Request) -> Trajectory:
    """Euler to a lower sigma, and as much fresh noise as is then missing (Karras et al. 2022; Song et al. 2021, section 3)."""
    if request.schedule.prediction == "sample":
        raise InputError("the stepper euler_ancestral takes models that predict noise or velocity, not sample; take ddpm")
    sigmas, times = _sigma_steps(request, karras=False)
    made = []
    for index in range(request.begin, request.steps):
        here, there = sigmas[index], sigmas[index + 1]
        up = math.sqrt(there**2 * (here**2 - there**2) / here**2)
        down = math.sqrt(max(there**2 - up**2, 0.0))
        after = {"sample": down / here, "estimate": 1 - down / here, "noise": up}
        made.append(_sigma_step(request.schedule, times[index], here, after))
    return _sigma_trajectory(request, made, sigmas[0])


def _heun(request: Request) -> Trajectory:
    """Karras et al. 2022, algorithm 1: an Euler step, and the mean of the slopes at its two ends; Euler alone to sigma zero."""
    sigmas, times = _sigma_steps(request)
    made = []
    for index in range(request.begin, request.steps):
        here, there = sigmas[index], sigmas[index + 1]
        half = (there - here) / 2
        slope = {"sample": 1 / here, "estimate": -1 / here}
        after = {"sample": 1 + 2 * half * slope["sample"], "estimate": 2 * half * slope["estimate"]}
        keep = {"halfway": {"sample": 1 + half * slope["sample"], "estimate": half * slope["estimate"]}}
        last = index + 1 == request.steps
        made.append(_sigma_step(request.schedule, times[index], here, after, {} if last else keep))
        if not last:
            after = {"halfway": 1.0, "sample": half / there, "estimate": -half / there}
            made.append(_sigma_step(request.schedule, times[index + 1], there, after))
    return _sigma_trajectory(request, made, sigmas[0])


def _dpmpp_2m(request: Request) -> Trajectory:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; the first step, and the last one to zero, are of first order."""
    schedule, steps = request.schedule, request.steps
    table = sigmas_of(alphas_cumprod(schedule))
    if schedule.karras:
        sigmas = karras_sigmas(schedule, steps, float(table[0]), float(table[-1]))
        times = times_of(sigmas, table)
        times = np.trunc(times if schedule.kind == "cosine" else np.round(times))
    else:
        times = spaced(schedule, steps, spare=1)
        sigmas = np.interp(times, np.arange(len(table)), table)
    sigmas = np.append(sigmas, 0.0 if schedule.final_sigma == "zero" else table[0])
    made = []
    for index in range(request.begin, steps):
        first_order = index == request.begin or (index + 1 == steps and (schedule.final_sigma == "zero" or steps < 15))
        signal = 1 / (1 + sigmas[index] ** 2)
        after = _exponential(sigmas, index, first_order=first_order)
        made.append(_step(schedule, times[index], signal, after, {"estimate.before": {"estimate": 1.0}}))
    return _variance_preserving(schedule, made)


def _exponential(sigmas: Doubles, index: int, *, first_order: bool) -> Terms:
    """Coefficients of one step in log-SNR, for samples whose signal and noise have a power of one together."""
    here, there = sigmas[index], sigmas[index + 1]
    spread_here, signal_there = here / math.hypot(1, here), 1 / math.hypot(1, there)
    gain = signal_there * (1 - there / here)  # -alpha (exp(-h) - 1), since exp(-h) is the quotient of the sigmas
    after = {"sample": signal_there * there / spread_here, "estimate": gain}
    if not first_order:
        back = 0.5 * math.log(here / there) / math.log(sigmas[index - 1] / here)
        after["estimate"] += gain * back
        after["estimate.before"] = -gain * back
    return after


def _flow_euler(request: Request) -> Trajectory:
    """Euler along the velocity of a flow, Lipman et al. 2023 and Esser et al. 2024; or through the estimate and fresh noise."""
    schedule = request.schedule
    sigmas = flow_sigmas(schedule, request.steps, request.tokens)
    made = []
    for index in range(request.begin, request.steps):
        here, there = sigmas[index], sigmas[index + 1]
        after = {"sample": 1.0, "prediction": there - here}
        if schedule.stochastic:
            after = {"estimate": 1 - there, "noise": there}
        estimate = {"sample": 1.0, "prediction": -here}
        made.append(Step(here * schedule.train_steps, 1.0, 1 - here, here, estimate, after))
    return Trajectory(tuple(made), 1.0)


def _final(schedule: Schedule, signal: Doubles) -> float:
    return 1.0 if schedule.final_alpha_one else float(signal[0])


def _estimate_terms(schedule: Schedule, here: float) -> Terms:
    """The clean sample, where the sample's signal has the power `here` and its noise the rest."""
    signal, spread = math.sqrt(here), math.sqrt(1 - here)
    if schedule.prediction == "noise":
        return {"sample": 1 / signal, "prediction": -spread / signal}
    if schedule.prediction == "velocity":
        return {"sample": signal, "prediction": -spread}
    return {"prediction": 1.0}


def _noise_terms(schedule: Schedule, here: float) -> Terms:
    """The noise, likewise; of the prediction itself, whatever bounds the estimate."""
    signal, spread = math.sqrt(here), math.sqrt(1 - here)
    if schedule.prediction == "noise":
        return {"prediction": 1.0}
    if schedule.prediction == "velocity":
        return {"sample": spread, "prediction": signal}
    return {"sample": 1 / spread, "prediction": -signal / spread}


def _step(schedule: Schedule, time: float, here: float, after: Terms, keep: Mapping[str, Terms] | None = None) -> Step:
    return Step(float(time), 1.0, math.sqrt(here), math.sqrt(1 - here), _estimate_terms(schedule, here), after, keep or {})


def _variance_preserving(schedule: Schedule, steps: list[Step]) -> Trajectory:
    return Trajectory(tuple(steps), 1.0, _limit(schedule))


def _limit(schedule: Schedule) -> Limit | None:
    if schedule.threshold is not None:
        return Limit(quantile=schedule.threshold, most=schedule.threshold_max)
    return Limit(schedule.clip) if schedule.clip is not None else None


def _sigma_steps(request: Request, *, karras: bool = True) -> tuple[Doubles, Doubles]:
    """Sigmas [steps + 1] and times [steps]."""
    schedule = request.schedule
    table = sigmas_of(alphas_cumprod(schedule))
    times = spaced(schedule, request.steps, whole=False)
    sigmas = np.interp(times, np.arange(len(table)), table)
    if karras and schedule.karras:
        sigmas = karras_sigmas(schedule, request.steps, float(sigmas[-1]), float(sigmas[0]))
        times = times_of(sigmas, table)
    return np.append(sigmas, 0.0 if schedule.final_sigma == "zero" else table[0]), times


def _sigma_step(schedule: Schedule, time: float, sigma: float, after: Terms, keep: Mapping[str, Terms] | None = None) -> Step:
    """For samples whose signal has the scale one: clean + sigma * noise."""
    scale = 1 / math.sqrt(1 + sigma**2)
    estimate = {"sample": 1.0, "prediction": -sigma}
    if schedule.prediction == "velocity":
        estimate = {"sample": scale**2, "prediction": -sigma * scale}
    elif schedule.prediction == "sample":
        estimate = {"prediction": 1.0}
    return Step(float(time), scale, 1.0, sigma, estimate, after, keep or {})


def _sigma_trajectory(request: Request, steps: list[Step], largest: float) -> Trajectory:
    leading = request.schedule.spacing == "leading"  # it begins before the noisiest step, with some signal's power in place
    return Trajectory(tuple(steps), math.hypot(1, largest) if leading else largest, _limit(request.schedule))


STEPPERS: Mapping[str, Callable[[Request], Trajectory]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "plms": _plms,
    "euler": _euler,
    "euler_ancestral": _euler_ancestral,
    "heun": _heun,
    "dpmpp_2m": _dpmpp_2m,
    "lcm": _lcm,
    "flow_euler": _flow_euler,
}
