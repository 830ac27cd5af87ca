"""Inference libraries: a table of places, and the choice among them. Nothing is imported before it is used."""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgegen.backends.context import with_context
from edgegen.backends.trt.flavours import flavour_of
from edgegen.errors import BackendError, UnknownNameError

if TYPE_CHECKING:
    from edgegen.backends.base import Session
    from edgegen.bundle import Bundle

_log = logging.getLogger("edgegen")

AUTO = "auto"


class Backend(NamedTuple):
    """A backend, as data.

    Attributes:
        place: "module:name" of its session's class, or of a function that opens one.
        library: the module that it needs.
        extra: of edgegen, which installs that.
        variants: of a graph that it runs, the best first.
        needs_gpu: whether it runs on an NVIDIA GPU only.
        fault: "module:function" that says why the backend cannot be used on this machine, given `fault_of`; "" where an
            installed library is enough.
        fault_of: the argument of that function.
        automatic: whether `auto` may take it.
        options: what is passed to `place` beside what the caller says.
        part: a file of the library that must be there, too, relative to its folder.
        package: what pip installs for it, where that is none of edgegen's extras.
        engines: whether it runs engines, which are built of a graph, and kept in a cache.
        marker: "Class.member" of the library that runs `variants`; without it, a library takes `older` first.
        older: the variants for a library that is older than some operators of the canonical graph.
    """

    place: str
    library: str
    extra: str
    variants: tuple[str, ...]
    needs_gpu: bool = False
    fault: str = ""
    fault_of: str = ""
    automatic: bool = True
    options: Mapping[str, Any] = {}
    part: str = ""
    package: str = ""
    engines: bool = False
    marker: str = ""
    older: tuple[str, ...] = ()


def _on_gpu(provider: str, library: str, part: str = "", *, automatic: bool = False, package: str = "") -> Backend:
    """ONNX Runtime with a provider of NVIDIA's.

    All of them run the canonical graph. The variant "onnxruntime" is lowered for the CPU: float32 with GroupQueryAttention, for
    which the CUDA provider has float16 and bfloat16 alone. Of the canonical graph it has every kernel but Swish's, which
    ONNX Runtime expands. Integer weights save space in the bundle there, not time (see `ort.providers`), unless the bundle has
    the variant "onnxruntime-cuda": CUDA's kernels for quantized products and attention, in float16.
    """
    return Backend(
        "edgegen.backends.ort.session:OrtSession",
        library,
        "gpu",
        ("onnxruntime-cuda", "canonical") if provider == "cuda" else ("canonical",),
        needs_gpu=True,
        options={"provider": provider},
        part=part,
        fault="edgegen.backends.ort.providers:fault",
        fault_of=provider,
        automatic=automatic,
        package=package,
    )


def _engines(name: str, library: str, marker: str = "", older: tuple[str, ...] = ()) -> Backend:
    """TensorRT, or TensorRT-RTX."""
    return Backend(
        f"edgegen.backends.trt.open:open_{library}",
        library,
        name,
        ("tensorrt", "canonical"),
        needs_gpu=True,
        fault="edgegen.backends.gpu:why_not",
        fault_of=name,
        engines=True,
        marker=marker,
        older=older,
    )


_CUDA, _TENSORRT = (f"capi/libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt"))
BACKENDS: Mapping[str, Backend] = {  # the best first: `auto` takes the first that works
    "tensorrt": _engines("tensorrt", "tensorrt", "INetworkDefinition.add_kv_cache_update", ("tensorrt-legacy",)),
    "tensorrt-rtx": _engines("tensorrt-rtx", "tensorrt_rtx"),
    "onnxruntime-cuda": _on_gpu("cuda", "onnxruntime", _CUDA, automatic=True),
    "onnxruntime": Backend("edgegen.backends.ort.session:OrtSession", "onnxruntime", "cpu", ("onnxruntime", "canonical")),
    # These two build engines whenever a bundle is loaded, which takes minutes: only for those who ask for them.
    "onnxruntime-tensorrt": _on_gpu("tensorrt", "onnxruntime", _TENSORRT),
    "onnxruntime-tensorrt-rtx": _on_gpu(
        "tensorrt-rtx", "onnxruntime_ep_nv_tensorrt_rtx", package="onnxruntime-ep-nv-tensorrt-rtx-cu13"
    ),
}
_DEFAULT = "onnxruntime"  # what somebody who has nothing is told to install


def present_backends() -> list[str]:
    """The backends whose library is installed, the best first. Imports none of them."""
    return [name for name, backend in BACKENDS.items() if _is_installed(backend)]


def fault(name: str) -> str | None:
    """Why an installed backend cannot be used on this machine; None where it can. May load its library and try the GPU."""
    backend = BACKENDS[name]
    if not backend.fault:
        return None
    module, _, function = backend.fault.partition(":")
    try:
        reason: str | None = getattr(importlib.import_module(module), function)(backend.fault_of)
    except ImportError as error:
        return f"{backend.library} cannot be imported: {error}"
    return reason


