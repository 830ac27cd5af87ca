"""This machine as a target: its row or its facts, and, of a processor, what it is measured to do."""

import time
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from edgegen.backends.memory import available_bytes
from edgegen.backends.ort.kernels import kernels
from edgegen.backends.threads import default_threads
from edgegen.bench.machine import read_bandwidth
from edgegen.devices.detect import detect
from edgegen.devices.precisions import needs_legacy
from edgegen.errors import EdgegenError, InputError
from edgegen.planner import fit, memory
from edgegen.planner.graphs import CPU, Ask, read_bundle
from edgegen.planner.target import Target, target

_SIDE = 1536  # of the matrices: large enough for a library's best kernels
_REPEATS = 5


def this_machine(*, mode: str | None = None, backend: str | None = None) -> Target:
    """Detect and measure this machine (about a second on a processor).

    Raises:
        InputError: what it is cannot be known.
        UnknownNameError: it has no such power mode.
    """
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
    is_old = found.is_old if machine.jetpack is None else needs_legacy(machine.jetpack)
    return replace(found, threads=default_threads(), is_old=is_old)


def fit_line(path: Any) -> str:
    """Whether a bundle fits into this machine's free memory with onnxruntime, in a line; nothing is measured for it."""
    try:
        bundle = read_bundle(path, CPU, has_kernels=kernels() is not None)
        asked = bundle.settled(Ask())
        size = fit.total(memory.runtime(CPU, bundle.manifest.family), memory.usage(bundle, asked, threads=default_threads()))
    except EdgegenError as error:
        return f"memory:  not known: {error}"
    what = f"a context of {asked.context}" if asked.context is not None else f"a batch of {asked.batch}"
    free = available_bytes()
    said = f"memory:  {size >> 20} MiB at the peak with onnxruntime on the CPU and {what}"
    if free is None:
        return said
    return (
        f"{said}: {'fits here' if size <= free else 'DOES NOT FIT here'}, {free >> 20} MiB are free (`edgegen plan` tells more)"
    )


def product_flops() -> float:
    """Floating-point operations in a second that numpy's product of two float32 matrices reaches here, at best."""
    one: Any = np.ones((_SIDE, _SIDE), np.float32)
    best_s = float("inf")
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        one @ one
        best_s = min(best_s, time.perf_counter() - start)
    return 2.0 * _SIDE**3 / best_s
