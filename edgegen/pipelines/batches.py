"""Any number of images through a graph that was exported for some: split, filled up, and copied out once."""

import math
import threading
from collections.abc import Iterator, Mapping

import numpy as np

from edgegen.backends.base import Session
from edgegen.backends.memory import available_bytes
from edgegen.errors import InputError
from edgegen.tensors import Axis, Tensor, Tensors

MOST_AT_ONCE = 64  # rows of a run, of a graph that takes more or names no limit: memory grows with them, speed hardly
_TIMES = 3.5  # `row_bytes` is what PyTorch holds; onnxruntime took up to 3.3 times as much (see `edgegen.export.footprint`)
_SHARE = 0.5  # of the free memory that a run may take: results need some, and so do others
_ALWAYS_THERE = 1 << 28  # a run that takes less is made without a look at the memory, which takes longer than a small one


class BatchedGraph:
    """A session whose inputs all begin with the batch: any number of rows, in runs of sizes that were exported.

    A run takes `least` to `most` of them: the bounds of the batch, the upper one 64 at most unless the lower one is more; 1 to
    64 where the graph names none; and no more than half of the free memory holds, where `row_bytes` is known.
    Threads: several may use it; who runs `session` itself holds `lock` till its result is read.

    Args:
        session: the graph; the owner closes it.
        axes: bounds of its named axes; unbounded where they are not given.
        row_bytes: what a row takes at the usual sizes of the other axes (see `manifest.Graph`); 0: not known.
    """

    def __init__(self, session: Session, axes: Mapping[str, Axis] | None = None, row_bytes: int = 0) -> None:
        self.session, self.axes, self.lock = session, dict(axes or {}), threading.Lock()
        self.row_bytes = row_bytes
        bounds = self.bounds(next(iter(session.inputs)), 0) or Axis(1, 1, MOST_AT_ONCE)
        self.least = max(bounds.min, 1)
        self.most = min(bounds.max, max(self.least, MOST_AT_ONCE))

    def bounds(self, name: str, place: int) -> Axis | None:
        """Of one axis of an input; None where nothing bounds it."""
        axis = self.session.inputs[name].axes[place]
        return Axis(axis, axis, axis) if isinstance(axis, int) else self.axes.get(axis)

    def sides(self, name: str) -> tuple[int, int | None]:
        """The least and the most that both of the last two axes of an input may be; None where nothing bounds them."""
        bounds = [bound for bound in (self.bounds(name, place) for place in (-2, -1)) if bound is not None]
        least = max((bound.min for bound in bounds), default=1)
        return least, min((bound.max for bound in bounds), default=None)

    def size(self, asked: int | None = None) -> int:
        """How many rows run at once: as many as the graph and the memory take, or `asked` where those are fewer.

        Raises InputError below 1.
        """
        if asked is not None and asked < 1:
            raise InputError(f"batch_size is {asked}; it must be at least 1")
        return self._fitting(min(asked or self.most, self.most))

    def _fitting(self, rows: int) -> int:
        """As many of `rows` as the memory holds, but never fewer than the graph takes.

        Sides are counted as the longest that were exported: fewer rows at once hardly cost time, too many end the process.
        """
        batch = next(iter(self.session.inputs.values())).axes[:1]
        longer = math.prod(axis.max / axis.opt for name, axis in self.axes.items() if name not in batch and axis.opt)
        row_bytes = self.row_bytes * longer * _TIMES
        if rows * row_bytes <= _ALWAYS_THERE or (free := available_bytes()) is None:
            return rows
        return max(self.least, min(rows, int(free * _SHARE / row_bytes)))

    def batches(self, count: int, asked: int | None = None) -> Iterator[slice]:
        """Cut `count` rows into runs of the size that `size` says."""
        size = self.size(asked)
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def run(self, feed: Tensors, asked: int | None = None) -> dict[str, Tensor]:
        """Every output for a feed of any number of rows, in runs of the size that `size` says; the caller's own."""
        count = len(next(iter(feed.values())))
        made: dict[str, Tensor] = {}
        for part in self.batches(count, asked):
            some = self.filled({name: array[part] for name, array in feed.items()})
            with self.lock:
                for name, array in self.session.run(some).items():
                    if name not in made:
                        made[name] = np.empty((count, *array.shape[1:]), array.dtype)
                    made[name][part] = array[: part.stop - part.start]
        return made

    def filled(self, feed: Tensors) -> dict[str, Tensor]:
        """A feed as a run takes it: the same arrays where they fit, with copies of their rows where those are too few."""
        count = len(next(iter(feed.values())))
        rows = slice(None) if count >= self.least else np.arange(self.least) % count
        return {name: np.ascontiguousarray(array[rows]) for name, array in feed.items()}
