"""Noise schedules and steppers of diffusion models: numpy alone, held to the diffusers library number by number."""

from edgegen.schedules.noise import DynamicShift, Schedule
from edgegen.schedules.steppers import STEPPERS, trajectory
from edgegen.schedules.table import Limit, Step, Trajectory, Walk

__all__ = ["STEPPERS", "DynamicShift", "Limit", "Schedule", "Step", "Trajectory", "Walk", "trajectory"]
