"""The two libraries with TensorRT's API, as data: their modules are passed into everything, and asked what they have.

No version is ever compared: TensorRT 10.3 to 11 and TensorRT-RTX differ in names, which `hasattr` tells.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from edgegen.errors import BackendError, UnknownNameError


@dataclass(frozen=True)
class Flavour:
    """A library.

    Attributes:
        name: the backend's name.
        module: what is imported.
        extra: of edgegen: what installs what can be installed by pip.
        cure: how the library itself comes onto a machine: what to do to install it.
    """

    name: str
    module: str
    extra: str
    cure: str

    def load(self) -> ModuleType:
        """Import the library. BackendError, which says how to install it, where it is missing or broken."""
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name != self.module:
                raise self._broken(error) from error
            missing = f"backend {self.name!r} needs {self.module}, which is not installed"
            raise BackendError(f"{missing}; install it: {self.cure}") from error
        except (ImportError, OSError) as error:  # OSError: a shared library that the loader refuses
            raise self._broken(error) from error

    def version(self) -> str:
        """The library's version. BackendError where it is missing."""
        return str(self.load().__version__)

    def capabilities(self) -> tuple[int, ...] | None:
        """The compute capabilities that it builds engines for, such as 89; None where it takes the GPU that is there."""
        kinds = getattr(self.load(), "ComputeCapability", None)
        return None if kinds is None else tuple(int(name[2:]) for name in kinds.__members__ if name.startswith("SM"))

    def _broken(self, error: BaseException) -> BackendError:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        return BackendError(f"{self.module} is installed but cannot be imported ({line}); install it: {self.cure}")


FLAVOURS: Mapping[str, Flavour] = {
    flavour.name: flavour
    for flavour in (
        Flavour(
            "tensorrt",
            "tensorrt",
            "tensorrt",
            'pip install tensorrt "edgegen[tensorrt]"; on a Jetson it is part of JetPack (apt install python3-libnvinfer, and '
            'in a virtual environment with --system-site-packages: pip install "edgegen[tensorrt]")',
        ),
        Flavour("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", 'pip install "edgegen[tensorrt-rtx]"'),
    )
}


def flavour_of(name: str) -> Flavour:
    """The flavour of that name; UnknownNameError where there is none."""
    if name not in FLAVOURS:
        raise UnknownNameError("TensorRT flavour", name, FLAVOURS)
    return FLAVOURS[name]
