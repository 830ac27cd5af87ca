# ruff: noqa: N801, N802, N815  # the names are the bindings' own
"""A simulation of `cuda.bindings.runtime` for tests: memory at real host addresses, work that is done when it is waited for.

Work is queued and done only at a synchronization, so that whoever looks at a result too early, or changes memory too soon,
sees it. No figure is ever taken from it.
"""

import enum
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

GARBAGE = 0xCD  # what fresh memory holds
_MEANINGS = {2: b"out of memory", 35: b"CUDA driver version is insufficient for CUDA runtime version"}
_ALIGNMENT = 256
_WITHOUT_DRIVER = {"cudaGetErrorName", "cudaGetErrorString", "cudaGetLastError", "cudaRuntimeGetVersion"}


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


OK = cudaError_t.cudaSuccess
Work = tuple[str, Callable[[], None]]  # what it is, for the journal; and how it is done


class IllegalAddressError(Exception):
    """Work touches memory that is not there."""


@dataclass
class Stream:
    device: int = 0
    queue: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    is_broken: bool = False  # the recording
    thread: int = 0  # which records


@dataclass
class Device:
    """What `cudaGetDeviceProperties` tells."""

    name: bytes = b"Simulated GPU"
    major: int = 8
    minor: int = 9
    totalGlobalMem: int = 1 << 33
    integrated: int = 0


