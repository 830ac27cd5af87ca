"""What a plan is made for: a device in a power mode, the memory that is left on it, and its peaks for a precision."""

from dataclasses import dataclass

from edgegen.devices.precisions import needs_legacy, releases
from edgegen.devices.table import Device, PowerMode, lookup
from edgegen.errors import InputError, UnknownNameError
from edgegen.planner.graphs import CPU, PLANNED
from edgegen.planner.roofline import Peaks

_CACHE_BYTES = {"jetson": 8 << 20, "gpu": 128 << 20, "cpu": 32 << 20}  # more than the last caches of these kinds hold
_LARGE_JETSON_CACHE_BYTES = 48 << 20  # Thor: 32 MiB of L2 and a system cache
_FIRST_LARGE = 100  # its compute capability


@dataclass(frozen=True)
class Target:
    """A device in one mode, with one backend. `cache_bytes` may hold weights between runs: a bound does not count those.

    `is_old`: it has, or its device may have, a TensorRT that takes the older variants of a graph.
    """

    device: Device
    mode: PowerMode
    backend: str
    cache_bytes: int
    threads: int = 2
    is_old: bool = False

    @property
    def has_kernels(self) -> bool:
        """Whether edgegen's kernels run there: all processors of the table have an instruction set of theirs."""
        return self.backend == CPU

    @property
    def budget_bytes(self) -> int:
        """What is left for edgegen once the system has its part."""
        return self.device.memory_bytes - self.device.reserved_bytes

    @property
    def is_card(self) -> bool:
        """Whether the backend's memory is a card's own: what lies on the host does not count then."""
        return self.backend != CPU and not self.device.unified_memory

    def peaks(self, precision: str) -> Peaks:
        """The peaks that a bundle of that precision can reach.

        On a GPU weights in few bits are multiplied in float16, and float32 at half of its rate at most (TF32).
        """
        if self.backend == CPU:
            flops, ints = self.mode.fp16_flops, self.mode.int8_ops
        else:
            flops = self.mode.fp16_flops / (2 if precision == "fp32" else 1)
            ints = max(flops, self.mode.int8_ops if precision == "int8" else flops)
        return Peaks(self.mode.bandwidth_bytes_s, flops, ints, self.cache_bytes)


def target(device: Device, *, mode: str | None = None, backend: str | None = None, cache_bytes: int | None = None) -> Target:
    """The target that these name; the backend that suits the device, and its default mode, where none is named.

    Raises:
        UnknownNameError: the device has no such mode.
        InputError: the backend runs on an NVIDIA GPU, and the device has none.
    """
    if backend not in (None, CPU) and device.sm is None:
        raise InputError(f"{backend} runs on an NVIDIA GPU, and {device.title} has none; plan it with --backend {CPU}")
    chosen = device.mode(mode) if mode is not None else device.default_mode
    suits = backend or (CPU if device.kind == "cpu" else "tensorrt")
    usual = _LARGE_JETSON_CACHE_BYTES if device.kind == "jetson" and (device.sm or 0) >= _FIRST_LARGE else None
    cache = cache_bytes if cache_bytes is not None else usual or _CACHE_BYTES[device.kind]
    return Target(device, chosen, suits, cache, is_old=any(map(needs_legacy, releases(device))))


def target_of(name: str | None, mode: str | None, backend: str | None) -> Target:
    """The target that a command line names; this machine without a name.

    Raises:
        UnknownNameError: no such device, mode or backend.
        InputError: this machine cannot be known.
    """
    if backend is not None and backend not in PLANNED:
        raise UnknownNameError("backend", backend, PLANNED)
    if name is not None:
        return target(lookup(name), mode=mode, backend=backend)
    from edgegen.planner.here import this_machine

    return this_machine(mode=mode, backend=backend)
