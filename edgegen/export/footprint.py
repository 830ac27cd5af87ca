"""How much memory a run of a graph takes for one row of its batch: what a device cuts batches by."""

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


def row_bytes(graph: str, part: Part, axes: Mapping[str, Axis]) -> int:
    """The most bytes of tensors that are alive at once in a run of the usual sizes, for each row of its batch.

    Of the module's own operators, in float32, without what a single operator needs in passing: an inference library stays near
    it. 0 for an ONNX file, whose operators nobody sees.
    """
    if isinstance(part.module, Graphed):
        return 0
    rows = axes["batch"].min if "batch" in axes else 1
    arguments = [example(spec, axes, seed, {"batch": rows}) for seed, spec in enumerate(part.inputs)]
    alive = _Alive([*part.module.parameters(), *part.module.buffers(), *arguments])
    with torch.no_grad(), running(graph, part.module), alive:
        part.module(*arguments)
    return -(-(alive.peak + sum(tensor.nbytes for tensor in arguments)) // rows)
