"""The recorded answers of a PyTorch original: arrays in an uncompressed `.npz`, read as untrusted bytes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import BundleError
from edgegen.proof.npz import read_npz, write_npz


@dataclass(frozen=True)
class Reference:
    """What PyTorch answered. Positions are those of the whole sequence prompt + forced + second + greedy, in order.

    prompt, forced, second, greedy: int64 [token]; columns: int32 [position, column]; logits: float32 [position, column];
    logsumexp, gap: float32 [position], gap being the distance of the best two logits; cache_positions: int64 [entry];
    keys, values: float32 [layer, entry, kv_head, head_dim], of the cache after the second prefill.
    """

    prompt: NDArray[np.int64]
    forced: NDArray[np.int64]
    second: NDArray[np.int64]
    greedy: NDArray[np.int64]
    columns: NDArray[np.int32]
    logits: NDArray[np.float32]
    logsumexp: NDArray[np.float32]
    gap: NDArray[np.float32]
    cache_positions: NDArray[np.int64]
    keys: NDArray[np.float32]
    values: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """An uncompressed `.npz`, the same bytes every time."""
        return write_npz(vars(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Reference":
        """Read untrusted bytes: nothing is allocated beyond their own size. BundleError where they are not a reference."""
        arrays = read_npz(data)
        if missing := cls.__dataclass_fields__.keys() - arrays.keys():
            raise BundleError(f"the proof's reference cannot be read: it lacks {', '.join(sorted(missing))}")
        reference = cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        _check_reference(reference)
        return reference


def _check_reference(r: Reference) -> None:
    ids = (r.prompt, r.forced, r.second, r.greedy)
    positions = sum(len(part) for part in ids)
    entries = len(r.cache_positions)
    right = (
        all(part.ndim == 1 and part.dtype == np.int64 and len(part) for part in ids)
        and r.columns.ndim == 2
        and r.columns.dtype == np.int32
        and r.logits.shape == r.columns.shape
        and len(r.columns) == positions
        and r.logsumexp.shape == r.gap.shape == (positions,)
        and r.keys.ndim == 4
        and r.keys.shape == r.values.shape
        and r.keys.shape[1] == entries > 0
        and all(array.dtype == np.float32 for array in (r.logits, r.logsumexp, r.gap, r.keys, r.values))
        and int(r.columns.min(initial=0)) >= 0
        and int(r.cache_positions.min()) >= 0
        and int(r.cache_positions.max()) < positions - len(r.greedy)
    )
    if not right:
        raise BundleError("the proof's reference does not fit together; export the model again")
