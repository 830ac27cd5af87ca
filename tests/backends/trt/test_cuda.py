"""The layer over CUDA: every status is checked, everything is freed once."""

import gc

import numpy as np
import pytest
from simulated_tensorrt.cuda_runtime import FUNCTIONS
from simulated_tensorrt.cuda_runtime import Cuda as SimulatedCuda

from edgegen.backends.trt import cuda as layer
from edgegen.backends.trt.cuda import Cuda, Event, load_runtime
from edgegen.errors import BackendError, InputError


@pytest.fixture
def machine() -> SimulatedCuda:
    return SimulatedCuda()


@pytest.fixture
def cuda(machine) -> Cuda:
    return Cuda(machine.module)


def test_a_gpu_is_described(cuda):
    gpu = cuda.gpu()
    assert gpu == ("Simulated GPU", 89, 8 << 30, False, "13.0", "13.0", 0)
    assert cuda.free_bytes() == (8 << 30, 8 << 30)


def test_without_a_driver_the_error_says_what_is_missing():
    with pytest.raises(BackendError, match=r"cudaGetDeviceCount failed: cudaErrorInsufficientDriver \(.*\); no NVIDIA"):
        Cuda(SimulatedCuda(devices=0).module)


def test_a_device_that_is_not_there_is_refused(machine):
    for device in (1, -1):
        with pytest.raises(InputError, match="this machine has 1, counted from 0"):
            Cuda(machine.module, device)


def test_bytes_go_to_the_device_and_back(cuda):
    stream = cuda.stream()
    there, here, back = cuda.device_memory(12, "a test"), cuda.host_memory(12, "a test"), cuda.host_memory(12, "a test")
    here.array(np.float32, (3,))[:] = [1, 2, 3]
    stream.to_device(there.address, here.address, 12)
    stream.to_host(back.address, there.address, 12)
    found = back.array(np.float32, (3,))
    assert found[0] != 1  # nothing is done before it is waited for
    stream.wait()
    np.testing.assert_array_equal(found, [1, 2, 3])
    stream.zero(there.address, 8)
    stream.to_host(back.address, there.address, 12)
    stream.wait()
    np.testing.assert_array_equal(found, [0, 0, 3])


def test_everything_is_freed_once_however_often_it_is_closed(cuda, machine):
    owned = [cuda.device_memory(0, "a test"), cuda.host_memory(0, "a test"), cuda.stream(), Event(cuda)]
    assert machine.leaks() == {"device": 1, "host": 1, "streams": 1, "events": 1}
    for one in owned * 2:
        one.close()
    assert machine.leaks() == {}
    assert machine.calls.count("cudaFree") == 1


def test_what_nobody_holds_is_freed(cuda, machine):
    cuda.device_memory(10, "a test")
    cuda.stream()
    gc.collect()
    assert machine.leaks() == {}


def test_host_memory_lives_as_long_as_its_arrays(cuda, machine):
    memory = cuda.host_memory(8, "a test")
    view = memory.array(np.int32, (2,))[1:]
    memory.close()
    view[:] = 5
    assert machine.in_use("host") == 1
    del view
    gc.collect()
    assert machine.in_use("host") == 0


@pytest.mark.parametrize(("make", "where"), [("device_memory", "on the GPU"), ("host_memory", "of page-locked memory")])
def test_too_much_memory_is_said_with_what_is_free(cuda, make, where):
    held = cuda.device_memory(3 << 30, "a test")
    with pytest.raises(BackendError, match=rf"6,144 MiB {where} for a cache were .*, 5,120 MiB of 8,192 MiB are free"):
        getattr(cuda, make)(6 << 30, "a cache")
    held.close()


def test_recorded_work_is_done_when_it_is_launched(cuda, machine):
    stream, there = cuda.stream(), cuda.device_memory(4, "a test")
    here, back = cuda.host_memory(4, "a test"), cuda.host_memory(4, "a test")
    value, found = here.array(np.int32, (1,)), back.array(np.int32, (1,))

    def work() -> None:
        stream.to_device(there.address, here.address, 4)
        stream.to_host(back.address, there.address, 4)

    graph = stream.record(work)
    stream.wait()
    assert machine.journal == []
    for number in (3, 4):
        value[0] = number
        graph.launch(stream)
        stream.wait()
        assert found[0] == number
    graph.close()
    graph.close()
    assert machine.journal == ["GraphLaunch", "HostToDevice", "DeviceToHost"] * 2
    assert "graphs" not in machine.leaks()
    assert "executables" not in machine.leaks()


