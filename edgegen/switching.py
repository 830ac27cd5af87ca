"""A pipeline that answers on one backend while another is made ready, and changes over between requests.

A request is a call of a method of the pipeline, and what it gives back: a text, a stream of pieces, a conversation, a denoising
trajectory. It runs to its end on the pipeline on which it began, because it refers to nothing else; the next one begins on the
pipeline that is current then. So all graphs of a bundle change over together, and no pipeline knows of it.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

from edgegen.errors import EdgegenError

_log = logging.getLogger("edgegen")

Stage = Literal["preparing", "switched", "failed", "closed"]
Prepare = Callable[[threading.Event], Any]


class Switch:
    """The change from one pipeline to another: made ready in a thread of its own.

    Attributes:
        stage: "preparing" until the other pipeline is there ("switched"), was refused ("failed"), or is not wanted ("closed").
        backend: on which a request that begins now runs.
        reason: why it failed; empty otherwise.
        current: the pipeline that answers.
    """

    def __init__(self, first: Any, backend: str, better: str, prepare: Prepare) -> None:
        """Begin to prepare.

        Args:
            first: the pipeline that answers meanwhile, on `backend`.
            backend: see above.
            better: the backend that is made ready.
            prepare: makes the other pipeline, or raises; it ends soon after the event that it is given is set.
        """
        self.stage: Stage = "preparing"
        self.backend, self.reason, self.current = backend, "", first
        self._better, self._prepare = better, prepare
        self._lock, self._settled, self._cancelled = threading.Lock(), threading.Event(), threading.Event()
        self._changes: dict[str, Any] = {}
        self._left: weakref.ref[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="edgegen switch", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is decided; False where `timeout_s` passed before."""
        return self._settled.wait(timeout_s)

    def change(self, name: str, value: Any) -> None:
        """Set an attribute of the current pipeline, and of the next one."""
        with self._lock:
            self._changes[name] = value
            setattr(self.current, name, value)

    def stop(self) -> None:
        """Give up what is not ready yet; it leaves nothing behind. Waits for its end."""
        self._cancelled.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def close(self) -> None:
        """Stop, and close every pipeline. Closing twice is allowed."""
        self.stop()
        left = self._left() if self._left is not None else None
        if left is not None:
            left.close()
        self.current.close()

    def _run(self) -> None:
        try:
            self._settle(self._prepare(self._cancelled))
        except EdgegenError as error:
            self._refuse(" ".join(str(error).split()))
        except Exception as error:
            _log.exception("%s could not be made ready", self._better)
            self._refuse(repr(error))
        finally:
            self._settled.set()

    def _settle(self, ready: Any) -> None:
        with self._lock:
            if self._cancelled.is_set():
                ready.close()
                self.stage = "closed"
                return
            for name, value in self._changes.items():
                setattr(ready, name, value)
            left, self.current = self.current, ready
            # Requests that run on it keep it alive; the last of them lets go of its memory.
            weakref.finalize(left, _free, _parts(left)).atexit = False
            self._left = weakref.ref(left)
            self.stage, self.backend = "switched", self._better
        _log.info("requests run on %s from now on", self._better)

    def _refuse(self, reason: str) -> None:
        if self._cancelled.is_set():
            self.stage = "closed"
            _log.info("%s was not ready yet when the pipeline was closed; `edgegen build` makes engines ahead", self._better)
            return
        self.stage, self.reason = "failed", reason
        _log.warning("requests stay on %s: %s: %s", self.backend, self._better, reason)


class SwitchingPipeline:
    """The pipeline of a bundle, whose `switch` may put another in its place: it has the methods and attributes of either.

    Lifetime: as any pipeline's; `close` while the other one is made ready gives that up. Threads: as the pipelines'.
    """

    switch: Switch

    def __init__(self, switch: Switch) -> None:
        object.__setattr__(self, "switch", switch)
        # At the end of the process, too: a builder must not outlive it, nor a thread run native code while it ends.
        weakref.finalize(self, switch.stop)

    @property  # type: ignore[misc]  # as the standard library's mocks do
    def __class__(self) -> Any:
        """For `isinstance`: what it stands for."""
        return type(self.switch.current)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.switch.current, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.switch.change(name, value)

    def __dir__(self) -> list[str]:
        return sorted({"switch", *dir(self.switch.current)})

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""
        self.switch.close()

    def __enter__(self) -> "SwitchingPipeline":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _parts(pipeline: Any) -> list[Any]:
    """What a pipeline owns, without the pipeline."""
    sessions = list(pipeline.sessions) if hasattr(pipeline, "sessions") else [pipeline.session]
    return sessions + [pipeline.bundle] * (pipeline.bundle is not None)


def _free(parts: list[Any]) -> None:
    for part in parts:
        part.close()
