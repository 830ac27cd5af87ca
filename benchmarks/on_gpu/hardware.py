"""The GPU: what it is, what its clocks do, and how fast its memory is. Driver and NVML alone: no CUDA toolkit, no torch."""

import contextlib
import ctypes
import statistics
import time

_COPY_BYTES, _COPIES, _AT_ONCE = 256 << 20, 10, 8  # several at once: to wait for one takes a tenth of what it does
_MAJOR, _MINOR, _SMS = 75, 76, 16  # CUdevice_attribute
_REASONS = {  # NVML's bits of what holds the clocks
    0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake",
}  # fmt: skip


def gpus():
    """What the driver tells of each GPU; and why there is none, where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return [], f"no NVIDIA driver: {error}"
    code, count = driver.cuInit(0), ctypes.c_int()
    if code != 0:
        return (
            [],
            f"the NVIDIA driver does not start (cuInit gives {code}; 100: no device, 999 or 803: driver and kernel differ)",
        )
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return [], "the NVIDIA driver is there, but no GPU is visible; look at CUDA_VISIBLE_DEVICES"
    return [_gpu(driver, index) for index in range(count.value)], None


def _gpu(driver, index):
    device, name, size, version = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    numbers = {}
    for key, attribute in (("major", _MAJOR), ("minor", _MINOR), ("multiprocessors", _SMS)):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers[key] = value.value
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": f"{numbers['major']}.{numbers['minor']}",
        "multiprocessors": numbers["multiprocessors"],
        "memory_bytes": size.value,
        "driver_cuda_version": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def clocks(index=0):
    """Clocks, temperature, power and what holds the clocks, now; {"missing": why} where NVML does not tell."""
    try:
        import pynvml
    except ImportError:
        return {"missing": "pip install nvidia-ml-py"}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"missing": f"NVML does not start: {error}"}
    try:
        return _clocks(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        return {"missing": f"NVML: {error}"}
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _clocks(nvml, handle):
    """Each figure by itself: a Jetson and a virtual GPU tell only some."""
    reads = {
        "driver": nvml.nvmlSystemGetDriverVersion,
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "sm_mhz_max": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz_max": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
        "performance_state": lambda: nvml.nvmlDeviceGetPerformanceState(handle),
        "persistence": lambda: nvml.nvmlDeviceGetPersistenceMode(handle),
        "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        "held_by": lambda: _held_by(nvml, handle),
    }
    found = {}
    for key, read in reads.items():
        try:
            value = read()
        except (nvml.NVMLError, AttributeError) as error:
            value = None
            found.setdefault("untold", {})[key] = str(error)
        found[key] = value.decode() if isinstance(value, bytes) else value
    return found


def _held_by(nvml, handle):
    names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")  # newer, older
    bits = next(getattr(nvml, name) for name in names if hasattr(nvml, name))(handle)
    return [reason for bit, reason in _REASONS.items() if bits & bit]


def throttled(*moments):
    """Whether heat or power held the clocks at any of these moments; None where nobody knows."""
    seen = [set(moment["held_by"]) for moment in moments if moment.get("held_by") is not None]
    return any(held - {"idle", "application clocks", "sync boost"} for held in seen) if seen else None


def copy_bandwidth(index=0):
    """Bytes read and written per second by copies within the GPU's memory: the median of ten times eight copies of 256 MiB."""
    driver = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        if code := getattr(driver, name)(*arguments):
            raise RuntimeError(f"{name} gives {code}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    source, target, size = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_size_t(_COPY_BYTES)
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", ctypes.byref(source), size)
    call("cuMemAlloc_v2", ctypes.byref(target), size)
    rates = []
    for _ in range(3 + _COPIES):
        call("cuCtxSynchronize")
        start_s = time.perf_counter()
        for _ in range(_AT_ONCE):
            call("cuMemcpyDtoD_v2", target, source, size)
        call("cuCtxSynchronize")
        rates.append(2 * _AT_ONCE * _COPY_BYTES / (time.perf_counter() - start_s))
    call("cuMemFree_v2", source)
    call("cuMemFree_v2", target)
    return statistics.median(rates[3:])
