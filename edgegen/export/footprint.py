"""How much memory a run of a graph takes for one row of its batch: what a device cuts batches by.

One number of the module, cheap to use: what PyTorch holds, not what an inference library makes of it. A device multiplies it by
the most that was measured (`edgegen.pipelines.batches`). What one backend takes at any sizes is predicted from the graph,
operator by operator, by `edgegen.planner`: far better, and too slow to ask before each run.

Measured, as a multiple of it, with onnxruntime 1.32 on the CPU (2 threads, x86-64): the peak of a process beyond what it has
when the session is loaded, after 2 or 3 runs, at the largest of the batches 1, 4, 8 and 16 that was tried (VAE 512x512: 1). The
first run takes 0.9 to 1.7 times as much; the second adds a block for the same values, laid out by what the first one asked for;
a third adds nothing.

    ======================== ============ =================
    graph                    with kernels onnxruntime alone
    ======================== ============ =================
    DCGAN generator          2.2          1.5
    VAE 128x128, decoder     2.6          3.3
    VAE 128x128, encoder     1.7          2.8
    VAE 512x512, decoder     0.5          2.1
    U-Net 32x32              2.5          2.6
    StyleGAN2 synthesis      2.1          1.7
    ESRGAN-slim              1.1          0.8
    ======================== ============ =================

At a batch of 1, graphs of a few megabytes take up to 3.9 times as much. The decoder at 512x512 has attention between 16384
pixels: onnxruntime's own keeps a table of scores for it, edgegen's kernels do not. The table is counted for all.
"""

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgegen.export.noise import running
from edgegen.export.parts import Graphed, Part, example
from edgegen.tensors import Axis


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of what operators make, for as long as it lives; `peak` is the most that there was at once."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}  # a view of them takes nothing

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in function.name():
            self.peak = max(self.peak, self._now + _scores_bytes(*args[:2]))
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size_bytes = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._now += size_bytes
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, key, size_bytes)

    def _free(self, key: int, size_bytes: int) -> None:
        self._seen.discard(key)
        self._now -= size_bytes


def _scores_bytes(query: torch.Tensor, key: torch.Tensor) -> int:
    """The table of an attention, which PyTorch's own never has as a whole: for each query, a number for each key."""
    return math.prod(query.shape[:-1]) * key.shape[-2] * query.element_size()


def row_bytes(graph: str, part: Part, axes: Mapping[str, Axis]) -> int:
    """The most bytes of tensors that are alive at once in a run of the usual sizes, for each row of its batch.

    Of the module's own operators, in float32, with the scores of an attention, without all else that a single operator needs in
    passing. 0 for an ONNX file, whose operators nobody sees.
    """
    if isinstance(part.module, Graphed):
        return 0
    rows = axes["batch"].min if "batch" in axes else 1
    arguments = [example(spec, axes, seed, {"batch": rows}) for seed, spec in enumerate(part.inputs)]
    alive = _Alive([*part.module.parameters(), *part.module.buffers(), *arguments])
    with torch.no_grad(), running(graph, part.module), alive:
        part.module(*arguments)
    return -(-(alive.peak + sum(tensor.nbytes for tensor in arguments)) // rows)
