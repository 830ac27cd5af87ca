"""Whether this machine has a GPU that TensorRT can use: asked before TensorRT is chosen, and without importing it."""

import importlib.util

from edgegen.errors import EdgegenError

_BINDINGS = "cuda"  # of the distribution cuda-bindings; the module that holds the rest, and imports nothing


def why_no_gpu() -> str | None:
    """Why no GPU can be used; None where one can. Loads the driver's library, where there is one, but makes no context."""
    if importlib.util.find_spec(_BINDINGS) is None:
        return "cuda-bindings is not installed"
    from edgegen.backends.trt.cuda import Cuda, load_runtime

    try:
        Cuda(load_runtime())
    except EdgegenError as error:
        return str(error)
    return None
