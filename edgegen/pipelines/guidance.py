"""The denoiser and what it is told: rows of a batch in runs of the exported sizes, and classifier-free guidance over them."""

import threading
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edgegen.backends.base import Session
from edgegen.errors import BundleError, InputError
from edgegen.schedules import Step
from edgegen.tensors import Axis, Tensor, Tensors

_MOST = 16  # rows of a run of a graph that names no limit
Floats = NDArray[np.float32]


class GraphRunner:
    """A session whose inputs all begin with the batch: any number of rows, in runs of the sizes that were exported.

    Several threads may use it: a run, and the copying of what it gave, is never mixed with another's.
    """

    def __init__(self, session: Session, axes: Mapping[str, Axis] | None = None) -> None:
        self.session, self.axes, self.lock = session, dict(axes or {}), threading.Lock()
        batch = next(iter(session.inputs.values())).axes[0]
        found = Axis(batch, batch, batch) if isinstance(batch, int) else self.axes.get(batch, Axis(1, _MOST, _MOST))
        self.least, self.most = max(found.min, 1), found.max

    def parts(self, rows: int) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """The rows of each run, and the rows to feed it with: more than those where the least of a run is more."""
        for start in range(0, rows, self.most):
            stop = min(start + self.most, rows)
            yield slice(start, stop), np.resize(np.arange(start, stop), max(stop - start, self.least))

    def run(self, feed: Tensors) -> dict[str, Tensor]:
        """All outputs, for all rows; the caller's own."""
        rows = len(next(iter(feed.values())))
        made: dict[str, list[Tensor]] = {name: [] for name in self.session.outputs}
        for part, fed in self.parts(rows):
            some = {name: np.ascontiguousarray(array[fed]) for name, array in feed.items()}
            with self.lock:
                for name, array in self.session.run(some).items():
                    made[name].append(array[: part.stop - part.start].copy())
        return {name: np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for name, arrays in made.items()}

    def size(self, place: int, pixels: int, factor: int, side: str) -> int:
        """The size of an axis of the sample for so many pixels, or the graph's own where they are 0.

        Raises InputError where `side` cannot be that long.
        """
        name, wanted = "sample", pixels // factor
        axis = self.session.inputs[name].axes[place]
        bounds = Axis(axis, axis, axis) if isinstance(axis, int) else self.axes.get(axis)
        if bounds is None:
            if not wanted:
                raise BundleError(f"the graph does not say how large {name} is; export the model again")
            return wanted
        size = wanted or bounds.opt
        if not bounds.min <= size <= bounds.max:
            least, most = bounds.min * factor, bounds.max * factor
            sizes = f"{least}" if least == most else f"{least} to {most}"
            raise InputError(f"{side} is {size * factor} pixels; this model was exported for {sizes}")
        return size


class Guided:
    """The denoiser with its conditions for one generation: every array that it feeds is made once, and filled again each step.

    Args:
        runner: of the denoiser.
        shape: of the sample: [image, channel, height, width].
        conditions: the other inputs but the time step, each [image, ...].
        without: those that differ where there is no condition, for classifier-free guidance; None: no guidance.
        scale: of the guidance: 1 changes nothing (Ho & Salimans 2022).
        rescale: how far the guided prediction's spread is brought back to the unguided one's (Lin et al. 2024, section 3.4).
        beside: further channels of the sample that stay as they are [image, channel, height, width] (inpainting models).
    """

    def __init__(
        self,
        runner: GraphRunner,
        shape: tuple[int, ...],
        conditions: Tensors,
        without: Tensors | None = None,
        *,
        scale: float = 1.0,
        rescale: float = 0.0,
        beside: Floats | None = None,
    ) -> None:
        self._runner, self._count, self._scale, self._rescale = runner, shape[0], np.float32(scale), rescale
        self._guided = without is not None
        rows = self._count * (2 if self._guided else 1)
        told = dict(conditions)
        if without is not None:  # no condition first, then with it
            told = {name: np.concatenate([without.get(name, array), array]) for name, array in conditions.items()}
        self._made = np.empty((rows, *shape[1:]), np.float32)
        self._spare = np.empty(shape, np.float32)
        self._runs = [(part, fed % self._count, self._feed(fed, shape, told, beside)) for part, fed in runner.parts(rows)]

    def _feed(self, rows: NDArray[np.int64], shape: tuple[int, ...], told: Tensors, beside: Floats | None) -> dict[str, Tensor]:
        extra = 0 if beside is None else beside.shape[1]
        sample = np.empty((len(rows), shape[1] + extra, *shape[2:]), np.float32)
        if beside is not None:
            sample[:, shape[1] :] = beside[rows % self._count]
        feed = {"sample": sample, "timestep": np.empty(len(rows), np.float32)}
        return feed | {name: np.ascontiguousarray(array[rows]) for name, array in told.items()}

    def predict(self, sample: Floats, step: Step) -> Floats:
        """The prediction at `step` for the sample [image, ...]; valid until the next call."""
        channels = sample.shape[1]
        for part, images, feed in self._runs:
            feed["timestep"].fill(step.time)
            room = feed["sample"][:, :channels]
            for row, image in enumerate(images):
                np.multiply(sample[image], np.float32(step.input_scale), out=room[row])
            with self._runner.lock:
                self._made[part] = self._runner.session.run(feed)["prediction"][: part.stop - part.start]
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
