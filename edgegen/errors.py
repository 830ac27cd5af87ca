"""Every error that edgegen raises on purpose.

    EdgegenError
    ├── InputError            an option, prompt or array that cannot be used
    │   └── UnknownNameError  no backend, family, recipe, ... has that name
    ├── BundleError           a bundle that is damaged, foreign, newer, or not to be trusted
    ├── BackendError          an inference library is missing, or refuses a graph
    ├── ContextFullError      the prompt does not fit in the context that was exported
    ├── OfflineError          something tried to reach the network or to write outside its place
    ├── SourceError           a checkpoint that cannot be read
    ├── ExportError           a model that cannot be captured, quantized, lowered or written
    │   └── CaptureError      names the module, the operator and the cure
    ├── TrainingError         a training that went wrong, or a state that cannot be gone on from
    └── ProofError            the graph and the original disagree

The command line prints any of them as one line and exits with 1; every other exception is a bug and keeps its traceback.
A message says what was asked, what is there, and what to do.
"""

import difflib
from collections.abc import Iterable


class EdgegenError(Exception):
    """The base of every error that edgegen raises on purpose."""


class InputError(EdgegenError, ValueError):
    """An option, prompt or array that cannot be used."""


class UnknownNameError(InputError):
    """No backend, family or recipe has that name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(str(name), names, n=1)  # a user may give anything
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"
        super().__init__(f"no {kind} named {name!r}; {hint}")


class BundleError(EdgegenError):
    """A bundle that is damaged, foreign, newer than this edgegen, or not to be trusted."""


class BackendError(EdgegenError):
    """An inference library is missing, or refuses a graph."""


class ContextFullError(EdgegenError):
    """The prompt does not fit in the context length that was exported."""


class OfflineError(EdgegenError):
    """Something tried to reach the network, or to write outside its place."""


class SourceError(EdgegenError):
    """A checkpoint that cannot be read, or is not to be trusted."""


class ExportError(EdgegenError):
    """A model that cannot be captured, quantized, lowered or written."""


class CaptureError(ExportError):
    """A module that cannot become a graph: the message names the module, the operator and the cure."""


class TrainingError(EdgegenError):
    """A training that went wrong, or whose state cannot be gone on from."""


class ProofError(EdgegenError):
    """The graph and the original disagree by more than the stated tolerance."""
