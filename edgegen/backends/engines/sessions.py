"""A session on an engine of the cache: what opening a graph on TensorRT means."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from edgegen.backends.engines.store import EngineStore
from edgegen.backends.engines.wanted import wanted_here
from edgegen.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

    from edgegen.backends.trt.build import BuildOptions
    from edgegen.backends.trt.cuda import Gpu
    from edgegen.backends.trt.flavours import Flavour
    from edgegen.bundle import Bundle

_log = logging.getLogger("edgegen")
_Session = TypeVar("_Session")


def open_cached(
    bundle: "Bundle",
    graph: str,
    variant: str,
    flavour: "Flavour",
    build: "BuildOptions | None",
    gpu: "Gpu",
    start: "Callable[[bytes, BuildOptions, Path], _Session]",
    *,
    context: int | None = None,
) -> _Session:
    """Open a graph's engine: from the user's cache, else built in a process of its own and kept there, which takes a while.

    An engine of the cache that the library refuses is built once more.

    Args:
        bundle: an open bundle.
        graph: a name in its manifest.
        variant: of the graph.
        flavour: the library.
        build: what the engine is built for; if None, what `wanted_here` finds, else the defaults.
        gpu: what it runs on.
        start: makes the session of the serialized engine, what that is built for, and the file for kernels that the library
            compiles while it runs.
        context: entries of the cache that the engine is to be for, where `build` says nothing.

    Raises:
        BackendError: the engine cannot be built, or does not start.
    """
    store = EngineStore()
    want = wanted_here(bundle, graph, variant, flavour, gpu, store, build, context=context)
    found = store.get(want.key)
    if found is not None:
        try:
            return start(found.data, want.options, store.kernels(want.key))
        except BackendError as error:
            _log.warning("graph %s: its engine in the cache is not used, and built again: %s", graph, error)
            store.discard(want.key)
    _log.info("graph %s: its engine for %s on %s is being built: %s", graph, flavour.name, gpu.name, want.estimate)
    return start(want.obtain(store).data, want.options, store.kernels(want.key))