def choose(name: str = AUTO, *, engines: bool = True) -> str:
    """The backend that `name` means on this machine; without `engines`, `auto` takes none that must build some.

    Raises UnknownNameError for a name that no backend has, BackendError where its library, or any for `auto`, is missing.
    """
    present = present_backends()
    if name == AUTO:
        reasons = []
        for candidate in (each for each in present if BACKENDS[each].automatic and (engines or not BACKENDS[each].engines)):
            if (reason := fault(candidate)) is None:
                return candidate
            reasons.append(f"{candidate}: {reason}")
            _log.info("auto does not take %s", reasons[-1])
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise BackendError(f"no inference library here works{why}; install one: {install_hint(BACKENDS[_DEFAULT])}")
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, [AUTO, *BACKENDS])
    if name not in present:
        backend = BACKENDS[name]
        missing = f"backend {name!r} needs {backend.part or backend.library}, which is not installed"
        raise BackendError(f"{missing}; install it: {install_hint(backend)}")
    return name


def variant_for(backend: str, bundle: "Bundle", graph: str) -> str:
    """The variant of a graph that `backend` runs: the best that the bundle has, at last the canonical one."""
    graphs = bundle.manifest.graphs
    if graph not in graphs:
        raise UnknownNameError("graph", graph, graphs)
    return next(name for name in _variants(BACKENDS[backend]) if name in graphs[graph].variants or name == "canonical")


def _variants(backend: Backend) -> tuple[str, ...]:
    """The variants that the installed library runs, the best first: which it is, its members tell."""
    return (*backend.older, *backend.variants) if _is_old(backend) else backend.variants


def _is_old(backend: Backend) -> bool:
    """Whether the installed library is older than some operators of the canonical graph."""
    if not backend.marker or importlib.util.find_spec(backend.library) is None:
        return False
    kind, _, member = backend.marker.partition(".")
    return not hasattr(getattr(_imported(backend), kind), member)


def too_old(name: str, bundle: "Bundle", graph: str) -> str | None:
    """Why the installed library of a backend is too old for a graph of `bundle`; None where it is not. Imports the library."""
    from edgegen.devices.precisions import FIRST_CANONICAL, NEW_OPERATORS
    from edgegen.graphs.nodes import read

    backend, variant = BACKENDS[name], variant_for(name, bundle, graph)
    if not _is_old(backend) or variant in backend.older:
        return None
    used = {node.operator.decode() for node in read(bundle.graph(graph, variant).model).nodes}
    if not (newer := sorted(used.intersection(NEW_OPERATORS))):
        return None
    return (
        f"the {backend.library} that is installed is older than {', '.join(newer)}, which graph {graph!r} has; "
        f"export the bundle with --variant {backend.older[0]}, or update to {FIRST_CANONICAL} or newer"
    )


def open_session(
    backend: str,
    bundle: "Bundle",
    graph: str,
    *,
    variant: str | None = None,
    context: int | None = None,
    threads: int | None = None,
    **options: Any,
) -> "Session":
    """Open one graph of `bundle` on `backend`, in the variant that suits it best.

    Args:
        backend: a name of `BACKENDS`, or "auto".
        bundle: an open bundle; it must stay open as long as the session.
        graph: a name in `bundle.manifest.graphs`.
        variant: a variant of the graph; the one that suits the backend best if None.
        context: the most entries that a state may have; as many as were exported, or as an engine was built for, if None.
        threads: CPU threads; one for each usable physical core if None.
        options: passed to the session's class (`device`: the number of the GPU, ...).

    Raises:
        UnknownNameError: no such backend or graph.
        InputError: a context that was not exported, or one for a graph without state.
        BackendError: the library is missing, or refuses the graph.
        BundleError: the graph's files are not what the manifest says.
    """
    chosen = choose(backend)
    variant = variant or variant_for(chosen, bundle, graph)
    files = bundle.graph(graph, variant)
    axes = files.axes if context is None else with_context(bundle, files.variant, files.axes, context)
    told = {**BACKENDS[chosen].options, **options}
    if BACKENDS[chosen].engines:
        from edgegen.backends.engines.sessions import open_cached

        told = {"engines": functools.partial(open_cached, bundle, graph, variant, context=context), **told}
    session: Session = _load(BACKENDS[chosen])(
        files.model,
        files.weights,
        files.variant,
        axes,
        external=files.external,
        folder=files.folder,
        threads=threads,
        **told,
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
        broken = f"{backend.library} is installed but cannot be imported ({error})"
        raise BackendError(f"{broken}; install it: {install_hint(backend)}") from error


def _is_installed(backend: Backend) -> bool:
    spec = importlib.util.find_spec(backend.library)
    folders = spec.submodule_search_locations or [] if spec is not None else []
    return spec is not None and (not backend.part or any((Path(folder) / backend.part).exists() for folder in folders))


def install_hint(backend: Backend) -> str:
    """What to do to install what a backend needs: a command, but for TensorRT, which comes in two ways."""
    if backend.engines:
        return flavour_of(backend.extra).cure
    if backend.package:
        return f"pip install {backend.package}"
    # onnxruntime and onnxruntime-gpu have the same module: side by side, one of the two is half there.
    first = "pip uninstall onnxruntime && " if backend.extra == "gpu" else ""
    return f'{first}pip install "edgegen[{backend.extra}]"'
