"""A thin layer over `cuda.bindings.runtime`: every status is checked, everything that is allocated is freed once.

The module is passed in. Handles and addresses are plain integers, which cuda-bindings 12 and 13 both take.
"""

import contextlib
import ctypes
import gc
import importlib
import logging
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from edgegen.errors import BackendError, InputError
from edgegen.tensors import Tensor

_log = logging.getLogger("edgegen")

MODULE = "cuda.bindings.runtime"
_NON_BLOCKING = 1  # cudaStreamNonBlocking: does not wait for the default stream
_PORTABLE = 1  # cudaHostAllocPortable: pinned for every context of the process


class Gpu(NamedTuple):
    """A device, by its number. `sm` is its compute capability, such as 89; versions are CUDA's, such as "13.0"."""

    name: str
    sm: int
    memory_bytes: int
    unified_memory: bool
    driver: str
    runtime: str
    number: int = 0


def load_runtime() -> ModuleType:
    """Import the CUDA runtime's bindings. BackendError, which says how to install them, where they are missing."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        raise BackendError(
            f"TensorRT needs cuda-bindings, which cannot be imported ({error}); "
            'install it: pip install "cuda-bindings>=12.6", of the same major version as CUDA on this machine'
        ) from error


class Cuda:
    """The CUDA runtime on one device.

    Raises BackendError from every method where CUDA reports an error: with its name, and what it means.
    """

    def __init__(self, runtime: Any, device: int = 0) -> None:
        """Take a device. InputError where there is none of that number, BackendError where CUDA cannot be used.

        It is only asked about so far: `use` makes a context on it, which takes hundreds of megabytes of its memory.
        """
        self.runtime = runtime
        self.device = device
        count = self.call("cudaGetDeviceCount")
        if not 0 <= device < count:
            raise InputError(f"no GPU {device}; this machine has {count}, counted from 0")

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; return what it gives besides its status."""
        status, *values = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            self.runtime.cudaGetLastError()  # else the next call, of anyone, would report this error again
            raise BackendError(f"{name} failed: {self._said(status)}{self._cure(status)}")
        return values[0] if len(values) == 1 else tuple(values)

    def use(self) -> None:
        """Make the device this thread's: CUDA keeps one for each thread. The first use makes the process's context on it."""
        self.call("cudaSetDevice", self.device)

    def gpu(self) -> Gpu:
        """What the device is."""
        found = self.call("cudaGetDeviceProperties", self.device)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        driver, runtime = (_version(self.call(f"cuda{part}GetVersion")) for part in ("Driver", "Runtime"))
        return Gpu(
            name.rstrip("\0"),
            10 * found.major + found.minor,
            int(found.totalGlobalMem),
            bool(found.integrated),
            driver,
            runtime,
            self.device,
        )

    def free_bytes(self) -> tuple[int, int]:
        """Device memory that is free, and all of it."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def device_memory(self, size_bytes: int, purpose: str) -> "DeviceMemory":
        """Memory on the device. Where there is not enough, the error says for what, how much, and what is free."""
        return DeviceMemory(self, self._allocate("cudaMalloc", size_bytes, purpose, max(size_bytes, 1)), size_bytes)

    def host_memory(self, size_bytes: int, purpose: str) -> "HostMemory":
        """Page-locked memory on the host, which the device reads and writes while the host goes on."""
        return HostMemory(self, self._allocate("cudaHostAlloc", size_bytes, purpose, max(size_bytes, 1), _PORTABLE), size_bytes)

    def stream(self) -> "Stream":
        """A queue of work."""
        return Stream(self)

    def _allocate(self, function: str, size_bytes: int, purpose: str, *arguments: int) -> int:
        status, address = getattr(self.runtime, function)(*arguments)
        if status == self.runtime.cudaError_t.cudaErrorMemoryAllocation:
            self.runtime.cudaGetLastError()
            where = "on the GPU" if function == "cudaMalloc" else "of page-locked memory"
            raise BackendError(
                f"out of memory: {_mib(size_bytes)} {where} for {purpose} were asked for, "
                f"{' of '.join(map(_mib, self.free_bytes()))} are free; close other models, or ask for a shorter context"
            )
        if status != self.runtime.cudaError_t.cudaSuccess:
            self.runtime.cudaGetLastError()
            raise BackendError(f"{function} failed: {self._said(status)}{self._cure(status)}")
        return int(address)

    def _said(self, status: Any) -> str:
        texts = [getattr(self.runtime, function)(status)[1] for function in ("cudaGetErrorName", "cudaGetErrorString")]
        name, meaning = (text.decode() if isinstance(text, bytes) else str(text) for text in texts)
        return f"{name} ({meaning})"

    def _cure(self, status: Any) -> str:
        if status == self.runtime.cudaError_t.cudaErrorInsufficientDriver:
            version = _version(self.runtime.cudaRuntimeGetVersion()[1])
            return f"; no NVIDIA driver is there, or it is older than CUDA {version}: install cuda-bindings of its version"
        return ""


class _Owned:
    """Something of CUDA's that is given back once: by `close`, or when nobody holds it any more."""

    def __init__(self, cuda: Cuda, function: str, handle: int) -> None:
        self.handle = handle
        self._release = weakref.finalize(self, _give_back, cuda, function, handle)
        self._release.atexit = False  # CUDA may be gone by then, and takes everything with it

    def close(self) -> None:
        """Give it back. Closing twice is allowed."""
        self._release()


