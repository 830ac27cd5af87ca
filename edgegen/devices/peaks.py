"""What clocks allow: memory bandwidth and dense arithmetic, from the power mode as it is.

A roofline must come from the live mode: on one Jetson module the modes differ by up to three times.
"""

FP16_PER_SM_CLOCK = {  # compute capability: dense float16 FLOP of one streaming multiprocessor in one clock
    72: 1024,  # Volta: 8 tensor cores of 64 multiply-adds
    75: 1024,
    80: 2048,
    86: 1024,
    87: 2048,  # Orin: the tensor cores of the data-center Ampere
    89: 1024,
    90: 4096,
    100: 8192,
    110: 8192,  # Thor: the tensor cores of the data-center Blackwell
    120: 1024,
    121: 1024,
}
FIRST_FP8, FIRST_FP4 = 89, 100  # the compute capabilities from which on there is such arithmetic (Ada, Blackwell)
INT8_PER_FP16 = 2  # true of every GPU above, dense
_TRANSFERS_PER_CLOCK = 2  # all memories here are double data rate


def bandwidth(bus_bits: int, memory_hz: float) -> float:
    """Bytes a second of a memory bus at that clock."""
    return bus_bits / 8 * _TRANSFERS_PER_CLOCK * memory_hz


def fp16_flops(sm: int, sms: int, gpu_hz: float) -> float | None:
    """Dense float16 FLOP a second of `sms` multiprocessors; None for a compute capability that is not known."""
    per_clock = FP16_PER_SM_CLOCK.get(sm)
    return None if per_clock is None else per_clock * sms * gpu_hz


def int8_ops(sm: int, sms: int, gpu_hz: float) -> float | None:
    """Dense int8 operations a second, in the same way."""
    flops = fp16_flops(sm, sms, gpu_hz)
    return None if flops is None else INT8_PER_FP16 * flops
