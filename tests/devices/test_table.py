"""The table of devices is sane: numbers follow from clocks, names are unique, and every row says where it is from."""

import itertools

import msgspec
import pytest

from edgegen.devices import peaks
from edgegen.devices.table import DEVICES, JETPACKS, Device, JetPack, jetpack_of, lookup, version
from edgegen.errors import UnknownNameError

ROWS = list(DEVICES.values())
CLOCKED = [(device, mode) for device in ROWS for mode in device.modes if mode.sms and mode.gpu_hz]
WITH_MEMORY_CLOCK = [(device, mode) for device in ROWS for mode in device.modes if mode.memory_hz]


def names(pairs):
    return [f"{device.name}-{mode.name}" for device, mode in pairs]


@pytest.mark.parametrize("device", ROWS, ids=lambda device: device.name)
def test_a_row_says_where_it_is_from(device):
    assert len(device.source) > 10
    assert device.confidence in {"high", "medium", "low"}


@pytest.mark.parametrize("device", ROWS, ids=lambda device: device.name)
def test_one_mode_is_the_default_and_the_row_repeats_its_peaks(device):
    (default,) = [mode for mode in device.modes if mode.default]
    assert device.default_mode is default
    for field in ("bandwidth_bytes_s", "fp16_flops", "int8_ops"):
        assert getattr(device, field) == getattr(default, field)


@pytest.mark.parametrize("device", ROWS, ids=lambda device: device.name)
def test_modes_have_names_of_their_own_and_rise_in_power(device):
    assert len({mode.name for mode in device.modes}) == len(device.modes)
    # A mode without a budget is above all; two setups of one module (standard, super) both have one.
    watts = [mode.watts or float("inf") for mode in device.modes if mode.setup != "standard"]
    assert watts == sorted(watts)


@pytest.mark.parametrize("device", ROWS, ids=lambda device: device.name)
def test_numbers_are_in_the_units_of_their_names(device):
    # The slowest and the fastest device of the table, with a factor of two around them: a slip of 1000 is outside.
    assert 1e9 < device.reserved_bytes + 1e9 < device.memory_bytes < 2e11
    for mode in device.modes:
        assert 8e9 < mode.bandwidth_bytes_s < 1e13
        assert 1.5e11 < mode.fp16_flops < 2e15
        assert mode.fp16_flops < mode.int8_ops <= 2.01 * mode.fp16_flops
        assert mode.watts is None or 5 <= mode.watts <= 1000
        assert mode.gpu_hz is None or 3e8 <= mode.gpu_hz <= 3e9
        assert mode.memory_hz is None or 1e9 <= mode.memory_hz <= 2e10


@pytest.mark.parametrize(("device", "mode"), CLOCKED, ids=names(CLOCKED))
def test_arithmetic_follows_from_the_clocks(device, mode):
    # Stated with four digits; NVIDIA's own rounded figures stay within 1%.
    assert mode.fp16_flops == pytest.approx(peaks.fp16_flops(device.sm, mode.sms, mode.gpu_hz), rel=0.01)
    assert mode.int8_ops == pytest.approx(peaks.int8_ops(device.sm, mode.sms, mode.gpu_hz), rel=0.01)


@pytest.mark.parametrize(("device", "mode"), WITH_MEMORY_CLOCK, ids=names(WITH_MEMORY_CLOCK))
def test_bandwidth_follows_from_the_memory_clock(device, mode):
    assert mode.bandwidth_bytes_s == pytest.approx(peaks.bandwidth(device.bus_bits, mode.memory_hz), rel=0.01)


