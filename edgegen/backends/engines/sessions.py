"""A session on an engine: what opening a graph on TensorRT means."""

import functools
import importlib.util
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgegen.backends.engines.store import EngineStore
from edgegen.backends.engines.wanted import Wanted, present_gpu, target_of, wanted
from edgegen.errors import BackendError

if TYPE_CHECKING:
    from edgegen.backends.base import Session
    from edgegen.backends.trt.build import BuildOptions
    from edgegen.bundle import Bundle

_log = logging.getLogger("edgegen")

ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")  # the best first


def engine_backend() -> str | None:
    """The TensorRT library that can be used on this machine, with its GPU; None where there is none."""
    for name in ENGINE_BACKENDS:
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            continue
        if (fault := engine_fault(name)) is None:
            return name
        _log.info("%s is installed but not used: %s", name, fault)
    return None


def engine_fault(name: str) -> str | None:
    """Why a TensorRT library cannot be used on this machine; None where it can. Tries the GPU."""
    from edgegen.backends.trt.flavours import flavour_of

    try:
        trt, gpu = flavour_of(name).load(), present_gpu()
    except BackendError as error:
        return " ".join(str(error).split())
    capabilities = getattr(trt, "ComputeCapability", None)  # where it is named, others are not supported
    if capabilities is not None and f"SM{gpu.sm}" not in capabilities.__members__:
        return f"it has no kernels for SM {gpu.sm} ({gpu.name})"
    return None


def wanted_here(backend: str, bundle: "Bundle", graph: str, variant: str, options: "BuildOptions | None" = None) -> Wanted:
    """The engine of a graph for the GPU of this machine. BackendError where the library or the GPU is missing."""
    from edgegen.backends.trt.build import BuildOptions
    from edgegen.backends.trt.flavours import flavour_of

    flavour = flavour_of(backend)
    return wanted(bundle, graph, variant, flavour, target_of(flavour, present_gpu()), options or BuildOptions())


def open_engine(
    backend: str,
    bundle: "Bundle",
    graph: str,
    variant: str,
    *,
    options: "BuildOptions | None" = None,
    store: EngineStore | None = None,
    cancelled: threading.Event | None = None,
    **run: Any,
) -> "Session":
    """Open a graph on a TensorRT library: its engine comes from the cache, or is built first, which takes a while.

    Args:
        backend: a name of `ENGINE_BACKENDS`.
        bundle: an open bundle.
        graph, variant: names in its manifest.
        options: of the build.
        store: the cache; the user's if None.
        cancelled: when it is set, a build is given up.
        run: passed to `TrtSession`.

    Raises:
        BackendError: the library or the GPU is missing, or refuses the graph.
    """
    want, kept = wanted_here(backend, bundle, graph, variant, options), store or EngineStore()
    start = functools.partial(_start, want, bundle, options, run)
    found = kept.get(want.key)
    if found is not None:
        try:
            return start(found.data)
        except BackendError as error:
            _log.warning("graph %s: its engine is not used, and built again: %s", graph, error)
            kept.discard(want.key)
    _log.info("graph %s: building its engine for %s: %s", graph, backend, want.estimate)
    return start(want.obtain(kept, cancelled=cancelled).data)


def _start(want: Wanted, bundle: "Bundle", options: "BuildOptions | None", run: dict[str, Any], engine: bytes) -> "Session":
    from edgegen.backends.trt.build import BuildOptions
    from edgegen.backends.trt.flavours import flavour_of
    from edgegen.backends.trt.session import TrtSession

    request = want.request
    built = replace(options or BuildOptions(), compute_capabilities=want.key.target.compute_capabilities)
    files = bundle.graph(request.graph, request.variant)
    session: Session = TrtSession(engine, flavour_of(request.flavour), files, built, **run)
    return session
