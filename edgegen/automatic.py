"""`backend="auto"` on a machine with a GPU: engines where they are there, another backend while they are built.

Before a request runs on engines, what they answer is held to the bundle's proof, once for each engine and device.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgegen.backends import AUTO, choose, too_old, variant_for
from edgegen.backends.engines import verdict
from edgegen.backends.engines.builder import CancelledError
from edgegen.backends.engines.store import EngineStore
from edgegen.backends.engines.verdict import Verdict
from edgegen.backends.engines.wanted import Wanted, build_command, wanted_here
from edgegen.backends.trt.flavours import flavour_of
from edgegen.backends.trt.open import gpu_of
from edgegen.bundle import Bundle
from edgegen.errors import BackendError, BundleError, EdgegenError, ProofError
from edgegen.proof import replay_bundle
from edgegen.switching import Switch, SwitchingPipeline

_log = logging.getLogger("edgegen")

OpenOn = Callable[[str], Any]  # a backend's name -> the bundle's pipeline


def load_automatically(
    path: Path,
    better: str,
    open_on: OpenOn,
    advise: Callable[[str], None] | None = None,
    *,
    context: int | None = None,
) -> Any:
    """The pipeline of a bundle on engines, where the cache has proven ones of all graphs.

    Where it has not, the next best backend answers while they are built and proven; where there is no other, this waits for
    them.

    Args:
        path: of the bundle.
        better: the backend that runs engines.
        open_on: opens the bundle on a backend.
        advise: where it is given nothing is built, and it is called with what to do to have engines. Those that are there are
            proven now, once.
        context: entries of a language model's cache that `open_on` opens it for, and engines are for.

    Raises:
        BackendError: the bundle runs on no backend of this machine.
        BundleError: it is damaged, or not to be trusted.
    """
    try:
        other = choose(AUTO, engines=False)
    except BackendError:
        _log.info("there is nothing beside %s: its engines are built first", better)
        return open_on(better)
    with Bundle.open(path) as bundle:
        manifest, known = bundle.manifest, _known(bundle, better, context)
        if known == "unknown" and advise is not None:
            known = _proven_now(bundle, better, context)
    if known == "good":
        try:
            return open_on(better)
        except BackendError as error:
            known = str(error)
    first = open_on(other)
    if known == "unknown" and advise is not None:
        advise(f"{path.name} runs on {other}; `{build_command(better, path, context)}` once makes engines for {better}")
        return first
    if known != "unknown":
        _log.warning("requests run on %s; %s: %s", other, better, known)
        return first

    def prepare(cancelled: threading.Event) -> Any:
        with Bundle.open(path) as bundle:
            if bundle.manifest != manifest:
                raise BundleError(f"{path} was replaced; load it again")
            _make_ready(bundle, better, context, cancelled)
        return open_on(better)

    return SwitchingPipeline(Switch(first, other, better, prepare))


def _known(bundle: Bundle, backend: str, context: int | None) -> str:
    """What the cache knows of the engines of a bundle: "good", "unknown", or what was wrong with one."""
    store = EngineStore()
    try:
        for graph in bundle.manifest.graphs:
            if (reason := too_old(backend, bundle, graph)) is not None:
                return reason
        device = verdict.device_of(gpu_of(flavour_of(backend), 0))
        wants = [_wanted(bundle, backend, graph, context) for graph in bundle.manifest.graphs]
        verdicts = [verdict.read(store, want, device) for want in wants]
        refusals = [reason for want in wants if (reason := want.refused(store)) is not None]
    except EdgegenError as error:
        return str(error)
    wrong = refusals + [one.reason for one in verdicts if one is not None and one.reason]
    return wrong[0] if wrong else "unknown" if None in verdicts else "good"


def _proven_now(bundle: Bundle, backend: str, context: int | None) -> str:
    """As `_known`, when the engines have been held to the proof; still "unknown" where one is not in the cache."""
    store = EngineStore()
    try:
        if any(store.get(_wanted(bundle, backend, graph, context).key) is None for graph in bundle.manifest.graphs):
            return "unknown"
        _make_ready(bundle, backend, context, threading.Event())
    except EdgegenError as error:
        return " ".join(str(error).split())
    return "good"


def _make_ready(bundle: Bundle, backend: str, context: int | None, cancelled: threading.Event) -> None:
    """Build the engines that the cache lacks, and hold all of them to the proof.

    Raises ProofError where they answer something else, and any error of a build.
    """
    store, engines = EngineStore(), []
    for graph in bundle.manifest.graphs:
        want = _wanted(bundle, backend, graph, context)
        engines.append((want, want.obtain(store, cancelled=cancelled).record.sha256))
    if cancelled.is_set():
        raise CancelledError("it is not wanted any more")
    report = replay_bundle(bundle, backend, context=context)
    reason = "" if report.passed else f"its answers are not those of the proof: {' '.join(' '.join(report.lines()).split())}"
    device = verdict.device_of(gpu_of(flavour_of(backend), 0))
    for want, digest in engines:
        verdict.write(store, want, Verdict(digest, device, reason))
    if reason:
        raise ProofError(reason)


def _wanted(bundle: Bundle, backend: str, graph: str, context: int | None = None) -> Wanted:
    flavour, variant = flavour_of(backend), variant_for(backend, bundle, graph)
    return wanted_here(bundle, graph, variant, flavour, gpu_of(flavour, 0), EngineStore(), context=context)
