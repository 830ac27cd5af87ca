"""Inference libraries: a table of places, and the choice among them. Nothing is imported before it is used."""

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from edgegen.backends.gpu import why_not
from edgegen.errors import BackendError, UnknownNameError

if TYPE_CHECKING:
    from edgegen.backends.base import Session
    from edgegen.bundle import Bundle

_log = logging.getLogger("edgegen")

AUTO = "auto"


class Backend(NamedTuple):
    """A backend, as data.

    Attributes:
        place: of its session's class, or of a function that opens one.
        library: the module that it needs.
        extra: of edgegen, which installs that.
        variants: of a graph that it runs, the best first.
        needs_gpu: whether it runs on an NVIDIA GPU only.
        marker: "Class.member" of the library that runs `variants`; without it, a library takes `older` first.
        older: the variants for a library that is older than some operators of the canonical graph.
    """

    place: str
    library: str
    extra: str
    variants: tuple[str, ...]
    needs_gpu: bool = False
    marker: str = ""
    older: tuple[str, ...] = ()


BACKENDS: Mapping[str, Backend] = {  # the best first: `auto` takes the first whose library, and GPU, is there
    "tensorrt": Backend(
        "edgegen.backends.trt.open:open_tensorrt",
        "tensorrt",
        "tensorrt",
        ("tensorrt", "canonical"),
        needs_gpu=True,
        marker="INetworkDefinition.add_kv_cache_update",
        older=("tensorrt-legacy",),
    ),
    "tensorrt-rtx": Backend(
        "edgegen.backends.trt.open:open_tensorrt_rtx", "tensorrt_rtx", "tensorrt-rtx", ("tensorrt", "canonical"), needs_gpu=True
    ),
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
            raise BackendError(f"no inference library is installed; {_cure(BACKENDS['onnxruntime'])}")
        return _best(present)
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, [AUTO, *BACKENDS])
    if name not in present:
        raise BackendError(f"backend {name!r} needs {BACKENDS[name].library}, which is not installed; {_cure(BACKENDS[name])}")
    return name


def _best(present: list[str]) -> str:
    """The first that can run here; the log says which ones were passed over, and why."""
    passed = []
    for name in present:
        why = why_not(name) if BACKENDS[name].needs_gpu else None
        if why is None:
            return name
        _log.info("backend %s is not taken: %s", name, why)
        passed.append(f"{name}: {why}")
    raise BackendError(f"no backend can run here ({'; '.join(passed)}); {_cure(BACKENDS['onnxruntime'])}")


def variant_for(backend: str, bundle: "Bundle", graph: str) -> str:
    """The variant of a graph that `backend` runs: the best that the bundle has, at last the canonical one."""
    graphs = bundle.manifest.graphs
    if graph not in graphs:
        raise UnknownNameError("graph", graph, graphs)
    return next(name for name in _variants(BACKENDS[backend]) if name in graphs[graph].variants or name == "canonical")


def _variants(backend: Backend) -> tuple[str, ...]:
    """The variants that the installed library runs, the best first: which it is, its members tell."""
    if not backend.marker or importlib.util.find_spec(backend.library) is None:
        return backend.variants
    kind, _, member = backend.marker.partition(".")
    is_new = hasattr(getattr(_imported(backend), kind), member)
    return backend.variants if is_new else (*backend.older, *backend.variants)


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
        options: passed to the session's class (`device`: the number of the GPU, ...).

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
    return getattr(_imported(backend, module), name)


def _imported(backend: Backend, module: str | None = None) -> Any:
    """The backend's library, or a module of ours that imports it."""
    try:
        return importlib.import_module(module or backend.library)
    except (ImportError, OSError) as error:  # OSError: a shared library that the loader refuses
        # A library that is broken is the user's to repair; a module of ours that is missing is a bug to see.
        if isinstance(error, ImportError) and error.name is not None and error.name.partition(".")[0] == "edgegen":
            raise
        raise BackendError(f"{backend.library} is installed but cannot be imported ({error}); {_cure(backend)}") from error


def _cure(backend: Backend) -> str:
    return f'install it: pip install "edgegen[{backend.extra}]"'
