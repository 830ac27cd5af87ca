"""What a number was measured on: processor, clocks, memory and its speed, versions."""

import importlib.metadata
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.backends import BACKENDS
from edgegen.backends.ort.kernels import kernels
from edgegen.backends.threads import default_threads
from edgegen.devices.cpu import clock_hz, instructions, last_level_cache_bytes
from edgegen.devices.detect import detect
from edgegen.devices.files import read_blocks, read_size, read_text

_ROOT = Path("/")
_LIBRARIES = ("edgegen", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "tokenizers")
_FALLBACK_CACHE_BYTES = 32 << 20  # where the size of the last-level cache cannot be read
_MIN_BUFFER_BYTES, _MAX_BUFFER_BYTES = 64 << 20, 512 << 20
_REPEATS = 5


def describe() -> dict[str, Any]:
    """This machine and the libraries that were used. What cannot be read is None."""
    fields = read_blocks(_ROOT, "proc/cpuinfo")[0]
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "usable_cores": default_threads(),
        "instructions": list(instructions(fields)),
        "governor": read_text(_ROOT, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_hz": clock_hz(fields),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": _memory_bytes(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": _versions(),
        "own_kernels": own.instructions if (own := kernels()) else None,
    }


def read_bandwidth(threads: int | None = None, size_bytes: int | None = None) -> float:
    """Measured memory bandwidth for reading, in bytes per second; of a buffer of `size_bytes`, where caches are to count too.

    Method: each thread adds up its own part of one int64 buffer, four times as large as the last-level cache (64 to 512 MiB),
    with numpy's vectorized reduction, which holds no lock; all parts are run at once; the best of five rounds counts, since a
    disturbance only ever makes it slower.
    """
    threads = threads or default_threads()
    cache_bytes = last_level_cache_bytes() or _FALLBACK_CACHE_BYTES
    size_bytes = size_bytes or min(max(4 * cache_bytes, _MIN_BUFFER_BYTES), _MAX_BUFFER_BYTES)
    parts = np.array_split(np.ones(size_bytes // 8, np.int64), threads)
    best_s = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(1 + _REPEATS):  # the first also starts the threads
            start = time.perf_counter()
            list(pool.map(np.add.reduce, parts))
            best_s = min(best_s, time.perf_counter() - start)
    return size_bytes / best_s


@dataclass(frozen=True)
class Bandwidth:
    """How fast a backend can read weights, in bytes per second, and whose figure that is; None where it is not known."""

    bytes_per_s: float | None
    source: str


def bandwidth_of(backend: str, threads: int | None = None) -> Bandwidth:
    """Of the memory that `backend` reads: measured on the processor; of a GPU, its device's stated one in its live mode."""
    if not BACKENDS[backend].needs_gpu:
        return Bandwidth(read_bandwidth(threads), "measured on the processor")
    device = detect().device()
    if device is None or device.kind == "cpu":
        return Bandwidth(None, "not known: edgegen has no figures of this machine's GPU")
    return Bandwidth(device.bandwidth_bytes_s, f"not measured: {device.title}, {device.source}")


def peak_memory_bytes() -> int | None:
    """The peak resident memory of this process so far (VmHWM of Linux), in bytes; None elsewhere."""
    return read_size(_ROOT, "proc/self/status", "VmHWM")


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def _versions() -> dict[str, str]:
    return {name: version for name in _LIBRARIES if (version := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