class Cuda:
    """The state of one simulated machine. `module` is what stands in for `cuda.bindings.runtime`.

    Attributes:
        devices: the GPUs; none simulates a machine without a driver.
        fail_allocation: the how-manieth allocation from now fails, 1 the next; None: none.
        journal: what was done on the device, in its order.
        calls: the names of the functions that were called.
    """

    def __init__(self, devices: int = 1) -> None:
        self.devices = [Device() for _ in range(devices)]
        self.memory: dict[int, tuple[str, np.ndarray, np.ndarray]] = {}  # by address: kind, the bytes, what holds them
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.events: set[int] = set()
        self.contexts: set[int] = set()  # the devices that the process has one on
        self.journal: list[str] = []
        self.calls: list[str] = []
        self.fail_allocation: int | None = None
        self.fail_capture = False
        self.fault = OK  # sticky, as a device fault is
        self._handles = iter(range(1000, 1 << 30))
        self._lock = threading.RLock()
        self._here = threading.local()
        self.module = self._module()

    def _module(self) -> types.ModuleType:
        module = types.ModuleType("cuda.bindings.runtime")
        for name in FUNCTIONS:
            setattr(module, name, self._logged(name, getattr(self, name)))
        for kind in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode):
            setattr(module, kind.__name__, kind)
        return module

    def _logged(self, name: str, function: Callable) -> Callable:
        def call(*arguments):
            with self._lock:
                self.calls.append(name)
                if not self.devices and name not in _WITHOUT_DRIVER:
                    return (cudaError_t.cudaErrorInsufficientDriver, None)
                return function(*arguments)

        return call

    # --- what tests look at

    def in_use(self, kind: str) -> int:
        """How many pieces of memory, "device" or "host", are allocated."""
        return sum(1 for found, _, _ in self.memory.values() if found == kind)

    def leaks(self) -> dict[str, int]:
        """What was made and not given back."""
        found = {"device": self.in_use("device"), "host": self.in_use("host"), "streams": len(self.streams)}
        found |= {"graphs": len(self.graphs), "executables": len(self.executables), "events": len(self.events)}
        return {name: count for name, count in found.items() if count}

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """The memory itself; IllegalAddressError where it is not allocated, or ends too soon."""
        for start, (_, content, _) in self.memory.items():
            if start <= address and address + size <= start + content.size:
                return content[address - start : address - start + size]
        raise IllegalAddressError(f"{size} bytes at {address:#x}")

    def enqueue(self, handle: int, what: str, work: Callable[[], None]) -> cudaError_t:
        """Put work into a stream, or into what is being recorded of it."""
        stream = self.streams.get(handle)
        if stream is None:
            return cudaError_t.cudaErrorInvalidResourceHandle
        (stream.queue if stream.recording is None else stream.recording).append((what, work))
        return OK

    def _drain(self, stream: Stream) -> cudaError_t:
        while stream.queue and self.fault == OK:
            what, work = stream.queue.pop(0)
            try:
                work()
            except IllegalAddressError:
                self.fault = cudaError_t.cudaErrorIllegalAddress
            self.journal.append(what)
        return self.fault

    @property
    def current(self) -> int:
        """The device that this thread has chosen; the first where it has chosen none."""
        return getattr(self._here, "device", 0)

    def kind_at(self, address: int) -> str:
        """What memory lies at an address: "device" or "host"; "" where nothing is allocated."""
        found = (kind for start, (kind, content, _) in self.memory.items() if start <= address < start + content.size)
        return next(found, "")

    def is_recorded(self, handle: int) -> bool:
        """Whether what is put into a stream is recorded, not done."""
        return handle in self.streams and self.streams[handle].recording is not None

    def _is_recording(self) -> bool:
        """Whether this thread records, which what it just did has ended: no other may be disturbed by it (`ThreadLocal`)."""
        here = threading.get_ident()
        found = [stream for stream in self.streams.values() if stream.recording is not None and stream.thread == here]
        for stream in found:
            stream.is_broken = True
        return bool(found)

    # --- the functions, by the bindings' names

    def cudaGetErrorName(self, status):
        return OK, status.name.encode()

    def cudaGetErrorString(self, status):
        return OK, _MEANINGS.get(status, b"a fault")

    def cudaGetLastError(self):
        return (self.fault,)

    def cudaGetDeviceCount(self):
        return OK, len(self.devices)

    def cudaSetDevice(self, device):
        if not 0 <= device < len(self.devices):
            return (cudaError_t.cudaErrorInvalidValue,)
        self._here.device = device
        self.contexts.add(device)
        return (OK,)

    def cudaGetDeviceProperties(self, device):
        return OK, self.devices[device]

    def cudaDriverGetVersion(self):
        return OK, 13000

    def cudaRuntimeGetVersion(self):
        return OK, 13000

    def cudaMemGetInfo(self):
        total = self.devices[0].totalGlobalMem
        return OK, total - sum(content.size for kind, content, _ in self.memory.values() if kind == "device"), total

    def cudaMalloc(self, size):
        return self._allocate("device", size)

    def cudaHostAlloc(self, size, flags):
        return self._allocate("host", size)

    def _allocate(self, kind, size):
        if self._is_recording():
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        if self.fail_allocation is not None:
            self.fail_allocation -= 1
            if self.fail_allocation <= 0:
                self.fail_allocation = None
                return cudaError_t.cudaErrorMemoryAllocation, None
        if size > self.cudaMemGetInfo()[1]:
            return cudaError_t.cudaErrorMemoryAllocation, None
        raw = np.full(size + _ALIGNMENT, GARBAGE, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        content = raw[start : start + size]
        self.memory[content.ctypes.data] = (kind, content, raw)
        return OK, content.ctypes.data

    def cudaFree(self, address):
        return self._free("device", address)

    def cudaFreeHost(self, address):
        return self._free("host", address)

    def _free(self, kind, address):
        if self._is_recording():
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        if self.memory.get(address, ("",))[0] != kind:
            return (cudaError_t.cudaErrorInvalidValue,)
        for stream in self.streams.values():  # the real one waits for the device
            self._drain(stream)
        _, content, _ = self.memory.pop(address)
        content.fill(GARBAGE)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        handle = next(self._handles)
        self.streams[handle] = Stream(self.current)
        return OK, handle

    def cudaStreamDestroy(self, handle):
        stream = self.streams.pop(handle, None)
        if stream is None:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self._drain(stream)
        return (OK,)

    def cudaStreamSynchronize(self, handle):
        if self._is_recording():
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        return (self._drain(self.streams[handle]),)

    def cudaMemcpyAsync(self, target, source, size, kind, handle):
        places = (self.kind_at(source), self.kind_at(target))
        if {"cudaMemcpyHostToDevice": ("device", "host"), "cudaMemcpyDeviceToHost": ("host", "device")}[kind.name] == places:
            return (cudaError_t.cudaErrorInvalidValue,)  # the wrong way round

        def work() -> None:
            self.bytes_at(target, size)[:] = self.bytes_at(source, size)

        return (self.enqueue(handle, kind.name.removeprefix("cudaMemcpy"), work),)

    def cudaMemsetAsync(self, target, value, size, handle):
        def work() -> None:
            self.bytes_at(target, size)[:] = value

        return (self.enqueue(handle, "Memset", work),)

    def cudaStreamBeginCapture(self, handle, mode):
        stream = self.streams[handle]
        stream.recording, stream.is_broken, stream.thread = [], self.fail_capture, threading.get_ident()
        return (OK,)

    def cudaStreamEndCapture(self, handle):
        stream = self.streams[handle]
        work, stream.recording = stream.recording, None
        if stream.is_broken or work is None:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        graph = next(self._handles)
        self.graphs[graph] = work
        return OK, graph

    def cudaGraphInstantiate(self, graph, flags):
        handle = next(self._handles)
        self.executables[handle] = list(self.graphs[graph])
        return OK, handle

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (OK,)

    def cudaGraphExecDestroy(self, handle):
        del self.executables[handle]
        return (OK,)

    def cudaGraphLaunch(self, handle, stream):
        self.streams[stream].queue.append(("GraphLaunch", lambda: None))
        self.streams[stream].queue += self.executables[handle]
        return (OK,)

    def cudaEventCreate(self):
        handle = next(self._handles)
        self.events.add(handle)
        return OK, handle

    def cudaEventDestroy(self, handle):
        self.events.remove(handle)
        return (OK,)

    def cudaEventRecord(self, handle, stream):
        return (self.enqueue(stream, "Event", lambda: None),)

    def cudaEventSynchronize(self, handle):
        for stream in self.streams.values():
            self._drain(stream)
        return (self.fault,)

    def cudaEventElapsedTime(self, start, end):
        return OK, 2.0  # milliseconds


FUNCTIONS = [name for name in vars(Cuda) if name.startswith("cuda")]
