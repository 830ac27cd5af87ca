"""Starts the process that builds an engine, follows it, and says in words how it ended."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

import edgegen.errors
from edgegen.backends.engines.memory import peak_bytes, total_bytes
from edgegen.backends.engines.refusal import RefusedError
from edgegen.backends.engines.store import PLACE, Built
from edgegen.backends.engines.worker import BuildRequest, Job
from edgegen.errors import BackendError, EdgegenError

Progress = Callable[..., None]
_OTHER_PLACE = f"name another folder in ${PLACE}"
_LOOK_S = 0.2  # between two looks at the memory of the builder, and at whether it was cancelled


class CancelledError(BackendError):
    """The build was told to stop."""


def build(
    request: BuildRequest,
    *,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
    folder: Path | None = None,
) -> Built:
    """Build an engine in a child process and wait for it. Whatever ends this call ends the child, and nothing is left of it.

    Args:
        request: what to build.
        progress: called with what the maker tells.
        cancelled: when it is set, the child is killed.
        folder: where the engine may be written to meanwhile, in a file without a name; the system's temporary folder else.

    Raises:
        CancelledError: `cancelled` was set.
        RefusedError: the library refuses the graph, or the child crashed.
        BackendError: memory or the disk ran out.
        BundleError: the bundle is damaged, or is no longer what the request says.
    """
    with _scratch(folder) as result, _scratch(None) as errors:
        child = _start(request, result.fileno(), errors)
        try:
            ending, peak = _follow(child, progress or _ignore, cancelled)
            child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # it leads a group of its own: what it started goes, too
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if child.returncode != 0 or "seconds" not in ending:
            raise _failure(request, child.returncode, ending, peak, _last_line(errors), folder)
        result.seek(0)
        data = result.read()
    if len(data) != ending["size_bytes"]:
        raise BackendError(f"graph {request.graph!r}: the engine was not written whole; make room, or {_OTHER_PLACE}")
    return Built(data, ending["seconds"], max(ending["peak_memory_bytes"], peak))


def _start(request: BuildRequest, result: int, errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    package = str(Path(edgegen.errors.__file__).resolve().parent.parent)  # a checkout that is not installed is found, too
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        [sys.executable, "-m", "edgegen.backends.engines.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        pass_fds=(result,),
        start_new_session=True,  # Ctrl-C is this process's to answer
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert child.stdin is not None  # noqa: S101  # a pipe was asked for
    with contextlib.suppress(BrokenPipeError):  # its end says why
        child.stdin.write(msgspec.json.encode(Job(request, os.getpid(), result)) + b"\n")
        child.stdin.flush()
    return child


def _follow(
    child: "subprocess.Popen[bytes]", progress: Progress, cancelled: threading.Event | None
) -> tuple[dict[str, Any], int]:
    """Pass on what the child tells until it closes its output: its last word, and the most memory that was seen."""
    assert child.stdout is not None  # noqa: S101  # a pipe was asked for
    ending: dict[str, Any] = {}
    pending, peak, output = b"", 0, child.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            if cancelled is not None and cancelled.is_set():
                raise CancelledError("the build was cancelled")
            peak = max(peak, peak_bytes(child.pid))
            if not selector.select(_LOOK_S):
                continue
            some = os.read(output, 1 << 16)
            if not some:
                return ending, peak
            *lines, pending = (pending + some).split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "progress" in told:
                    progress(*told["progress"])
                else:
                    ending = told


def _failure(
    request: BuildRequest, code: int, ending: dict[str, Any], peak: int, last: str, folder: Path | None
) -> EdgegenError:
    where = f"graph {request.graph!r} on {request.flavour}"
    kind, message = ending.get("error"), str(ending.get("message", ""))
    if code == -signal.SIGKILL or kind == "MemoryError" or "outofmemory" in message.lower().replace(" ", ""):
        said = f" ({message})" if message else ""
        return BackendError(
            f"{where}: the build ran out of memory (peak {peak >> 20} MB of {total_bytes() >> 20} MB){said}; close other "
            f"programs, add swap, export in a lower precision or with a shorter context, or build on a larger machine"
        )
    if kind == "OSError":
        place = _beside(folder) or tempfile.gettempdir()
        return BackendError(f"{where}: the engine cannot be written to {place}: {message}; make room there, or {_OTHER_PLACE}")
    if kind is not None:
        known = getattr(edgegen.errors, str(kind), BackendError)
        return known(message) if known in (edgegen.errors.BundleError, edgegen.errors.InputError) else RefusedError(message)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return RefusedError(f"{where}: the build crashed ({how}): {last or 'it said nothing'}")


def _last_line(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - 4096))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""


@contextlib.contextmanager
def _scratch(folder: Path | None) -> Iterator[IO[bytes]]:
    """A file without a name: it is gone with whoever has it open. BackendError where there is no room for it."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=_beside(folder)))
        except OSError as error:
            raise BackendError(
                f"there is no place to build an engine in: {error.strerror}; make room, or set TMPDIR"
            ) from error
        yield file


def _beside(folder: Path | None) -> Path | None:
    """`folder`, if it can be written to."""
    return folder if folder is not None and os.access(folder, os.W_OK) else None


def _ignore(*_: Any) -> None:
    """Nobody wants to know."""
