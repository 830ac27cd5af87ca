"""The denoiser and what it is told: rows of a batch in runs of the exported sizes, and classifier-free guidance over them."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgegen.pipelines.batches import BatchedGraph
from edgegen.schedules import Step
from edgegen.tensors import Tensor, Tensors

Floats = NDArray[np.float32]


@dataclass
class _Run:
    """One run of the denoiser, the same at every step but for the sample and the time.

    Attributes:
        part: the rows that it predicts.
        spans: (rows of the feed, the images that they show): one, where the images follow one another.
        feed: what the denoiser takes.
        further: channels of the sample that stay as they are, for each row of the feed.
        room: for a sample that is not fed as it is; made when it is first needed.
    """

    part: slice
    spans: list[tuple[slice, slice]]
    feed: dict[str, Tensor]
    further: Floats | None
    room: Floats | None = None

    def fill(self, sample: Floats, step: Step) -> None:
        """Make the feed of a step. Nothing is copied where the sample itself is what the denoiser wants to see."""
        self.feed["timestep"].fill(step.time)
        if step.input_scale == 1 and len(self.spans) == 1 and self.further is None:
            self.feed["sample"] = sample[self.spans[0][1]]
            return
        if self.room is None:
            self.room = self._room(sample)
        channels = sample.shape[1]
        for rows, images in self.spans:
            np.multiply(sample[images], np.float32(step.input_scale), out=self.room[rows, :channels])
        self.feed["sample"] = self.room

    def _room(self, sample: Floats) -> Floats:
        rows, channels = len(self.feed["timestep"]), sample.shape[1]
        further = 0 if self.further is None else self.further.shape[1]
        room = np.empty((rows, channels + further, *sample.shape[2:]), np.float32)
        if self.further is not None:
            room[:, channels:] = self.further
        return room


class Guided:
    """The denoiser with its conditions for one generation: every array that it feeds is made once, and filled again each step.

    Args:
        graph: the denoiser.
        shape: of the sample: [image, channel, height, width].
        conditions: the other inputs but the time step, each [image, ...].
        without: those that differ where there is no condition, for classifier-free guidance; None: no guidance.
        scale: of the guidance: 1 changes nothing (Ho & Salimans 2022).
        rescale: how far the guided prediction's spread is brought back to the unguided one's (Lin et al. 2024, section 3.4).
        beside: further channels of the sample that stay as they are [image, channel, height, width] (inpainting models).
        batch_size: how many images run at once; as many as the graph takes if None. Guidance takes two rows for each.
    """

    def __init__(
        self,
        graph: BatchedGraph,
        shape: tuple[int, ...],
        conditions: Tensors,
        without: Tensors | None = None,
        *,
        scale: float = 1.0,
        rescale: float = 0.0,
        beside: Floats | None = None,
        batch_size: int | None = None,
    ) -> None:
        self._graph, self._count, self._scale, self._rescale = graph, shape[0], np.float32(scale), rescale
        self._guided = without is not None
        passes = 2 if self._guided else 1
        told = dict(conditions)
        if without is not None:  # no condition first, then with it
            told = {name: np.concatenate([without.get(name, array), array]) for name, array in conditions.items()}
        self._made = np.empty((passes * self._count, *shape[1:]), np.float32)
        self._spare = np.empty(shape if self._guided else 0, np.float32)
        parts = graph.batches(passes * self._count, None if batch_size is None else passes * batch_size)
        self._runs = [self._run(part, told, beside) for part in parts]

    def _run(self, part: slice, told: Tensors, beside: Floats | None) -> _Run:
        rows = np.arange(part.start, part.stop)
        rows = np.resize(rows, max(len(rows), self._graph.least))  # filled up with its own, where they are too few
        images = rows % self._count
        feed = {name: np.ascontiguousarray(array[rows]) for name, array in told.items()}
        feed["timestep"] = np.empty(len(rows), np.float32)
        return _Run(part, _spans(images), feed, None if beside is None else beside[images])

    def predict(self, sample: Floats, step: Step) -> Floats:
        """The prediction at `step` for the sample float32 [image, ...]; valid until the next call."""
        for run in self._runs:
            run.fill(sample, step)
            with self._graph.lock:  # what a session gives is lent until its next run
                made = self._graph.session.run(run.feed)["prediction"]
                self._made[run.part] = made[: run.part.stop - run.part.start]
        return self._combined() if self._guided else self._made

    def _combined(self) -> Floats:
        without, with_it = self._made[: self._count], self._made[self._count :]
        np.subtract(with_it, without, out=self._spare)
        self._spare *= self._scale
        self._spare += without
        if self._rescale:
            axes = tuple(range(1, self._spare.ndim))
            spread = with_it.std(axes, keepdims=True) / np.maximum(self._spare.std(axes, keepdims=True), 1e-12)
            self._spare *= (self._rescale * spread + (1 - self._rescale)).astype(np.float32)
        return self._spare


def _spans(images: NDArray[np.int64]) -> list[tuple[slice, slice]]:
    """Cut a feed's rows where their images do not follow one another: (rows, images) of each piece."""
    edges = [0, *(np.flatnonzero(np.diff(images) != 1) + 1).tolist(), len(images)]
    return [
        (slice(start, stop), slice(int(images[start]), int(images[start]) + stop - start))
        for start, stop in itertools.pairwise(edges)
    ]
