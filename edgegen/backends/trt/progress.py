"""What TensorRT tells of a build while it goes on, and how a build is stopped."""

import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("edgegen")

Progress = Callable[[str, int, int], bool]  # (phase, steps done, steps in all): whether to go on


class Watch:
    """Passes a build's progress on. `stopped` once the callback has said so; the build then ends early, with nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._steps: dict[str, int] = {}  # of the phases that are going on
        self.stopped = False

    def start(self, phase: str, steps: int) -> None:
        """A phase begins."""
        self._steps[phase] = steps
        self.tell(phase, 0)

    def tell(self, phase: str, done: int) -> bool:
        """Steps are done; whether to go on."""
        if not self.stopped:
            self.stopped = not self._go_on(phase, done)
        return not self.stopped

    def _go_on(self, phase: str, done: int) -> bool:
        try:
            return self._progress(phase, done, self._steps.get(phase, done))
        except Exception:  # it must not pass through the library, which knows no Python
            _log.exception("the progress of a build could not be told: the build is stopped")
            return False

    def finish(self, phase: str) -> None:
        """A phase ends, with all its steps: the library does not always count the last ones."""
        self.tell(phase, self._steps.get(phase, 0))
        self._steps.pop(phase, None)


def monitor(trt: Any, watch: Watch) -> Any:
    """The library's monitor for `watch`: a subclass of its own class, which it calls from several threads."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base comes with the module
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            watch.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    return Monitor()
