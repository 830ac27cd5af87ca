"""All engines of a bundle, built before anyone asks for them: what `edgegen build` does."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgegen.backends import variant_for
from edgegen.backends.engines.entry import Engine
from edgegen.backends.engines.estimate import Estimate
from edgegen.backends.engines.key import Target
from edgegen.backends.engines.portable import check_place, write_portable
from edgegen.backends.engines.store import EngineStore
from edgegen.backends.engines.wanted import Wanted, target_of, wanted
from edgegen.backends.trt.build import BuildOptions
from edgegen.backends.trt.cuda import Cuda, load_runtime
from edgegen.backends.trt.flavours import Flavour, flavour_of
from edgegen.backends.trt.open import for_gpu
from edgegen.backends.trt.profiles import plan
from edgegen.bundle import Bundle
from edgegen.errors import BackendError, InputError, UnknownNameError

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
        return f"{self.graph} for {self._target()}: {record.size_bytes / 1e6:.1f} MB, {how}, {self.place}"

    @property
    def name(self) -> str:
        """The graph, and for what GPU: decoder.sm89."""
        return f"{self.graph}.sm{self._sm()}"

    def _sm(self) -> int:
        target = self.engine.record.key.target
        return target.sm or target.compute_capabilities[0]

    def _target(self) -> str:
        gpu = self.engine.record.key.target.gpu
        return f"SM {self._sm()}" + (f" ({gpu})" if gpu else "")

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        record = self.engine.record
        return {
            "graph": self.graph,
            "sm": self._sm(),
            "gpu": record.key.target.gpu,
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
    engines: tuple[GraphBuild, ...]

    def lines(self) -> list[str]:
        """For people."""
        return [f"{self.bundle}: engines of {self.backend} {self.version}", *(one.line() for one in self.engines)]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        facts = {"bundle": self.bundle, "backend": self.backend, "version": self.version}
        return {**facts, "engines": [one.as_dict() for one in self.engines]}


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
    asked = BuildOptions(cache_length=context, prefill=BuildOptions.prefill if prefill is None else prefill)
    targets = _targets(flavour, sms, asked)
    if folder is None:
        kept.prepare()
    built = []
    with Bundle.open(path) as bundle:
        chosen = [(graph, variant_for(backend, bundle, graph)) for graph in _chosen(bundle, graphs)]
        _check(bundle, chosen, asked, is_told=context is not None or prefill is not None)
        for graph, variant in chosen:
            for target, options in targets:
                want = wanted(bundle, graph, variant, flavour, target, options)
                one = _one(want, kept, force, began, progress)
                if folder is None and one.engine.is_new and not one.place.exists():
                    kept.keep(one.engine)  # says why it cannot be kept: then all was for nothing
                built.append(one)
        if folder is not None:
            write_portable(folder, bundle.manifest.name, {one.name: one.engine for one in built})
    return BuildReport(str(path), backend, flavour.version(), tuple(built))


def _one(want: Wanted, store: EngineStore, force: bool, began: Began | None, progress: Steps | None) -> GraphBuild:
    graph, engine = want.request.graph, store.get(want.key)
    if engine is None:
        if began is not None:
            began(graph, want.estimate)
        told = None if progress is None else functools.partial(progress, graph)
        engine = want.obtain(store, progress=told, again=True, force=force)
    return GraphBuild(graph, engine, store.path(want.key), want.estimate)


def _chosen(bundle: Bundle, graphs: Sequence[str]) -> list[str]:
    known = bundle.manifest.graphs
    for name in graphs:
        if name not in known:
            raise UnknownNameError("graph", name, known)
    return list(graphs or known)


def _check(bundle: Bundle, chosen: Sequence[tuple[str, str]], asked: BuildOptions, *, is_told: bool) -> None:
    """Refuse, before anything is built, what no graph has, or was not exported for."""
    described = [(bundle.manifest.graphs[graph], variant) for graph, variant in chosen]
    if is_told and not any(graph.variants[variant].state for graph, variant in described):
        raise InputError(f"{bundle.path} keeps no cache: --context and --prefill are for language models; leave them out")
    for graph, variant in described:
        plan(graph.variants[variant], graph.axes, asked)


def _targets(flavour: Flavour, sms: Sequence[int], asked: BuildOptions) -> list[tuple[Target, BuildOptions]]:
    """What to build for: one engine for each compute capability, as the device will look for it in the cache.

    Raises InputError where the library cannot build for these, BackendError where it needs a GPU, and there is none.
    """
    if sms and flavour.name != "tensorrt-rtx":
        raise InputError(
            f"{flavour.name} builds for the GPU that is present, and for no other: leave --target and --sm out and run the "
            "command on the device, or build with --backend tensorrt-rtx"
        )
    known = flavour.capabilities() if sms else None
    if known is not None and (refused := sorted(set(sms).difference(known))):
        raise InputError(
            f"{flavour.name} {flavour.version()} builds for SM {', '.join(map(str, known))}, not for SM "
            f"{', '.join(map(str, refused))}: copy the bundle to the device and build there, with --backend tensorrt"
        )
    if sms:
        return [(Target((sm,)), replace(asked, compute_capabilities=(sm,))) for sm in sorted(set(sms))]
    try:
        flavour.load()  # a missing library is said before a missing GPU
        gpu = Cuda(load_runtime()).gpu()
        options = for_gpu(flavour, asked, gpu)
    except BackendError as error:
        cure = (
            "name the device that the engine is for: --target rtx-4090, or --sm 89"
            if flavour.name == "tensorrt-rtx"
            else "it builds on, and for, the GPU that is present: copy the bundle to the device and run the same command "
            "there, or build here with --backend tensorrt-rtx --target DEVICE, which needs no GPU"
        )
        raise BackendError(f"{flavour.name} cannot build for a GPU of this machine ({error}); {cure}") from error
    return [(target_of(options, gpu), options)]
