"""Which images a step learns from, and what randomness it has: functions of the seed and the step alone.

Nothing of either is kept between steps, so that a training that goes on is the one that never stopped.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.pipelines.images import PixelRange
from edgegen.train.data import Data
from edgegen.train.objective import Batch

MODULES, STEP, ORDER, FLIP, SHEET = range(5)  # what a stream of random numbers is for


def stream_seed(seed: int, purpose: int, step: int = 0, process: int = 0) -> int:
    """A seed for one purpose, step and process: their streams are independent (numpy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, purpose, step, process]).generate_state(1, np.uint64)[0])


def indices(seed: int, step: int, batch_size: int, count: int) -> NDArray[np.int64]:
    """The images of step number `step`, int64 [batch_size]: every epoch is a new permutation, and batches run across them."""
    begin = step * batch_size
    epochs = range(begin // count, (begin + batch_size - 1) // count + 1)
    skipped = begin - epochs[0] * count
    return np.concatenate([_order(seed, epoch, count) for epoch in epochs])[skipped : skipped + batch_size]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(stream_seed(seed, ORDER, epoch)).permutation(count).astype(np.int64)


class Batches:
    """The batches of one process.

    Args:
        data: all images.
        pixels: the numbers that the modules mean by black and white.
        seed: of the order, and of the mirroring.
        batch_size: over all processes.
        flip: mirror half of the images.
        process, processes: which of how many this one is.
    """

    def __init__(
        self,
        data: Data,
        pixels: PixelRange,
        *,
        seed: int,
        batch_size: int,
        flip: bool = False,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.data, self.pixels, self.seed, self.batch_size, self.flip = data, pixels, seed, batch_size, flip
        self.process, self.processes = process, processes

    def __call__(self, step: int, device: torch.device) -> Batch:
        """The batch of step number `step`, counted from 0."""
        chosen = indices(self.seed, step, self.batch_size, len(self.data))
        mirrored = np.random.default_rng(stream_seed(self.seed, FLIP, step)).random(self.batch_size) < 0.5 * self.flip
        own = slice(self.process * self.batch_size // self.processes, (self.process + 1) * self.batch_size // self.processes)
        chosen, mirrored = chosen[own], mirrored[own]
        pixels = self.data.images[chosen]  # a copy, which may be changed
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        labels = self.data.labels
        return _batch(pixels, None if labels is None else labels[chosen], self.pixels, device)


def in_order(data: Data, pixels: PixelRange, device: torch.device, size: int = 256) -> Iterator[Batch]:
    """Every image once, as it is, in batches of `size`; the last may be smaller."""
    for start in range(0, len(data), size):
        labels = None if data.labels is None else data.labels[start : start + size].copy()
        yield _batch(data.images[start : start + size], labels, pixels, device)


def _batch(images: NDArray[np.uint8], labels: NDArray[np.int64] | None, pixels: PixelRange, device: torch.device) -> Batch:
    numbers = torch.from_numpy(pixels.from_uint8(images)).to(device)
    return Batch(numbers, None if labels is None else torch.from_numpy(labels).to(device))