def test_a_recording_that_fails_leaves_the_stream_usable(cuda, machine):
    stream = cuda.stream()
    with pytest.raises(ZeroDivisionError):
        stream.record(lambda: 1 / 0)
    with pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"):
        stream.record(stream.wait)  # CUDA refuses to wait while it records
    stream.wait()
    stream.close()
    assert machine.leaks() == {}


def test_garbage_is_not_collected_while_a_run_is_recorded(cuda, machine):
    """It may hold memory of the device, and freeing that ends the recording."""
    stream, held = cuda.stream(), [cuda.device_memory(4, "a test")]

    def work() -> None:
        lost: list[object] = [held.pop()]
        lost.append(lost)
        del lost
        _ = [[] for _ in range(20_000)]  # far more than Python makes without a collection

    stream.record(work).close()
    assert gc.isenabled()
    gc.collect()
    stream.close()
    assert machine.leaks() == {}


def test_time_between_two_marks_is_in_seconds(cuda):
    stream, first, second = cuda.stream(), Event(cuda), Event(cuda)
    first.mark(stream)
    second.mark(stream)
    assert second.seconds_since(first) == 0.002  # the simulation's answer: 2 ms


def test_a_fault_of_the_device_stays_and_closing_is_still_allowed(cuda, machine):
    stream, memory = cuda.stream(), cuda.device_memory(4, "a test")
    stream.to_device(memory.address, 0x10, 4)
    for _ in range(2):
        with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
            stream.wait()
    memory.close()
    stream.close()


def test_missing_bindings_name_the_package(monkeypatch):
    monkeypatch.setattr(layer, "MODULE", "no_such_module_at_all")
    with pytest.raises(BackendError, match=r'pip install "cuda-bindings>=12.6"'):
        load_runtime()


# What the layer calls without a device, with arguments of the kinds that it gives: handles and addresses are plain integers.
PLACE, HANDLE = 4096, 12345
CALLS = {
    "cudaSetDevice": (0,), "cudaGetDeviceProperties": (0,), "cudaMemGetInfo": (), "cudaMalloc": (8,), "cudaHostAlloc": (8, 1),
    "cudaFree": (0,), "cudaFreeHost": (0,), "cudaStreamCreateWithFlags": (1,), "cudaStreamSynchronize": (HANDLE,),
    "cudaStreamDestroy": (HANDLE,), "cudaMemcpyAsync": (PLACE, PLACE, 4, "cudaMemcpyHostToDevice", HANDLE),
    "cudaMemsetAsync": (PLACE, 0, 4, HANDLE), "cudaStreamEndCapture": (HANDLE,), "cudaGraphInstantiate": (HANDLE, 0),
    "cudaStreamBeginCapture": (HANDLE, "cudaStreamCaptureModeThreadLocal"), "cudaGraphLaunch": (HANDLE, HANDLE),
    "cudaGraphDestroy": (HANDLE,), "cudaGraphExecDestroy": (HANDLE,), "cudaEventCreate": (), "cudaEventDestroy": (HANDLE,),
    "cudaEventRecord": (HANDLE, HANDLE), "cudaEventSynchronize": (HANDLE,), "cudaEventElapsedTime": (HANDLE, HANDLE),
    "cudaGetDeviceCount": (),
}  # fmt: skip


def test_the_real_bindings_take_what_the_layer_gives_and_return_a_status_first():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] != runtime.cudaError_t.cudaErrorInsufficientDriver:
        pytest.skip("there is a driver, to which no invented handle is given")
    kinds = {**runtime.cudaMemcpyKind.__members__, **runtime.cudaStreamCaptureMode.__members__}
    told = {"cudaGetErrorName", "cudaGetErrorString", "cudaGetLastError", "cudaDriverGetVersion", "cudaRuntimeGetVersion"}
    assert CALLS.keys() | told == set(FUNCTIONS)
    for name, arguments in CALLS.items():
        given = [kinds.get(argument, argument) for argument in arguments]
        status, *_ = getattr(runtime, name)(*given)  # TypeError where it wants another kind of argument
        assert status == runtime.cudaError_t.cudaErrorInsufficientDriver, name


def test_the_functions_that_are_called_are_in_the_real_bindings():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    missing = [
        name for name in SimulatedCuda(devices=0).module.__dict__ if name.startswith("cuda") and not hasattr(runtime, name)
    ]
    assert missing == []
    assert runtime.cudaError_t.cudaErrorMemoryAllocation == 2
