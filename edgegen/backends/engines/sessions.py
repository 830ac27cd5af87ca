"""A session on an engine of the cache: what opening a graph on TensorRT means."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from edgegen.backends.engines.store import EngineStore
from edgegen.backends.engines.wanted import target_of, wanted
from edgegen.errors import BackendError

if TYPE_CHECKING:
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
    options: "BuildOptions",
    gpu: "Gpu",
    start: Callable[[bytes], _Session],
) -> _Session:
    """Open a graph's engine: from the user's cache, else built in a process of its own and kept there, which takes a while.

    An engine of the cache that the library refuses is built once more.

    Args:
        bundle: an open bundle.
        graph: a name in its manifest.
        variant: of the graph.
        flavour: the library.
        options: what the engine is built for.
        gpu: what it runs on.
        start: makes the session of the serialized engine.

    Raises:
        BackendError: the engine cannot be built, or does not start.
    """
    want, store = wanted(bundle, graph, variant, flavour, target_of(options, gpu), options), EngineStore()
    found = store.get(want.key)
    if found is not None:
        try:
            return start(found.data)
        except BackendError as error:
            _log.warning("graph %s: its engine in the cache is not used, and built again: %s", graph, error)
            store.discard(want.key)
    _log.info("graph %s: its engine for %s on %s is being built: %s", graph, flavour.name, gpu.name, want.estimate)
    return start(want.obtain(store).data)
