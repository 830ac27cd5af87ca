"""Which engine a graph needs on a device, and how it is had: from the cache, else built in a process of its own."""

import logging
import os
import shlex
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from edgegen.backends.engines import refusal
from edgegen.backends.engines.builder import Progress, build
from edgegen.backends.engines.driver import driver_version
from edgegen.backends.engines.entry import Engine
from edgegen.backends.engines.estimate import Estimate, estimate
from edgegen.backends.engines.key import EngineKey, GraphDigest, Target
from edgegen.backends.engines.refusal import RefusedError
from edgegen.backends.engines.store import Built, EngineStore
from edgegen.backends.engines.worker import BuildRequest
from edgegen.backends.trt.open import for_gpu
from edgegen.backends.trt.profiles import BuildOptions, settled

if TYPE_CHECKING:
    from edgegen.backends.trt.cuda import Gpu
    from edgegen.backends.trt.flavours import Flavour
    from edgegen.bundle import Bundle

_log = logging.getLogger("edgegen")


class Wanted(NamedTuple):
    """An engine that a graph needs: its name in the cache, how it is built, and what that may take."""

    key: EngineKey
    request: BuildRequest
    estimate: Estimate

    @property
    def options(self) -> BuildOptions:
        """What it is built for."""
        return BuildOptions.of(self.request.options)

    def obtain(
        self,
        store: EngineStore,
        *,
        progress: Progress | None = None,
        cancelled: threading.Event | None = None,
        again: bool = False,
        force: bool = False,
    ) -> Engine:
        """The engine: from `store`, else built and kept there. A refusal is remembered there, too.

        Args:
            store: the cache.
            progress: called with (phase, steps done, steps in all) while it is built.
            cancelled: when it is set, the build is given up.
            again: build even where the library refused it the last time.
            force: build even where memory will probably not do.

        Raises:
            RefusedError: the library refuses it, or (without `again`) did so the last time.
            BackendError: it cannot be built, or (without `force`) would probably run out of memory.
        """

        def make() -> Built:
            if not again and (reason := self.refused(store)) is not None:
                raise RefusedError(reason)
            if not force:
                self.estimate.check(self.request.graph)
            try:
                built = build(self.request, progress=progress, cancelled=cancelled, folder=store.root)
            except RefusedError as error:
                refusal.write(store, self.key, str(error))
                raise
            refusal.forget(store, self.key)
            return built

        def waiting(who: str) -> None:
            _log.info("graph %s: its engine is being built by %s; waiting for that", self.request.graph, who)
            if progress is not None:
                progress(f"waiting for {who}", 0, 0)

        return store.obtain(self.key, make, waiting=waiting)

    def refused(self, store: EngineStore) -> str | None:
        """Why the library refused it the last time, and what to do; None where it did not, or that is not known."""
        reason = refusal.read(store, self.key)
        if reason is None:
            return None
        command = build_command(self.request.flavour, self.request.bundle, self.options.cache_length)
        return f"{reason} (so it ended when it was tried; `{command}` tries again)"


def build_command(backend: str, bundle: str | os.PathLike[str], context: int | None) -> str:
    """What to type for the engines that a load with `context` looks for."""
    option = "" if context is None else f" --context {context}"
    return f"edgegen build --backend {backend}{option} {shlex.quote(os.fspath(bundle))}"


def wanted(
    bundle: "Bundle", graph: str, variant: str, flavour: "Flavour", target: Target, options: BuildOptions, device: int = 0
) -> Wanted:
    """The engine of one graph of an open bundle, by one library, for one target; `device` is the number of the GPU to build on.

    `options.compute_capabilities` is taken from the target. Raises BackendError where the library is missing.
    """
    described = bundle.manifest.graphs[graph]
    asked = replace(options, compute_capabilities=target.compute_capabilities)
    said = settled(described.variants[variant], described.axes, asked).as_dict()
    digest = GraphDigest.of(bundle, graph, variant)
    key = EngineKey(digest, flavour.name, flavour.version(), target, said)
    request = BuildRequest(str(bundle.path.absolute()), graph, variant, digest, flavour.name, said, device=device)
    return Wanted(key, request, estimate(bundle, graph, variant))


def wanted_here(
    bundle: "Bundle",
    graph: str,
    variant: str,
    flavour: "Flavour",
    gpu: "Gpu",
    store: EngineStore,
    asked: BuildOptions | None = None,
    *,
    context: int | None = None,
) -> Wanted:
    """The engine of one graph for the GPU of this machine.

    Where nobody says what it is to be built for (`asked`), it is the one of `store` that was built or used last: somebody has
    asked for that one, ahead of time. So `edgegen build --context 2048` holds until it is called with something else. With a
    `context` it is the last of those for just that many entries.
    """
    options = for_gpu(flavour, asked or BuildOptions(cache_length=context), gpu)
    want = wanted(bundle, graph, variant, flavour, target_of(options, gpu), options, gpu.number)
    length = None if context is None else want.options.cache_length
    there = store.latest(want.key, {} if context is None else {"cache_length": length}) if asked is None else None
    if there is None or there == want.key:
        return want
    return wanted(bundle, graph, variant, flavour, there.target, BuildOptions.of(there.options), gpu.number)


def target_of(options: BuildOptions, gpu: "Gpu") -> Target:
    """What an engine with these options, for this GPU, is bound to.

    Where the library is told compute capabilities (TensorRT-RTX), to these, whatever the driver: the engine is finished where
    it runs. Else to this very GPU under this driver.
    """
    if options.compute_capabilities:
        return Target(options.compute_capabilities)
    return Target(gpu=gpu.name, sm=gpu.sm, driver=f"{driver_version()} {gpu.driver}".strip(), cuda=gpu.runtime)