@pytest.mark.parametrize(
    ("name", "mode", "field", "stated"),
    [  # what NVIDIA says of the whole device, brought to dense arithmetic on the GPU
        ("jetson-agx-orin-64gb", "MAXN", "int8_ops", 170e12 / 2),  # "170 sparse INT8 TOPS"
        ("jetson-orin-nano-8gb", "MAXN_SUPER", "int8_ops", 67e12 / 2),  # "67 TOPS", sparse, without a DLA
        ("jetson-orin-nano-8gb", "MAXN_SUPER", "bandwidth_bytes_s", 102e9),
        ("jetson-orin-nano-8gb", "15W", "bandwidth_bytes_s", 68e9),
        ("jetson-agx-orin-64gb", "MAXN", "bandwidth_bytes_s", 204.8e9),
        ("jetson-thor-t5000", "MAXN", "fp16_flops", 2070e12 / 8),  # "2,070 FP4 TFLOPS", sparse
        ("jetson-thor-t4000", "MAXN", "fp16_flops", 1200e12 / 8),
        ("jetson-thor-t5000", "MAXN", "bandwidth_bytes_s", 273e9),
        ("jetson-agx-xavier-32gb", "MAXN", "int8_ops", 22.6e12),
        ("rtx-4090", "default", "fp16_flops", 330.3e12),
        ("rtx-4090", "default", "bandwidth_bytes_s", 1008e9),
        ("rtx-5090", "default", "fp16_flops", 838e12 / 2),
        ("rtx-a6000", "default", "fp16_flops", 309.7e12 / 2),
        ("h100-sxm", "default", "fp16_flops", 989.4e12),
        ("h100-pcie", "default", "fp16_flops", 756e12),
    ],
)
def test_the_makers_figures_come_out(name, mode, field, stated):
    assert getattr(DEVICES[name].mode(mode), field) == pytest.approx(stated, rel=0.01)


def test_every_name_and_alias_means_one_device():
    spelt = list(itertools.chain.from_iterable((device.name, *device.aliases) for device in ROWS))
    assert len(set(spelt)) == len(spelt)
    assert all(lookup(name).name in DEVICES for name in spelt)


def test_a_precision_goes_with_the_generation():
    for device in ROWS:
        assert device.fp8 == (device.sm is not None and device.sm >= 89), device.name
        assert device.fp4 == (device.sm is not None and device.sm >= 100), device.name


def test_software_and_modules_agree():
    for device in ROWS:
        assert (device.kind == "jetson") == bool(device.software), device.name
        for release in device.software:
            assert device.name.startswith(JETPACKS[release].modules), f"{device.name} on {release}"


@pytest.mark.parametrize("jetpack", JETPACKS.values(), ids=lambda jetpack: jetpack.version)
def test_a_jetpack_row_is_whole(jetpack):
    assert jetpack.source
    assert jetpack.confidence
    assert all(version(number) for number in (jetpack.python, jetpack.cuda, jetpack.tensorrt, jetpack.cudnn))
    assert all(len(version(release)) == 3 for release in jetpack.l4t)
    assert all(any(name.startswith(module) for name in DEVICES) for module in jetpack.modules)


def test_jetpacks_are_in_their_order_and_share_no_release():
    assert list(JETPACKS) == sorted(JETPACKS, key=version)
    releases = list(itertools.chain.from_iterable(jetpack.l4t for jetpack in JETPACKS.values()))
    assert len(set(releases)) == len(releases)


@pytest.mark.parametrize(
    ("l4t", "expected"),
    [
        ("36.4.3", "6.2"),
        ("36.4.9", "6.2"),  # a patch that the table does not have yet
        ("36.4.0", "6.1"),
        ("39.2.1", "7.2"),
        ("38.4.0", "7.1"),
        ("35.4.1", "5.1"),
        ("32.7.1", None),
        ("", None),
    ],
)
def test_a_jetson_linux_release_tells_the_jetpack(l4t, expected):
    found = jetpack_of(l4t)
    assert (found and found.version) == expected


@pytest.mark.parametrize("spelt", ["orin-nano", "Orin Nano", "ORIN_NANO_8GB", "jetson-orin-nano-8gb"])
def test_a_name_may_be_spelt_in_several_ways(spelt):
    assert lookup(spelt).name == "jetson-orin-nano-8gb"


def test_an_unknown_name_gets_a_suggestion_or_the_list():
    with pytest.raises(UnknownNameError, match="did you mean 'orin-nano'"):
        lookup("orin-nan")
    with pytest.raises(UnknownNameError, match=r"known: .*jetson-orin-nano-8gb"):
        lookup("abacus")


def test_a_mode_is_found_by_either_name():
    orin = lookup("agx-orin")
    assert orin.mode("MODE_30W") is orin.mode("30W")
    with pytest.raises(UnknownNameError, match="power mode of jetson-agx-orin-64gb"):
        orin.mode("31W")


@pytest.mark.parametrize("kind", [Device, JetPack])
def test_an_unknown_key_is_an_error(kind):
    row = msgspec.to_builtins(next(iter((DEVICES if kind is Device else JETPACKS).values())))
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert(row | {"colour": "green"}, kind, strict=True)
