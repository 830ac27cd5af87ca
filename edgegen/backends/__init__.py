"""Inference libraries: a table of places, and the choice among them. Nothing is imported before it is used."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from edgegen.errors import BackendError, UnknownNameError

if TYPE_CHECKING:
    from edgegen.backends.base import Session
    from edgegen.bundle import Bundle

AUTO = "auto"


class Backend(NamedTuple):
    """Where a backend's session class is, what it needs, and which variants of a graph it runs, the best first."""

    place: str
    library: str
    extra: str
    variants: tuple[str, ...]


BACKENDS: Mapping[str, Backend] = {  # the best first: `auto` takes the first whose library is there
    "onnxruntime": Backend("edgegen.backends.ort:OrtSession", "onnxruntime", "cpu", ("onnxruntime", "canonical")),
}


def present_backends() -> list[str]:
    """The backends whose library is installed, the best first. Imports none of them."""
    return [name for name, backend in BACKENDS.items() if importlib.util.find_spec(backend.library) is not None]


def choose(name: str = AUTO) -> str:
    """The backend that `name` means on this machine.

    Raises UnknownNameError for a name that no backend has, BackendError where its library, or any for `auto`, is missing.
    """
    present = present_backends()
    if name == AUTO:
        if not present:
            raise BackendError(f"no inference library is installed; {_cure(next(iter(BACKENDS.values())))}")
        return present[0]
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, [AUTO, *BACKENDS])
    if name not in present:
        raise BackendError(f"backend {name!r} needs {BACKENDS[name].library}, which is not installed; {_cure(BACKENDS[name])}")
    return name


def variant_for(backend: str, bundle: "Bundle", graph: str) -> str:
    """The variant of a graph that `backend` runs: the best that the bundle has, at last the canonical one."""
    graphs = bundle.manifest.graphs
    if graph not in graphs:
        raise UnknownNameError("graph", graph, graphs)
    return next(name for name in BACKENDS[backend].variants if name in graphs[graph].variants or name == "canonical")


def open_session(
    backend: str, bundle: "Bundle", graph: str, *, variant: str | None = None, threads: int | None = None, **options: Any
) -> "Session":
    """Open one graph of `bundle` on `backend`, in the variant that suits it best.

    Args:
        backend: a name of `BACKENDS`, or "auto".
        bundle: an open bundle; it must stay open as long as the session.
        graph: a name in `bundle.manifest.graphs`.
        variant: a variant of the graph; the one that suits the backend best if None.
        threads: CPU threads; one for each usable physical core if None.
        options: passed to the session's class.

    Raises:
        UnknownNameError: no such backend or graph.
        BackendError: the library is missing, or refuses the graph.
        BundleError: the graph's files are not what the manifest says.
    """
    chosen = choose(backend)
    files = bundle.graph(graph, variant or variant_for(chosen, bundle, graph))
    session: Session = _load(BACKENDS[chosen])(
        files.model,
        files.weights,
        files.variant,
        files.axes,
        external=files.external,
        folder=files.folder,
        threads=threads,
        **options,
    )
    return session


def _load(backend: Backend) -> Any:
    module, _, name = backend.place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        # A library that is broken is the user's to repair; a module of ours that is missing is a bug to see.
        if error.name is not None and error.name.partition(".")[0] == "edgegen":
            raise
        raise BackendError(f"{backend.library} is installed but cannot be imported ({error}); {_cure(backend)}") from error


def _cure(backend: Backend) -> str:
    return f'install it: pip install "edgegen[{backend.extra}]"'
