"""Every stepper against the scheduler of the diffusers library that models are published with, step by step."""

import diffusers
import msgspec
import numpy as np
import pytest
import torch

from edgegen.errors import InputError, UnknownNameError
from edgegen.schedules import STEPPERS, DynamicShift, Schedule, Walk, trajectory

# diffusers makes numpy arrays of its tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction", "sample": "sample"}
KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
SHAPE = (2, 3, 4, 4)
# Of the largest number of a sample. Both sides work in float32, 6e-8 for each of some ten roundings; differences of nearly
# equal numbers, such as 1 - alpha where alpha is 0.999, lose three more digits.
TOLERANCE = 2e-4


def compare(theirs, schedule, stepper, steps, *, begin=0, tolerance=TOLERANCE, time_tolerance=1e-3, **options):
    """Feed both with the same predictions and noise, and hold each sample, each time and the first scale to the other's."""
    theirs.set_timesteps(steps)
    strength = options.pop("strength", 1.0)
    ours = trajectory(schedule, stepper, steps, strength=strength, **options)
    times = theirs.timesteps[begin * theirs.order :]
    assert [step.time for step in ours.steps] == pytest.approx(times.tolist(), rel=1e-5, abs=time_tolerance)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(begin * theirs.order)
    if begin == 0 and hasattr(theirs, "init_noise_sigma"):
        assert ours.initial_scale == pytest.approx(float(theirs.init_noise_sigma), rel=1e-4)
    numbers = np.random.default_rng(0)
    sample = numbers.standard_normal(SHAPE, np.float32) * np.float32(ours.initial_scale)
    walk, wanted, largest = Walk(ours, sample), torch.from_numpy(sample), 0.0
    for index, time in enumerate(times):
        prediction, noise = numbers.standard_normal(SHAPE, np.float32), numbers.standard_normal(SHAPE, np.float32)
        if hasattr(theirs, "scale_model_input"):
            seen = theirs.scale_model_input(wanted, time).numpy()
            np.testing.assert_allclose(wanted * ours.steps[index].input_scale, seen, rtol=1e-4)  # float32 rounding
        largest = max(largest, float(wanted.abs().max()))
        wanted = step_with(theirs, prediction, time, wanted, noise, options)
        got = walk.advance(index, prediction, noise)
        # A sigma of thousands is subtracted from itself: what is left keeps the rounding of the largest number on the way.
        allowed = tolerance * float(wanted.abs().max()) + 2**-21 * largest
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=allowed, err_msg=f"step {index}")


def step_with(theirs, prediction, time, sample, noise, options):
    module = __import__(type(theirs).__module__, fromlist=["randn_tensor"])
    saved = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *_, **__: torch.from_numpy(noise)
    try:
        return theirs.step(torch.from_numpy(prediction), time, sample, **options).prev_sample
    finally:
        module.randn_tensor = saved


def pair(kind="linear", prediction="noise", spacing="leading", **more):
    ours = Schedule(kind=kind, prediction=prediction, spacing=spacing, beta_start=0.00085, beta_end=0.012, **more)
    theirs = {
        "beta_schedule": KINDS[kind],
        "prediction_type": PREDICTIONS[prediction],
        "timestep_spacing": spacing,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": more.get("steps_offset", 0),
    }
    return ours, theirs


each_prediction = pytest.mark.parametrize("prediction", list(PREDICTIONS))
each_spacing = pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
each_kind = pytest.mark.parametrize("kind", list(KINDS))
each_count = pytest.mark.parametrize("steps", [1, 2, 7, 50])


@each_prediction
@each_spacing
@each_kind
@each_count
def test_ddpm_is_that_of_diffusers(prediction, spacing, kind, steps):
    ours, theirs = pair(kind, prediction, spacing)
    compare(diffusers.DDPMScheduler(**theirs, clip_sample=False), ours, "ddpm", steps)


def test_ddpm_over_all_the_steps_of_training_is_that_of_diffusers():
    ours, theirs = pair("linear", "noise", "leading", clip=1.0)
    compare(diffusers.DDPMScheduler(**theirs), ours, "ddpm", 1000)


def test_ddpm_with_the_larger_variance_is_that_of_diffusers():
    ours, theirs = pair("cosine", "noise", "leading", variance="large")
    compare(diffusers.DDPMScheduler(**theirs, clip_sample=False, variance_type="fixed_large"), ours, "ddpm", 20)


@each_prediction
@each_spacing
@each_kind
@each_count
def test_ddim_is_that_of_diffusers(prediction, spacing, kind, steps):
    ours, theirs = pair(kind, prediction, spacing)
    compare(diffusers.DDIMScheduler(**theirs, clip_sample=False), ours, "ddim", steps)


@each_prediction
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise_is_that_of_diffusers(prediction, eta):
    ours, theirs = pair("scaled_linear", prediction, final_alpha_one=False, steps_offset=1)
    compare(diffusers.DDIMScheduler(**theirs, clip_sample=False, set_alpha_to_one=False), ours, "ddim", 10, eta=eta)


