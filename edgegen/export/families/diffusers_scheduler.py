"""A scheduler of the diffusers library as a schedule and a stepper of edgegen."""

from collections.abc import Mapping
from typing import Any

import msgspec

from edgegen.errors import ExportError
from edgegen.schedules import DynamicShift, Schedule

SCHEDULERS: Mapping[str, str] = {  # class: the stepper
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "flow_euler",
}
_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "sample"}
_VARIANCES = {"fixed_small": "small", "fixed_large": "large"}
_ONLY: Mapping[str, tuple[Any, ...]] = {  # what an option may be, where not everything is supported
    "beta_schedule": tuple(_KINDS),
    "prediction_type": tuple(_PREDICTIONS),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "lower_order_final": (True,),
    "euler_at_final": (False,),
    "lambda_min_clipped": (-float("inf"), None),
    "invert_sigmas": (False,),
    "skip_prk_steps": (True,),
}
_SAME = {  # diffusers' name: ours, with the same meaning
    "num_train_timesteps": "train_steps",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "timestep_spacing": "spacing",
    "steps_offset": "steps_offset",
    "set_alpha_to_one": "final_alpha_one",
    "rescale_betas_zero_snr": "zero_terminal_snr",
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "shift": "shift",
    "shift_terminal": "shift_terminal",
    "stochastic_sampling": "stochastic",
    "original_inference_steps": "lcm_steps",
    "timestep_scaling": "lcm_scaling",
}


def schedule_of(scheduler: Any, *, patch: int = 2, flow_grid: str = "table") -> tuple[Schedule, str]:
    """The schedule, and the stepper's name.

    Args:
        scheduler: of the diffusers library.
        patch: latent pixels along the side of a transformer's token, for a shift that follows the size.
        flow_grid: how the pipeline lays out a flow's sigmas; see `Schedule`.

    Raises:
        ExportError: another scheduler, or an option that has no counterpart.
    """
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        raise ExportError(
            f"the scheduler is a {name}; edgegen has {', '.join(SCHEDULERS)}: save the pipeline with one of those"
        )
    config = _options(scheduler)
    for option, allowed in _ONLY.items():
        if option in config and config[option] not in allowed:
            raise ExportError(
                f"{name} with {option}={config[option]!r} is not supported; allowed is {' or '.join(map(repr, allowed))}"
            )
    values = {ours: config[theirs] for theirs, ours in _SAME.items() if config.get(theirs) is not None}
    values |= _flow(config, patch, flow_grid) if name.startswith("Flow") else _diffusion(name, config)
    try:
        return msgspec.convert(values, Schedule), SCHEDULERS[name]
    except msgspec.ValidationError as error:
        raise ExportError(f"the options of {name} do not go together: {error}") from error


def _options(scheduler: Any) -> dict[str, Any]:
    """What the class itself takes: files also carry options of other schedulers, which it ignores."""
    import inspect

    taken = inspect.signature(type(scheduler).__init__).parameters
    return {name: value for name, value in dict(scheduler.config).items() if name in taken}


def _diffusion(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "kind": _KINDS[config["beta_schedule"]],
        "prediction": _PREDICTIONS[config["prediction_type"]],
        "karras": bool(config.get("use_karras_sigmas")),
        "final_sigma": "min" if config.get("final_sigmas_type") == "sigma_min" else "zero",
    }
    if config.get("trained_betas") is not None:
        values["betas"] = [float(beta) for beta in config["trained_betas"]]
    if config.get("thresholding"):
        values |= {"threshold": config["dynamic_thresholding_ratio"], "threshold_max": config["sample_max_value"]}
    elif config.get("clip_sample"):
        values["clip"] = float(config["clip_sample_range"])
    if name == "DDPMScheduler":
        if config["variance_type"] not in _VARIANCES:
            raise ExportError(
                f"{name} with variance_type={config['variance_type']!r} is not supported; allowed is {list(_VARIANCES)}"
            )
        values["variance"] = _VARIANCES[config["variance_type"]]
    return values


def _flow(config: Mapping[str, Any], patch: int, flow_grid: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "kind": "flow",
        "prediction": "flow",
        "flow_grid": flow_grid,
        "karras": bool(config.get("use_karras_sigmas")),
    }
    if config["use_dynamic_shifting"]:
        shift = DynamicShift(
            config["base_shift"],
            config["max_shift"],
            config["base_image_seq_len"],
            config["max_image_seq_len"],
            patch,
            config["time_shift_type"],
        )
        values["dynamic_shift"] = msgspec.to_builtins(shift)
    return values
