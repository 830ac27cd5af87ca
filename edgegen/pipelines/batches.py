"""Any number of images through a graph that was exported for some: split, filled up, and copied out."""

import threading
from collections.abc import Iterator, Mapping

import numpy as np

from edgegen.backends.base import Session
from edgegen.tensors import Axis, Tensor, Tensors

_MOST = 64  # images at once where no bound is known


class BatchedGraph:
    """A session whose first axis counts images. Threads: several may run it; runs take turns.

    Args:
        session: the graph; the owner closes it.
        axes: bounds of its named axes; unbounded where they are not given.
    """

    def __init__(self, session: Session, axes: Mapping[str, Axis]) -> None:
        self.session, self.axes = session, axes
        self._lock = threading.Lock()
        first = next(iter(session.inputs.values())).axes[0]
        bounds = Axis(first, first, first) if isinstance(first, int) else axes.get(first, Axis(1, 1, _MOST))
        self.least, self.most = bounds.min, bounds.max

    def batches(self, count: int) -> Iterator[slice]:
        """Cut `count` images into batches that fit: as many as the graph was exported for, at most 64."""
        size = min(self.most, max(self.least, _MOST))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def sides(self, name: str) -> tuple[int, int | None]:
        """The least and the most that both of the last two axes of an input may be; None where nothing bounds them."""
        axes = self.session.inputs[name].axes[-2:]
        bounds = [Axis(axis, axis, axis) if isinstance(axis, int) else self.axes.get(axis) for axis in axes]
        least = max((bound.min for bound in bounds if bound is not None), default=1)
        return least, min((bound.max for bound in bounds if bound is not None), default=None)

    def run(self, feed: Tensors) -> dict[str, Tensor]:
        """Every output for a feed of any number of images, as copies."""
        count = len(next(iter(feed.values())))
        made = [self._run({name: array[part] for name, array in feed.items()}) for part in self.batches(count)]
        return {name: np.concatenate([part[name] for part in made]) if len(made) > 1 else made[0][name] for name in made[0]}

    def _run(self, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch; one below the graph's range is filled up with copies, which are dropped again."""
        count = len(next(iter(feed.values())))
        filled = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        if count < self.least:
            filled = {name: np.resize(array, (self.least, *array.shape[1:])) for name, array in filled.items()}
        with self._lock:
            return {name: array[:count].copy() for name, array in self.session.run(filled).items()}