@each_prediction
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_a_clipped_estimate_is_that_of_diffusers(name, prediction):
    ours, theirs = pair("linear", prediction, clip=0.7)
    scheduler = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[name]
    compare(scheduler(**theirs, clip_sample=True, clip_sample_range=0.7), ours, name, 10)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m"])
def test_dynamic_thresholding_is_that_of_diffusers(name):
    ours, theirs = pair("linear", "velocity", threshold=0.9, threshold_max=1.5)
    scheduler = {
        "ddpm": diffusers.DDPMScheduler,
        "ddim": diffusers.DDIMScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    }[name]
    options = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
    compare(scheduler(**theirs, **options), ours, name, 8)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "dpmpp_2m"])
def test_a_zero_terminal_snr_is_that_of_diffusers(name, prediction):
    ours, theirs = pair("scaled_linear", prediction, "trailing", zero_terminal_snr=True)
    scheduler = {
        "ddim": diffusers.DDIMScheduler,
        "ddpm": diffusers.DDPMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    }[name]
    clip = {"clip_sample": False} if name.startswith("dd") else {}
    # The signal at the first step is 2**-12: float32 keeps half of its digits there.
    compare(scheduler(**theirs, **clip, rescale_betas_zero_snr=True), ours, name, 10, tolerance=2e-3)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@each_spacing
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20])
def test_plms_is_that_of_diffusers(prediction, spacing, steps):
    if spacing == "trailing" and steps < 3:
        pytest.skip("diffusers reads its table beyond its end")
    ours, theirs = pair("scaled_linear", prediction, spacing, final_alpha_one=False)
    scheduler = diffusers.PNDMScheduler(**theirs, skip_prk_steps=True)
    scheduler.set_timesteps(steps)
    compare(scheduler, ours, "plms", steps)


@each_prediction
@each_spacing
@each_kind
@each_count
def test_euler_is_that_of_diffusers(prediction, spacing, kind, steps):
    ours, theirs = pair(kind, prediction, spacing)
    compare(diffusers.EulerDiscreteScheduler(**theirs), ours, "euler", steps)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@each_spacing
@each_count
def test_euler_ancestral_is_that_of_diffusers(prediction, spacing, steps):
    ours, theirs = pair("scaled_linear", prediction, spacing, steps_offset=1)
    compare(diffusers.EulerAncestralDiscreteScheduler(**theirs), ours, "euler_ancestral", steps)


@each_prediction
@each_spacing
@each_count
def test_heun_is_that_of_diffusers(prediction, spacing, steps):
    ours, theirs = pair("scaled_linear", prediction, spacing)
    compare(diffusers.HeunDiscreteScheduler(**theirs), ours, "heun", steps)


@each_prediction
@each_spacing
@each_kind
@each_count
def test_dpm_solver_is_that_of_diffusers(prediction, spacing, kind, steps):
    ours, theirs = pair(kind, prediction, spacing)
    compare(diffusers.DPMSolverMultistepScheduler(**theirs), ours, "dpmpp_2m", steps)


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_that_ends_at_the_least_sigma_is_that_of_diffusers(steps):
    ours, theirs = pair("scaled_linear", "noise", "linspace", final_sigma="min")
    compare(diffusers.DPMSolverMultistepScheduler(**theirs, final_sigmas_type="sigma_min"), ours, "dpmpp_2m", steps)


@pytest.mark.parametrize("kind", ["scaled_linear", "cosine"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_karras_sigmas_are_those_of_diffusers(name, kind):
    ours, theirs = pair(kind, "noise", "linspace", karras=True)
    scheduler = {
        "euler": diffusers.EulerDiscreteScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    }[name]
    # diffusers cuts the fraction off times with a cosine schedule, where float32 may have made 998.9999 of 999.
    cut = {"time_tolerance": 1} if (name, kind) == ("dpmpp_2m", "cosine") else {}
    compare(scheduler(**theirs, use_karras_sigmas=True), ours, name, 12, **cut)


@each_prediction
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lcm_is_that_of_diffusers(prediction, steps):
    ours, theirs = pair("scaled_linear", prediction)
    compare(diffusers.LCMScheduler(**theirs), ours, "lcm", steps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("stochastic", [False, True])
@each_count
def test_flow_euler_is_that_of_diffusers(shift, stochastic, steps):
    ours = Schedule(kind="flow", prediction="flow", shift=shift, stochastic=stochastic)
    compare(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=stochastic), ours, "flow_euler", steps)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1000, 4096])
def test_a_shift_that_follows_the_size_is_that_of_diffusers(tokens, kind):
    shift = DynamicShift(kind=kind)
    ours = Schedule(kind="flow", prediction="flow", dynamic_shift=shift, flow_grid="unit")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    given = {"sigmas": np.linspace(1.0, 1 / 6, 6), "mu": mu}
    theirs.set_timesteps(**given)
    made = trajectory(ours, "flow_euler", 6, tokens=tokens)
    np.testing.assert_allclose([step.spread for step in made.steps], theirs.sigmas[:-1], atol=1e-6)  # float32 rounding
    np.testing.assert_allclose([step.time for step in made.steps], theirs.timesteps, atol=1e-3)  # of 1000


