"""Arrays in an uncompressed `.npz`: written the same every time, read as untrusted bytes."""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import BundleError

_MAX_ARRAYS = 4096


def write_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An uncompressed `.npz` in the order of `arrays`; the same arrays give the same bytes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), entry.getvalue())
    return target.getvalue()


def read_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """Read untrusted bytes, in the order of the file: nothing is allocated beyond their own size.

    Raises:
        BundleError: they are no `.npz`, or hold compressed arrays, pickles, or less than their headers say.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) > _MAX_ARRAYS:
                raise ValueError(f"{len(names)} arrays; at most {_MAX_ARRAYS} are read")
            return {name.removesuffix(".npy"): _read_array(archive, name, len(data)) for name in names}
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"the proof's reference cannot be read: {error}") from error


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
