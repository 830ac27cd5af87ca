"""A trajectory from noise to sample as a table of coefficients, and the one loop that follows it.

Every stepper here is linear: the next sample is a sum of the present one, the model's prediction, the estimated sample, fresh
noise, and what earlier steps kept. So a stepper is a function that computes the coefficients, in float64, before the first run
of the model, and a step is a few sums in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Terms = Mapping[str, float]  # "sample", "prediction", "estimate" (of the clean sample), "noise", or a kept tensor's own name


@dataclass(frozen=True)
class Step:
    """One run of the model and what follows from it.

    Attributes:
        time: what the model is told as its time step.
        input_scale: what the sample is multiplied with before the model sees it.
        signal, spread: the sample here is signal * clean + spread * noise.
        estimate: the clean sample, of "sample" and "prediction".
        after: the next sample.
        keep: what is kept for later steps, by name; all of the values before this step.
    """

    time: float
    input_scale: float
    signal: float
    spread: float
    estimate: Terms
    after: Terms
    keep: Mapping[str, Terms] = field(default_factory=dict)

    @property
    def needs_noise(self) -> bool:
        """Whether fresh noise comes in."""
        return self.after.get("noise", 0.0) != 0


@dataclass(frozen=True)
class Trajectory:
    """The whole way. `initial_scale` is for unit noise where nothing else is begun with; `limit` bounds the estimate."""

    steps: tuple[Step, ...]
    initial_scale: float
    limit: "Limit | None" = None

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Limit:
    """Bounds on the estimated sample: within -clip and clip, or dynamic thresholding at a quantile of each image's numbers."""

    clip: float = 1.0
    quantile: float | None = None
    most: float = 1.0

    def apply(self, estimate: NDArray[np.float32]) -> None:
        """Bound float32 [image, ...] in place."""
        if self.quantile is None:
            np.clip(estimate, -self.clip, self.clip, out=estimate)
            return
        flat = estimate.reshape(len(estimate), -1)  # [image, number]
        bound = np.quantile(np.abs(flat), self.quantile, axis=1, keepdims=True).astype(np.float32)
        bound = np.clip(bound, 1.0, max(self.most, 1.0))
        flat[:] = np.clip(flat, -bound, bound) / bound


class Walk:
    """One run along a trajectory. `sample` float32 [image, ...] is its own and changes in place: `advance` returns it."""

    def __init__(self, trajectory: Trajectory, sample: NDArray[np.float32]) -> None:
        self.trajectory, self.sample = trajectory, np.array(sample, np.float32, order="C")
        self._next, self._product = np.empty_like(self.sample), np.empty_like(self.sample)
        self._estimate = np.empty_like(self.sample)
        self._kept: dict[str, NDArray[np.float32]] = {}

    def advance(
        self, index: int, prediction: NDArray[np.float32], noise: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Take the step `index` with the model's prediction; `noise` is read where `needs_noise`."""
        step, limit = self.trajectory.steps[index], self.trajectory.limit
        have = {"sample": self.sample, "prediction": prediction, **self._kept}
        if noise is not None:
            have["noise"] = noise
        if limit is not None:
            limit.apply(self._sum(step.estimate, have, self._estimate))
            have["estimate"] = self._estimate
        unfold = step.estimate if limit is None else None
        self._sum(_unfolded(step.after, unfold), have, self._next)
        for name, terms in step.keep.items():  # of values before this step, never of what is kept: its memory may be reused
            if name not in self._kept:
                self._kept[name] = np.empty_like(self.sample)
            self._sum(_unfolded(terms, unfold), have, self._kept[name])
        self.sample, self._next = self._next, self.sample
        return self.sample

    def estimate(self, index: int, prediction: NDArray[np.float32]) -> NDArray[np.float32]:
        """The clean sample as the model sees it at the step `index`, which is not taken; valid until the next call."""
        limit = self.trajectory.limit
        estimate = self._sum(
            self.trajectory.steps[index].estimate, {"sample": self.sample, "prediction": prediction}, self._estimate
        )
        if limit is not None:
            limit.apply(estimate)
        return estimate

    def _sum(self, terms: Terms, have: Mapping[str, NDArray[np.float32]], out: NDArray[np.float32]) -> NDArray[np.float32]:
        started = False
        for name, factor in terms.items():
            if factor == 0:
                continue
            np.multiply(have[name], np.float32(factor), out=self._product if started else out)
            if started:
                out += self._product
            started = True
        if not started:
            out.fill(0)
        return out


def _unfolded(terms: Terms, estimate: Terms | None) -> Terms:
    """Write the estimate out, where it is not bounded: two sums fewer for each step."""
    if estimate is None or not terms.get("estimate"):
        return terms
    factor = terms["estimate"]
    unfolded = {name: value for name, value in terms.items() if name != "estimate"}
    for name, value in estimate.items():
        unfolded[name] = unfolded.get(name, 0.0) + factor * value
    return unfolded
