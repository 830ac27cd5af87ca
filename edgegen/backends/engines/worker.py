"""Builds one engine, in a process of its own: a crash, or the system that runs out of memory, ends that process and no other.

Run by `builder.py`. The request comes on stdin, as one line of JSON; what is told goes to stdout, a JSON object a line; the
engine goes to a file that was handed over open. It ends when its stdin does: with whoever started it.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from edgegen.backends.engines.key import GraphDigest
from edgegen.backends.engines.memory import peak_bytes
from edgegen.errors import BundleError, EdgegenError

if TYPE_CHECKING:
    from edgegen.bundle import GraphFiles

MAKER = "edgegen.backends.engines.worker:make"
_SET_DEATH_SIGNAL = 1  # prctl(2)
_PERIOD_S = 0.05  # between two words on the progress


class BuildRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to build.

    Attributes:
        bundle: its absolute path.
        graph, variant: names in its manifest.
        digest: what the bytes found there must be.
        flavour: "tensorrt" or "tensorrt-rtx".
        options: of the build (`BuildOptions.as_dict()`).
        maker: "module:function" that is called as `make` is.
        device: the number of the GPU that TensorRT builds on.
    """

    bundle: str
    graph: str
    variant: str
    digest: GraphDigest
    flavour: str
    options: dict[str, Any]
    maker: str = MAKER
    device: int = 0


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request, the process it comes from, and the open file for the engine."""

    request: BuildRequest
    parent: int
    result: int


def make(flavour: str, files: "GraphFiles", options: dict[str, Any], progress: Callable[..., bool]) -> bytes:
    """Build with the library of that flavour; see `edgegen.backends.trt.build`."""
    from edgegen.backends.trt.build import BuildOptions, build_engine
    from edgegen.backends.trt.flavours import flavour_of

    return build_engine(flavour_of(flavour), files, BuildOptions.of(options), progress=progress)


def run(job: Job, tell: Callable[[dict[str, Any]], None]) -> None:
    """Build, write the engine, and tell how it went."""
    from edgegen.bundle import Bundle

    request, started = job.request, time.perf_counter()
    module, _, name = request.maker.partition(":")
    with Bundle.open(request.bundle) as bundle:
        if GraphDigest.of(bundle, request.graph, request.variant) != request.digest:
            raise BundleError(f"{request.bundle} was replaced while an engine was to be built of it; load it again")
        files = bundle.graph(request.graph, request.variant)
        if request.device:  # of several; without a word it is the first, and TensorRT-RTX needs none
            from edgegen.backends.trt.cuda import Cuda, load_runtime

            Cuda(load_runtime(), request.device).use()
        maker = getattr(importlib.import_module(module), name)
        data = maker(request.flavour, files, request.options, _progress(tell))
    with os.fdopen(job.result, "wb", closefd=False) as file:
        file.write(data)
    tell({"seconds": time.perf_counter() - started, "size_bytes": len(data), "peak_memory_bytes": peak_bytes()})


def _progress(tell: Callable[[dict[str, Any]], None]) -> Callable[..., bool]:
    """Passes on what a maker says of its progress, but no more than can be followed."""
    last = [0.0]

    def progress(*said: Any) -> bool:
        now = time.perf_counter()
        if now - last[0] >= _PERIOD_S:
            last[0] = now
            tell({"progress": said})
        return True  # go on: a build that is not wanted is ended with its process

    return progress


def main() -> int:
    """Read the job, do it, and say what went wrong."""
    # What native libraries print must not come between the lines that are told.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(what: dict[str, Any]) -> None:
        told.write(json.dumps(what) + "\n")
        told.flush()

    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    _end_with(job.parent)
    try:
        run(job, tell)
    except EdgegenError as error:
        tell({"error": type(error).__name__, "message": str(error)})
        return 1
    except OSError as error:
        tell({"error": "OSError", "message": error.strerror or str(error)})
        return 1
    except MemoryError:
        tell({"error": "MemoryError", "message": ""})
        return 1
    return 0


def _end_with(parent: int) -> None:
    """See to it that this process ends with its parent, however that ends."""

    def watch() -> None:
        os.read(0, 1)  # nothing more is ever sent
        os._exit(1)

    threading.Thread(target=watch, name="edgegen parent", daemon=True).start()
    if sys.platform == "linux":  # the thread above waits while native code holds the interpreter; the kernel does not
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
