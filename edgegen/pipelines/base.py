"""What every pipeline has: the runtime builds it from a bundle, the user closes it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from edgegen.backends.base import Session
from edgegen.errors import BundleError
from edgegen.pipelines.batches import BatchedGraph

if TYPE_CHECKING:
    from edgegen.bundle import Bundle

OpenSession = Callable[[str], Session]
_Settings = TypeVar("_Settings", bound=msgspec.Struct)
_Owner = TypeVar("_Owner", bound="Owner")


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


class Owner:
    """The lifetime of a pipeline of several graphs: it owns `sessions`, and its bundle if it was made from one."""

    bundle: "Bundle | None" = None
    graphs: Mapping[str, BatchedGraph]

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Of each graph: what `close` closes."""
        return tuple(graph.session for graph in self.graphs.values())

    def adopt(self: _Owner, bundle: "Bundle") -> _Owner:
        """Own the bundle that the graphs are of; they learn what a row of theirs takes. Returns itself."""
        self.bundle = bundle
        for name, graph in self.graphs.items():
            graph.row_bytes = bundle.manifest.graphs[name].row_bytes
        return self

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""
        for session in self.sessions:
            session.close()
        if self.bundle is not None:
            self.bundle.close()

    def __enter__(self: _Owner) -> _Owner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def settings_of(bundle: "Bundle", kind: type[_Settings], what: str) -> _Settings:
    """The manifest's settings as `kind`; BundleError where they are not those of `what`."""
    try:
        return msgspec.convert(bundle.manifest.settings, kind)
    except msgspec.ValidationError as error:
        raise BundleError(f"the settings are not those of {what}: {error}") from None


@contextlib.contextmanager
def opened(names: Iterable[str], open_session: OpenSession) -> Iterator[dict[str, Session]]:
    """Open graphs by name; they stay open, unless opening one or the block itself fails."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(open_session(name)) for name in names}
        stack.pop_all()
