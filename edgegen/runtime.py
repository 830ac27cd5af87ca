"""From a bundle on disk to a pipeline that generates."""

import importlib
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgegen.backends import AUTO, choose, open_session
from edgegen.bundle import Bundle
from edgegen.errors import UnknownNameError
from edgegen.pipelines import FAMILIES

if TYPE_CHECKING:
    from edgegen.backends.base import Session

_log = logging.getLogger("edgegen")


def load(path: str | os.PathLike[str], backend: str = AUTO, *, threads: int | None = None, verify: bool = True) -> Any:
    """Open a bundle and make its pipeline: a context manager that owns the bundle and its sessions.

    Args:
        path: a bundle's directory, or the uncompressed `.tar` of one.
        backend: a name of `edgegen.backends.BACKENDS`; "auto" takes the best that is installed, and logs which one
            (logger "edgegen", level INFO).
        threads: CPU threads; one for each physical core that this process may use if None.
        verify: check the digest of every file that is read. Only switch it off for a bundle that is checked elsewhere.

    Returns:
        The pipeline of the bundle's family, e.g. `edgegen.pipelines.decoder_lm.DecoderLM`.

    Raises:
        BundleError: the bundle is damaged, foreign, newer than this edgegen, or not to be trusted.
        BackendError: the inference library is missing, or refuses a graph.
        UnknownNameError: no such backend, or no such family in this version.
    """
    chosen = choose(backend)
    bundle = Bundle.open(path, verify=verify)
    try:
        pipeline = pipeline_class(bundle.manifest.family).from_bundle(bundle, session_opener(bundle, chosen, threads=threads))
    except BaseException:
        bundle.close()
        raise
    _log.info("%s: family %s on %s", bundle.manifest.name, bundle.manifest.family, chosen)
    return pipeline


def pipeline_class(family: str) -> Any:
    """The pipeline class of a family; UnknownNameError where this version has none."""
    if family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    module, _, name = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), name)


def session_opener(bundle: Bundle, backend: str = AUTO, *, threads: int | None = None) -> "Callable[[str], Session]":
    """A function that opens a graph of `bundle` by its name: what every pipeline's `from_bundle` takes."""
    return lambda graph: open_session(backend, bundle, graph, threads=threads)
