"""The recorded answers of a PyTorch original: arrays in an uncompressed `.npz`, read as untrusted bytes."""

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import BundleError


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
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, array in vars(self).items():
                entry = io.BytesIO()
                np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), entry.getvalue())
        return target.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Reference":
        """Read untrusted bytes: nothing is allocated beyond their own size. BundleError where they are not a reference."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                arrays = {name: _read_array(archive, f"{name}.npy", len(data)) for name in cls.__dataclass_fields__}
        except (zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise BundleError(f"the proof's reference cannot be read: {error}") from error
        reference = cls(**arrays)
        _check_reference(reference)
        return reference


def _read_array(archive: zipfile.ZipFile, name: str, limit: int) -> NDArray[Any]:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
        raise ValueError(f"{name} is compressed or larger than its archive")
    content = io.BytesIO(archive.read(info))
    version = np.lib.format.read_magic(content)
    if version != (1, 0):
        raise ValueError(f"{name} has the npy format {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(content)
    left = info.file_size - content.tell()
    count = 1
    for size in shape:
        count *= size
    if fortran or dtype.hasobject or count * dtype.itemsize != left:
        raise ValueError(f"{name} does not hold what its header says")
    return np.frombuffer(content.getvalue(), dtype, count, content.tell()).reshape(shape)


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