def test_a_stretched_flow_is_that_of_diffusers():
    ours = Schedule(kind="flow", prediction="flow", shift=3.0, shift_terminal=0.1)
    compare(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1), ours, "flow_euler", 6)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m", "flow_euler"])
def test_the_last_part_of_the_way_is_that_of_diffusers(name):
    scheduler = {
        "ddim": diffusers.DDIMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        "flow_euler": diffusers.FlowMatchEulerDiscreteScheduler,
    }[name]
    ours, theirs = (Schedule(kind="flow", prediction="flow"), {}) if name == "flow_euler" else pair("scaled_linear")
    clip = {"clip_sample": False} if name == "ddim" else {}
    compare(scheduler(**theirs, **clip), ours, name, 10, begin=4, strength=0.6)


@pytest.mark.parametrize("name", ["ddim", "euler", "flow_euler"])
def test_noise_is_added_as_diffusers_adds_it(name):
    numbers = np.random.default_rng(1)
    clean, noise = (torch.from_numpy(numbers.standard_normal(SHAPE, np.float32)) for _ in range(2))
    ours, theirs = (Schedule(kind="flow", prediction="flow"), {}) if name == "flow_euler" else pair("scaled_linear")
    made = trajectory(ours, name, 10)
    scheduler = {
        "ddim": diffusers.DDIMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "flow_euler": diffusers.FlowMatchEulerDiscreteScheduler,
    }[name](**theirs)
    scheduler.set_timesteps(10)
    for index in (0, 5, 9):
        time = scheduler.timesteps[index : index + 1].repeat(len(clean))
        wanted = scheduler.scale_noise(clean, time, noise) if name == "flow_euler" else scheduler.add_noise(clean, noise, time)
        step = made.steps[index]
        got = step.signal * clean + step.spread * noise
        np.testing.assert_allclose(got, wanted, atol=1e-5 * float(wanted.abs().max()))  # float32 rounding


@pytest.mark.parametrize("name", sorted(set(STEPPERS) - {"flow_euler", "lcm"}))
def test_every_stepper_ends_at_the_truth_where_the_model_knows_it(name):
    # A model that knows the clean sample predicts the noise exactly: any consistent stepper then ends there.
    numbers = np.random.default_rng(2)
    clean = numbers.standard_normal(SHAPE, np.float32)
    made = trajectory(Schedule(kind="scaled_linear", beta_start=0.00085, beta_end=0.012, spacing="trailing"), name, 20)
    first = made.steps[0]
    walk = Walk(made, first.signal * clean + first.spread * numbers.standard_normal(SHAPE, np.float32))
    for index, step in enumerate(made.steps):
        noise = numbers.standard_normal(SHAPE, np.float32) if step.needs_noise else None
        walk.advance(index, (walk.sample - np.float32(step.signal) * clean) / np.float32(step.spread), noise)
    np.testing.assert_allclose(walk.sample, clean, atol=2e-2)  # the last step's own noise: sigma is 0.03 at time 0


def test_what_does_not_suit_is_refused_in_words():
    schedule = Schedule()
    with pytest.raises(UnknownNameError, match="did you mean 'euler'"):
        trajectory(schedule, "eule", 5)
    with pytest.raises(InputError, match="trained with 1 to 1000"):
        trajectory(schedule, "ddim", 1001)
    with pytest.raises(InputError, match="does not suit"):
        trajectory(schedule, "flow_euler", 5)
    with pytest.raises(InputError, match="take flow_euler"):
        trajectory(Schedule(kind="flow", prediction="flow"), "ddim", 5)
    with pytest.raises(InputError, match="less than one step"):
        trajectory(schedule, "ddim", 5, strength=0.1)
    with pytest.raises(InputError, match="strength is above 0"):
        trajectory(schedule, "ddim", 5, strength=float("nan"))
    with pytest.raises(InputError, match="distilled with 50"):
        trajectory(schedule, "lcm", 51)
    with pytest.raises(msgspec.ValidationError, match="betas"):
        msgspec.convert({"betas": [0.1, 0.2]}, Schedule)
    with pytest.raises(ValueError, match="predict velocity"):
        Schedule(zero_terminal_snr=True)


def test_the_estimate_that_is_written_out_gives_the_same_sample():
    numbers = np.random.default_rng(3)
    sample, prediction = (numbers.standard_normal(SHAPE, np.float32) for _ in range(2))
    free = Walk(trajectory(Schedule(), "ddim", 5), sample).advance(0, prediction)
    bound = Walk(trajectory(Schedule(clip=1e9), "ddim", 5), sample).advance(0, prediction)
    np.testing.assert_allclose(free, bound, atol=1e-4 * np.abs(bound).max())  # the order of float32 sums
