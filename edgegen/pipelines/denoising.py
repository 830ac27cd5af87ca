"""The loop of a diffusion model: predict, step, and, where a part of an image is kept, put that part back."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError
from edgegen.pipelines.autoencoder import WHOLE, Cut
from edgegen.pipelines.guidance import Floats, Guided
from edgegen.pipelines.images import Images, normal
from edgegen.schedules import Trajectory, Walk
from edgegen.tensors import Tensors


@dataclass(frozen=True)
class Job:
    """One generation, checked.

    Attributes:
        way: the steps.
        noise: standard normal, the shape of the samples.
        seeds: to be told; `streams` are those that noise of later steps is drawn from.
        said: the images' parameters.
        conditions, without, guidance, rescale: see `Guided`.
        deadline_s: from the first step.
        cut: how large a run may be.
        known: clean samples to begin from.
        mask: [1, 1, height, width] of the samples, 1 where they are made anew; `anew` bool [height, width] of the pixels.
        pixels: what stays where nothing is made anew, uint8 [image, height, width, channel].
        beside: further channels for the denoiser.
    """

    way: Trajectory
    noise: Floats
    seeds: tuple[int, ...]
    streams: tuple[int, ...]
    said: dict[str, Any]
    conditions: Tensors
    without: Tensors | None = None
    guidance: float = 1.0
    rescale: float = 0.0
    deadline_s: float | None = None
    cut: Cut = WHOLE
    known: Floats | None = None
    mask: Floats | None = None
    anew: NDArray[np.bool_] | None = None
    pixels: NDArray[np.uint8] | None = None
    beside: Floats | None = None


@dataclass(frozen=True)
class DenoisingStep:
    """How far a generation is: `step` of `steps` are done; `images` with the last."""

    step: int
    steps: int
    images: Images | None = field(default=None, repr=False)


class Denoising:
    """The steps of one job. `recorded` replaces the noise that steps draw from the seeds, by the step's index."""

    def __init__(
        self,
        job: Job,
        guided: Guided,
        decode: Callable[[Floats], NDArray[np.uint8]],
        recorded: Mapping[int, Floats] | None = None,
    ) -> None:
        self._job, self._guided, self._decode, self._recorded = job, guided, decode, recorded
        first = job.way.steps[0]
        start = job.noise * np.float32(job.way.initial_scale)
        if job.known is not None:
            start = np.float32(first.signal) * job.known + np.float32(first.spread) * job.noise
        self._walk = Walk(job.way, start)

    @property
    def sample(self) -> Floats:
        """Where it is; changes in place."""
        return self._walk.sample

    def run(self) -> Iterator[DenoisingStep]:
        """All steps; what is left of them is not taken where the iterator is closed."""
        started, steps, job = time.perf_counter(), len(self._job.way), self._job
        for index in range(steps):
            prediction = self._predict(index)
            late = job.deadline_s is not None and time.perf_counter() - started > job.deadline_s
            if late and index + 1 < steps:
                clean = self._walk.estimate(index, prediction)
                yield DenoisingStep(steps, steps, self._finish(clean, steps_done=index + 1))
                return
            self._advance(index, prediction)
            if index + 1 < steps:
                yield DenoisingStep(index + 1, steps)
        yield DenoisingStep(steps, steps, self._finish(self.sample))

    def step(self, index: int) -> Floats:
        """Take one step; returns the sample."""
        self._advance(index, self._predict(index))
        return self.sample

    def _predict(self, index: int) -> Floats:
        return self._guided.predict(self.sample, self._job.way.steps[index])

    def _advance(self, index: int, prediction: Floats) -> None:
        job, noise = self._job, self._noise(index) if self._job.way.steps[index].needs_noise else None
        self._walk.advance(index, prediction, noise)
        if job.mask is not None and job.known is not None:
            self._keep(index + 1, job.known, job.mask)

    def _noise(self, index: int) -> Floats:
        if self._recorded is not None:
            return self._recorded[index]
        return normal(self._job.streams, self._job.noise.shape[1:], stream=index + 1)  # stream 0 is the beginning's

    def _keep(self, index: int, known: Floats, mask: Floats) -> None:
        """Where nothing is made anew, the sample is the known one with as much noise as the next step expects."""
        steps, sample = self._job.way.steps, self._walk.sample
        if index < len(steps):
            known = np.float32(steps[index].signal) * known + np.float32(steps[index].spread) * self._job.noise
        np.copyto(sample, known, where=mask == 0)

    def _finish(self, sample: Floats, **more: Any) -> Images:
        job = self._job
        made = self._decode(sample)
        if job.anew is not None and job.pixels is not None:
            made = np.where(job.anew[None, :, :, None], made, job.pixels)
        return Images(made, job.seeds, job.said | more)


def latent_mask(mask: Any, sides: tuple[int, ...], factor: int) -> tuple[NDArray[np.bool_], Floats]:
    """A mask as bool [height, width] of pixels, and float32 [1, 1, height, width] of samples: 1 where any pixel is anew.

    Raises InputError where it is not uint8 [height, width] of the image's size.
    """
    given = np.asarray(mask)
    if given.ndim == 3 and given.shape[2] in (1, 3):  # as files are read
        given = given.max(axis=2)
    if given.dtype != np.uint8 or given.shape != tuple(sides):
        raise InputError(f"the mask is uint8{list(sides)} as the image is, not {given.dtype}{list(given.shape)}")
    anew = given >= 128
    if not anew.any():
        raise InputError("the mask is black everywhere: there is nothing to make anew")
    blocks = anew.reshape(sides[0] // factor, factor, sides[1] // factor, factor)
    return anew, np.asarray(blocks.any(axis=(1, 3)), np.float32)[None, None]
