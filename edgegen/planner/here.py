"""This machine as a target: its row or its facts, and, of a processor, what it is measured to do."""

import time
from typing import Any

import numpy as np

from edgegen.backends.threads import default_threads
from edgegen.bench.machine import read_bandwidth
from edgegen.devices.detect import detect
from edgegen.errors import InputError
from edgegen.planner.graphs import CPU
from edgegen.planner.target import Target, target

_SIDE = 1536  # of the matrices: large enough for a library's best kernels
_REPEATS = 5


def this_machine(*, mode: str | None = None, backend: str | None = None) -> Target:
    """Detect and measure this machine (about a second on a processor).

    Raises:
        InputError: what it is cannot be known.
        UnknownNameError: it has no such power mode.
    """
    import msgspec

    machine = detect()
    device = machine.device(read_bandwidth() if machine.kind == "cpu" else None)
    if device is None:
        raise InputError("this machine's memory and peaks cannot be read; name a device with --target (`edgegen devices`)")
    if machine.kind == "cpu":  # the clock that a virtual machine tells may be less than what it has
        flops = max(device.fp16_flops, product_flops())
        here = msgspec.structs.replace(device.default_mode, fp16_flops=flops, int8_ops=max(device.int8_ops, 4 * flops))
        device = msgspec.structs.replace(device, modes=(here,), fp16_flops=flops, int8_ops=here.int8_ops)
    cache = machine.cpu.last_level_cache_bytes if machine.kind == "cpu" else None
    found = target(device, mode=mode, backend=backend or CPU, cache_bytes=cache)
    return Target(found.device, found.mode, found.backend, found.cache_bytes, default_threads())


def product_flops() -> float:
    """Floating-point operations in a second that numpy's product of two float32 matrices reaches here, at best."""
    one: Any = np.ones((_SIDE, _SIDE), np.float32)
    best_s = float("inf")
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        one @ one
        best_s = min(best_s, time.perf_counter() - start)
    return 2.0 * _SIDE**3 / best_s
