"""Whether this machine has a GPU that TensorRT can use: asked before TensorRT is chosen."""

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


def why_not(flavour: str) -> str | None:
    """Why TensorRT of that flavour cannot run here; None where it can. Imports it only where there is a GPU at all."""
    if why := why_no_gpu():
        return f"no GPU can be used: {why}"
    from edgegen.backends.trt.cuda import Cuda, load_runtime
    from edgegen.backends.trt.flavours import flavour_of

    try:
        gpu, known = Cuda(load_runtime()).gpu(), flavour_of(flavour).capabilities()
    except EdgegenError as error:
        return str(error)
    if known is not None and gpu.sm not in known:
        return f"{gpu.name} is SM {gpu.sm}, and it supports SM {', '.join(map(str, known))}"
    return None
