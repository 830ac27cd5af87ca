"""Cards by NVML: every answer has its place, and no answer is no error. NVML itself is played by a module made here."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from edgegen.devices import nvidia
from edgegen.devices.detect import detect
from edgegen.devices.live import gpu_device
from edgegen.devices.nvidia import read_gpus


class FakeNvmlError(Exception):
    pass


def fake_nvml(**answers):
    """A module with NVML's names: a function for each answer, which raises where the answer is None."""
    module = ModuleType("pynvml")
    module.NVMLError, module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM = FakeNvmlError, 1, 2
    module.calls = []

    def function(name, answer):
        def call(*arguments):
            module.calls.append(name)
            if answer is None:
                raise FakeNvmlError("Not Supported")
            return answer(*arguments) if callable(answer) else answer

        return call

    for name, answer in (RTX_4090 | answers).items():
        setattr(module, name, function(name, answer))
    return module


RTX_4090 = {
    "nvmlInit": 0,
    "nvmlShutdown": 0,
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": lambda index: f"card {index}",
    "nvmlSystemGetDriverVersion": "580.95.05",
    "nvmlSystemGetCudaDriverVersion_v2": 13000,
    "nvmlDeviceGetName": "NVIDIA GeForce RTX 4090",
    "nvmlDeviceGetCudaComputeCapability": (8, 9),
    "nvmlDeviceGetNumGpuCores": 16384,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24564 << 20, used=512 << 20),
    "nvmlDeviceGetMemoryBusWidth": 384,
    "nvmlDeviceGetMaxClockInfo": lambda _handle, kind: {1: 3105, 2: 10501}[kind],
    "nvmlDeviceGetClockInfo": lambda _handle, kind: {1: 210, 2: 405}[kind],
    "nvmlDeviceGetEnforcedPowerLimit": 450_000,
    "nvmlDeviceGetMigMode": None,  # a card without MIG answers so
}


@pytest.fixture
def play(monkeypatch):
    def put(**answers):
        module = fake_nvml(**answers)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return put


def test_a_card_is_read_and_found_in_the_table(play):
    module = play()
    gpus = read_gpus()
    (card,) = gpus.cards
    assert (gpus.driver, gpus.cuda, gpus.reason) == ("580.95.05", "13.0", "")
    assert (card.sm, card.power_limit_watts, card.mig) == (89, 450.0, None)
    assert (card.gpu_hz, card.gpu_now_hz, card.memory_hz) == (3.105e9, 2.1e8, 1.0501e10)
    assert gpu_device(card).name == "rtx-4090"
    assert module.calls[-1] == "nvmlShutdown"


def test_older_bindings_answer_in_bytes_and_lack_functions(play):
    module = play(nvmlDeviceGetName=b"NVIDIA GeForce RTX 4090", nvmlSystemGetDriverVersion=b"470.1")
    del module.nvmlDeviceGetNumGpuCores
    gpus = read_gpus()
    assert (gpus.driver, gpus.cards[0].name, gpus.cards[0].cores) == ("470.1", "NVIDIA GeForce RTX 4090", None)


def test_a_card_that_the_table_does_not_have_gets_peaks_from_its_clocks(play):
    play(nvmlDeviceGetName="NVIDIA Card of Tomorrow")
    device = gpu_device(read_gpus().cards[0])
    assert (device.name, device.title, device.confidence) == ("this-machine", "NVIDIA Card of Tomorrow", "low")
    assert device.fp16_flops == pytest.approx(128 * 3.105e9 * 1024)
    assert device.bandwidth_bytes_s == pytest.approx(384 / 8 * 2 * 10.501e9)
    assert (device.fp8, device.fp4) == (True, False)


def test_a_card_that_tells_too_little_has_no_peaks(play):
    play(nvmlDeviceGetName="NVIDIA Card of Tomorrow", nvmlDeviceGetMaxClockInfo=None)
    assert gpu_device(read_gpus().cards[0]) is None
    play(nvmlDeviceGetName="NVIDIA Card of Tomorrow", nvmlDeviceGetCudaComputeCapability=(19, 9))
    assert gpu_device(read_gpus().cards[0]) is None


def test_a_partitioned_card_says_so(play):
    play(nvmlDeviceGetName="NVIDIA H200", nvmlDeviceGetMigMode=[1, 1])
    assert read_gpus().cards[0].mig is True


@pytest.mark.parametrize("silent", [name for name in RTX_4090 if name.startswith("nvmlDeviceGet") or "System" in name])
def test_a_question_without_an_answer_leaves_its_field_empty(play, silent):
    play(**{silent: None})
    read_gpus()  # does not raise


def test_no_library_no_driver_and_no_card_are_reasons(play, monkeypatch):
    play(nvmlInit=None)
    assert read_gpus().reason == "NVML: Not Supported"
    play(nvmlDeviceGetCount=0)
    assert read_gpus().reason == "NVML finds no card"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia.PACKAGE in read_gpus().reason


def test_the_machine_is_its_first_card(play):
    play()
    machine = detect()
    assert (machine.kind, machine.row.name, machine.device().sm) == ("gpu", "rtx-4090", 89)