class DeviceMemory(_Owned):
    """Memory on the device."""

    def __init__(self, cuda: Cuda, address: int, size_bytes: int) -> None:
        super().__init__(cuda, "cudaFree", address)
        self.address, self.size_bytes = address, size_bytes


class HostMemory:
    """Page-locked memory. It lives as long as this object, and as any array of it: an array never dangles."""

    def __init__(self, cuda: Cuda, address: int, size_bytes: int) -> None:
        self.address, self.size_bytes = address, size_bytes
        self._raw: Any = (ctypes.c_ubyte * max(size_bytes, 1)).from_address(address)
        weakref.finalize(self._raw, _give_back, cuda, "cudaFreeHost", address).atexit = False

    def array(self, dtype: Any, shape: tuple[int, ...]) -> Tensor:
        """The beginning of the memory as an array."""
        return np.ndarray(shape, dtype, self._raw)

    def close(self) -> None:
        """Let go of it. Closing twice is allowed."""
        self._raw = None


class Stream(_Owned):
    """A queue of work on the device, in order."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__(cuda, "cudaStreamDestroy", int(cuda.call("cudaStreamCreateWithFlags", _NON_BLOCKING)))
        self._cuda = cuda
        self._kinds = cuda.runtime.cudaMemcpyKind

    def to_device(self, target: int, source: int, size_bytes: int) -> None:
        """Queue a copy from the host."""
        self._copy(target, source, size_bytes, self._kinds.cudaMemcpyHostToDevice)

    def to_host(self, target: int, source: int, size_bytes: int) -> None:
        """Queue a copy to the host."""
        self._copy(target, source, size_bytes, self._kinds.cudaMemcpyDeviceToHost)

    def zero(self, target: int, size_bytes: int) -> None:
        """Queue writing zeros."""
        self._cuda.call("cudaMemsetAsync", target, 0, size_bytes, self.handle)

    def wait(self) -> None:
        """Wait until everything in the queue is done."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def record(self, work: Callable[[], None]) -> "Graph":
        """Let `work` queue what it queues, and keep it as a graph instead of doing it.

        Whatever `work` raises is raised; the stream is usable all the same.
        """
        cuda = self._cuda
        mode = cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call("cudaStreamBeginCapture", self.handle, mode)
        try:
            with _without_collection():
                work()
        except BaseException:
            with contextlib.suppress(BackendError):  # a capture that failed gives no graph
                cuda.call("cudaGraphDestroy", int(cuda.call("cudaStreamEndCapture", self.handle)))
            raise
        graph = int(cuda.call("cudaStreamEndCapture", self.handle))
        try:
            return Graph(cuda, int(cuda.call("cudaGraphInstantiate", graph, 0)))
        finally:
            cuda.call("cudaGraphDestroy", graph)

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any) -> None:
        if size_bytes:
            self._cuda.call("cudaMemcpyAsync", target, source, size_bytes, kind, self.handle)


class Graph(_Owned):
    """Recorded work, which is queued again in one call."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        super().__init__(cuda, "cudaGraphExecDestroy", handle)
        self._cuda = cuda

    def launch(self, stream: Stream) -> None:
        """Queue the work."""
        self._cuda.call("cudaGraphLaunch", self.handle, stream.handle)


class Event(_Owned):
    """A mark in a stream, for measuring."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__(cuda, "cudaEventDestroy", int(cuda.call("cudaEventCreate")))
        self._cuda = cuda

    def mark(self, stream: Stream) -> None:
        """Put the mark behind what is in the stream."""
        self._cuda.call("cudaEventRecord", self.handle, stream.handle)

    def seconds_since(self, earlier: "Event") -> float:
        """Device time between two marks, once this one is reached."""
        self._cuda.call("cudaEventSynchronize", self.handle)
        return float(self._cuda.call("cudaEventElapsedTime", earlier.handle, self.handle)) / 1000


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Let Python collect no garbage: memory of the device that is freed while its thread records ends the recording."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _give_back(cuda: Cuda, function: str, handle: int) -> None:
    try:
        cuda.call(function, handle)
    except BackendError as error:  # after a fault of the device nothing can be freed, and the fault has been reported
        _log.debug("%s", error)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes >> 20:,} MiB" if size_bytes >> 20 else f"{size_bytes} bytes"
