"""The proof that travels with a bundle: what the PyTorch original answered, and how closely a backend must answer the same.

Language models are proven through their cache (`decoder_lm.py`), all other families tensor by tensor (`tensors.py`).
"""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from edgegen.backends import choose
from edgegen.bundle import Bundle

_REPLAYS: Mapping[str, str] = {"decoder_lm": "edgegen.proof.decoder_lm:replay_bundle"}  # other families: by tensors
_BY_TENSORS = "edgegen.proof.tensors:replay_bundle"


class ProofReport(Protocol):
    """What a replay found."""

    @property
    def passed(self) -> bool:
        """Whether the backend computes what the original computes."""

    def lines(self) -> list[str]:
        """For people."""

    def as_dict(self) -> dict[str, Any]:
        """For machines."""


def verify_bundle(path: str, backend: str = "auto") -> ProofReport:
    """Open a bundle, check its digests, and replay its proof on a backend of this machine, without PyTorch.

    Raises:
        BundleError: the bundle or its proof is damaged.
        BackendError: the backend is missing, or refuses a graph.
    """
    chosen = choose(backend)
    with Bundle.open(path) as bundle:
        bundle.verify_all()
        return replay_bundle(bundle, chosen)


def replay_bundle(bundle: Bundle, backend: str, **options: Any) -> ProofReport:
    """Replay the proof of an open bundle on a backend. Raises as `verify_bundle`; digests are checked of what is read.

    `options` are those of `edgegen.backends.open_session`.
    """
    module, _, name = _REPLAYS.get(bundle.manifest.family, _BY_TENSORS).partition(":")
    report: ProofReport = getattr(importlib.import_module(module), name)(bundle, backend, **options)
    return report
