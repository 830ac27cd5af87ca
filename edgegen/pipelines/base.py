"""What every pipeline has: the runtime builds it from a bundle, the user closes it."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from edgegen.backends.base import Session

if TYPE_CHECKING:
    from edgegen.bundle import Bundle

OpenSession = Callable[[str], Session]


class Pipeline(Protocol):
    """A model that is ready to run.

    Lifetime: owns its sessions and its bundle from construction to `close`.
    Threads: several threads may use one pipeline; the session lets one run of the graph pass at a time.
    """

    bundle: "Bundle | None"

    @classmethod
    def from_bundle(cls, bundle: "Bundle", open_session: OpenSession) -> "Pipeline":
        """Decode the manifest's settings (BundleError where they do not fit) and open the graphs by name."""

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""

    def __enter__(self) -> "Pipeline":
        """Nothing happens on entering: the pipeline is ready from construction."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
