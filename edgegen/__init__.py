"""Generative models on devices without a network: load a bundle, then generate, in the process of the application.

>>> import edgegen
>>> with edgegen.load("smollm2.bundle") as model:  # doctest: +SKIP
...     print(model.generate("Tell me a story.", max_new_tokens=50).text)
"""

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgegen.bundle import Bundle
    from edgegen.errors import BackendError, BundleError, EdgegenError, InputError
    from edgegen.runtime import load

# onnxruntime >= 1.29 writes a device id and a queue of events below the home directory and sends them. It reads this
# variable once, while it is imported: later is too late (probed, research note 0.3 of the neighbours).
_TELEMETRY = "ORT_DISABLE_TELEMETRY"

if "onnxruntime" in sys.modules and os.environ.get(_TELEMETRY) != "1":
    warnings.warn(
        f"onnxruntime was imported before edgegen and without {_TELEMETRY}=1: its telemetry may be on. "
        f"Import edgegen first, or set {_TELEMETRY}=1 in the environment.",
        RuntimeWarning,
        stacklevel=2,
    )
os.environ.setdefault(_TELEMETRY, "1")

__version__ = "0.1.0"
__all__ = ["BackendError", "Bundle", "BundleError", "EdgegenError", "InputError", "__version__", "load"]

_PLACES = {  # public name: the module that has it. Loaded on first use, so that `import edgegen` costs next to nothing.
    "BackendError": "edgegen.errors",
    "Bundle": "edgegen.bundle",
    "BundleError": "edgegen.errors",
    "EdgegenError": "edgegen.errors",
    "InputError": "edgegen.errors",
    "load": "edgegen.runtime",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
