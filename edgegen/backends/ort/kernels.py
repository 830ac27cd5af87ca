"""edgegen's own CPU kernels for ONNX Runtime: where they are, and which instruction set they use.

`edgegen/native` has their source and says how they work; `kernel_nodes` gives them nodes of a graph.
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import NamedTuple

from edgegen.errors import BackendError

VARIABLE = "EDGEGEN_KERNELS"  # "off", or the name of an instruction set

_LIBRARY = Path(__file__).parents[2] / "native" / "libedgegen_kernels.so"


class Kernels(NamedTuple):
    """The kernels' shared library and the instruction set that it will use here."""

    path: Path
    instructions: str


@functools.cache
def kernels() -> Kernels | None:
    """The kernels, or None where they were not built, are switched off, or the processor has none of their instruction sets.

    Raises:
        BackendError: the environment asks for an instruction set that is not there.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off" or not _LIBRARY.exists():
        return None
    try:
        choose = ctypes.CDLL(str(_LIBRARY)).edgegen_kernels_choose
    except OSError:  # built for another machine
        return None
    choose.argtypes, choose.restype = [ctypes.c_char_p], ctypes.c_char_p
    chosen = choose(wanted.encode())
    if chosen is None and wanted:
        raise BackendError(f'{VARIABLE} is {wanted!r}, which this machine does not have; unset it, or set it to "off"')
    return Kernels(_LIBRARY, chosen.decode()) if chosen else None
