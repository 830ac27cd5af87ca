"""All engines of a bundle, built before anyone asks for them: what `edgegen build` does."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.backends import BACKENDS, variant_for
from edgegen.backends.engines.entry import Engine
from edgegen.backends.engines.estimate import Estimate
from edgegen.backends.engines.key import Target
from edgegen.backends.engines.portable import check_place, write_portable
from edgegen.backends.engines.store import EngineStore
from edgegen.backends.engines.wanted import Wanted, present_gpu, target_of, wanted
from edgegen.backends.trt.build import BuildOptions
from edgegen.backends.trt.flavours import flavour_of
from edgegen.bundle import Bundle
from edgegen.errors import BackendError, InputError, UnknownNameError

if TYPE_CHECKING:
    from edgegen.backends.trt.flavours import Flavour

Began = Callable[[str, Estimate], None]
Steps = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class GraphBuild:
    """One engine, where it is, and what it was expected to take."""

    graph: str
    engine: Engine
    place: Path
    estimate: Estimate

    def line(self) -> str:
        """For people."""
        record = self.engine.record
        how = (
            f"{record.build_s:.1f} s, peak {record.peak_memory_bytes >> 20} MB (expected {self.estimate})"
            if self.engine.is_new
            else "was built before"
        )
        return f"{self.graph}: {record.size_bytes / 1e6:.1f} MB, {how}, key {record.key.digest[:12]}, {self.place}"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        record = self.engine.record
        return {
            "graph": self.graph,
            "size_bytes": record.size_bytes,
            "sha256": record.sha256,
            "seconds": record.build_s,
            "peak_memory_bytes": record.peak_memory_bytes,
            "is_new": self.engine.is_new,
            "key": record.key.digest,
            "place": str(self.place),
            "estimate": self.estimate.as_dict(),
        }


@dataclass(frozen=True)
class BuildReport:
    """What was built."""

    bundle: str
    backend: str
    version: str
    target: Target
    graphs: tuple[GraphBuild, ...]

    def lines(self) -> list[str]:
        """For people."""
        sms = self.target.compute_capabilities
        where = f"SM {', '.join(map(str, sms))}" if sms else f"{self.target.gpu} (SM {self.target.sm})"
        return [f"{self.bundle}: engines of {self.backend} {self.version} for {where}", *(one.line() for one in self.graphs)]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "bundle": self.bundle,
            "backend": self.backend,
            "version": self.version,
            "compute_capabilities": list(self.target.compute_capabilities),
            "gpu": self.target.gpu,
            "graphs": [one.as_dict() for one in self.graphs],
        }


def build_bundle(
    path: str | os.PathLike[str],
    backend: str,
    *,
    sms: Sequence[int] = (),
    graphs: Sequence[str] = (),
    context: int | None = None,
    prefill: int | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    store: EngineStore | None = None,
    began: Began | None = None,
    progress: Steps | None = None,
) -> BuildReport:
    """Build the engines of a bundle, or take those that are there.

    Args:
        path: the bundle.
        backend: "tensorrt-rtx", which needs no GPU, or "tensorrt", which builds on the GPU that it is for.
        sms: compute capabilities to build for, such as 89; that of the present GPU if empty.
        graphs: names; all of the bundle if empty.
        context: entries of a language model's cache; the longest that was exported if None.
        prefill: the most tokens of a prompt that run at once; see `BuildOptions`.
        output: a folder to write the engines to, besides the cache, with their digests.
        force: build where memory will probably not do, and replace what is in `output`.
        store: the cache; the user's if None.
        began: called before each engine that is built with the graph's name and what it may take.
        progress: called with (graph, phase, steps done, steps in all).

    Raises:
        InputError, UnknownNameError: an option that the bundle or the backend does not have.
        BackendError: the library is missing, no GPU is there that is needed, or an engine cannot be built or kept.
        BundleError: the bundle is damaged.
    """
    flavour, kept = flavour_of(backend), store or EngineStore()
    folder = None if output is None else check_place(output, backend, force=force)
    target = _target(flavour, sms)
    options = BuildOptions(cache_length=context, **({} if prefill is None else {"prefill": prefill}))
    built = []
    with Bundle.open(path) as bundle:
        for graph in _chosen(bundle, graphs):
            want = wanted(bundle, graph, engine_variant(backend, bundle, graph), flavour, target, options)
            built.append(_one(want, kept, force, began, progress))
        report = BuildReport(str(path), backend, flavour.version(), target, tuple(built))
        if folder is not None:
            write_portable(folder, bundle.manifest.name, {one.graph: one.engine for one in built})
    return report


def engine_variant(backend: str, bundle: "Bundle", graph: str) -> str:
    """The variant of a graph that an engine is built of."""
    return variant_for(backend, bundle, graph) if backend in BACKENDS else "canonical"


def _one(want: Wanted, store: EngineStore, force: bool, began: Began | None, progress: Steps | None) -> GraphBuild:
    graph, engine = want.request.graph, store.get(want.key)
    if engine is None:
        if began is not None:
            began(graph, want.estimate)
        told = None if progress is None else functools.partial(progress, graph)
        engine = want.obtain(store, progress=told, force=force)
    return GraphBuild(graph, engine, store.path(want.key), want.estimate)


def _chosen(bundle: Bundle, graphs: Sequence[str]) -> list[str]:
    known = bundle.manifest.graphs
    for name in graphs:
        if name not in known:
            raise UnknownNameError("graph", name, known)
    return list(graphs or known)


def _target(flavour: "Flavour", sms: Sequence[int]) -> Target:
    """What to build for. BackendError where that needs a GPU, and there is none."""
    if flavour.name == "tensorrt-rtx" and sms:
        return Target(tuple(sorted(set(sms))))
    if sms:
        raise InputError(
            f"{flavour.name} builds for the GPU that is present, and for no other: leave --target and --sm out and run the "
            "command on the device, or build with --backend tensorrt-rtx"
        )
    try:
        flavour.load()
        return target_of(flavour, present_gpu())
    except BackendError as error:
        cure = (
            "name the device that the engine is for: --target rtx-4090, or --sm 89"
            if flavour.name == "tensorrt-rtx"
            else "it builds on, and for, the GPU that is present: copy the bundle to the device and run the same command there, "
            "or build here with --backend tensorrt-rtx --target DEVICE, which needs no GPU"
        )
        raise BackendError(f"{flavour.name} cannot build for a GPU of this machine: {error}; {cure}") from error
