"""From a bundle on disk to a pipeline that generates."""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.backends import AUTO, BACKENDS, choose, open_session
from edgegen.bundle import Bundle
from edgegen.pipelines import pipeline_class

if TYPE_CHECKING:
    from edgegen.backends.base import Session

_log = logging.getLogger("edgegen")


def load(
    path: str | os.PathLike[str],
    backend: str = AUTO,
    *,
    context: int | None = None,
    threads: int | None = None,
    verify: bool = True,
    advise: Callable[[str], None] | None = None,
) -> Any:
    """Open a bundle and make its pipeline: a context manager that owns the bundle and its sessions.

    Args:
        path: a bundle's directory, or the uncompressed `.tar` of one.
        backend: a name of `edgegen.backends.BACKENDS`; "auto" takes the best that is installed, and logs which one
            (logger "edgegen", level INFO). With TensorRT and a GPU that is an engine, where the cache has those of all graphs;
            where they are still to be built, onnxruntime answers meanwhile, and the pipeline changes over between requests
            (its `switch` tells: `edgegen.switching.Switch`).
        context: for language models: the most tokens that prompt and text may have together, where that is less than what was
            exported. It bounds the memory of the cache. TensorRT runs an engine for just that many, which is built where the
            cache of engines has none; without it, the one that was built or used last.
        threads: CPU threads; one for each physical core that this process may use if None.
        verify: check the digest of every file that is read. Only switch it off for a bundle that is checked elsewhere.
        advise: for a program that ends after one request. With it, "auto" builds no engines, which the end of the program would
            give up; it is called with a line that says how they are made ahead, if that would help.

    Returns:
        The pipeline of the bundle's family, e.g. `edgegen.pipelines.decoder_lm.DecoderLM`.

    Raises:
        BundleError: the bundle is damaged, foreign, newer than this edgegen, or not to be trusted.
        BackendError: the inference library is missing, or refuses a graph.
        InputError: a context that was not exported, or one for a bundle without.
        UnknownNameError: no such backend, or no such family in this version.
    """
    place = Path(path).absolute()  # the process may go to another folder
    open_on = functools.partial(_open, place, context=context, threads=threads, verify=verify)
    chosen = choose(backend)
    if backend == AUTO and BACKENDS[chosen].engines:
        from edgegen.automatic import load_automatically  # not above: it is for machines with a GPU

        return load_automatically(place, chosen, open_on, advise, context=context)
    return open_on(chosen)


def _open(path: Path, backend: str, *, context: int | None, threads: int | None, verify: bool) -> Any:
    """The pipeline of a bundle on one backend."""
    bundle = Bundle.open(path, verify=verify)
    try:
        opener = session_opener(bundle, backend, context=context, threads=threads)
        pipeline = pipeline_class(bundle.manifest.family).from_bundle(bundle, opener)
    except BaseException:
        bundle.close()
        raise
    _log.info("%s: family %s on %s", bundle.manifest.name, bundle.manifest.family, backend)
    return pipeline


def session_opener(
    bundle: Bundle, backend: str = AUTO, *, context: int | None = None, threads: int | None = None
) -> "Callable[[str], Session]":
    """A function that opens a graph of `bundle` by its name: what every pipeline's `from_bundle` takes."""
    return lambda graph: open_session(backend, bundle, graph, context=context, threads=threads)
