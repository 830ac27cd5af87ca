"""Detection reads what a machine's files say, in whichever form its release has them, and never raises."""

import os
from pathlib import Path

import pytest

from edgegen.devices.detect import Machine, detect
from edgegen.devices.files import MAX_BYTES, read_bytes, read_number, read_text
from edgegen.devices.jetson import read_jetson
from edgegen.devices.table import DEVICES

TREES = Path(__file__).parent / "trees"


@pytest.mark.parametrize(
    ("tree", "row", "jetpack", "mode", "gb_s", "tflops"),
    [
        ("orin-nano-super-15w", "jetson-orin-nano-8gb", "6.2", "15W", 68.3, 10.03),
        ("orin-nano-super-25w", "jetson-orin-nano-8gb", "6.2", "25W", 102.4, 15.04),
        ("agx-orin-64gb-maxn", "jetson-agx-orin-64gb", "6.2", "MAXN", 204.7, 42.6),
        ("agx-orin-64gb-30w", "jetson-agx-orin-64gb", "6.2", "30W", 204.7, 10.03),
        ("orin-nx-16gb-jetpack-5", "jetson-orin-nx-16gb", "5.1", "10W", 68.3, 5.01),
        ("thor-jetpack-7", "jetson-thor-t5000", "7.1", "120W", 273.0, 227.1),
    ],
)
def test_a_jetson_is_known_with_its_software_and_its_live_mode(tree, row, jetpack, mode, gb_s, tflops):
    machine = detect(TREES / tree)
    assert (machine.kind, machine.row.name, machine.jetpack.version) == ("jetson", row, jetpack)
    device = machine.device()
    assert [live.name for live in device.modes] == [mode]
    # The numbers above have three or four digits.
    assert device.bandwidth_bytes_s == pytest.approx(gb_s * 1e9, rel=0.002)
    assert device.fp16_flops == pytest.approx(tflops * 1e12, rel=0.002)
    assert device.memory_bytes == DEVICES[row].memory_bytes


@pytest.mark.parametrize("tree", [path.name for path in TREES.iterdir() if path.is_dir() and path.name != "x86-host"])
def test_a_live_mode_gives_what_the_table_says_of_it(tree):
    machine = detect(TREES / tree)
    device = machine.device()
    listed = machine.row.mode(device.default_mode.name)
    assert device.fp16_flops == pytest.approx(listed.fp16_flops, rel=0.01)
    assert device.bandwidth_bytes_s == pytest.approx(listed.bandwidth_bytes_s, rel=0.01)


def test_the_clocks_of_every_release_are_found():
    for tree, gpu_mhz, memory_mhz in (
        ("orin-nano-super-25w", 918, 3199),
        ("orin-nx-16gb-jetpack-5", 612, 2133),
        ("thor-jetpack-7", 1386, 4266),
    ):
        jetson = read_jetson(TREES / tree)
        assert (jetson.gpu_hz, jetson.memory_hz) == (gpu_mhz * 1e6, memory_mhz * 1e6), tree
        assert jetson.gpu_now_hz == 306e6


def put(root: Path, path: str, text: str | bytes) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text if isinstance(text, bytes) else text.encode())


def orin_nano(root: Path) -> None:
    put(root, "proc/device-tree/compatible", b"nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0")
    put(root, "proc/meminfo", "MemTotal: 7802880 kB\n")


def test_clocks_that_are_lower_than_the_mode_says_count(tmp_path):
    orin_nano(tmp_path)
    put(tmp_path, "etc/nvpmodel.conf", "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\nGPU MAX_FREQ -1\nEMC MAX_FREQ -1\n")
    put(tmp_path, "var/lib/nvpmodel/status", "pmode:0002")
    put(tmp_path, "sys/class/devfreq/17000000.gpu/max_freq", "510000000\n")
    device = detect(tmp_path).device()
    assert device.default_mode.gpu_hz == 510e6
    assert device.bandwidth_bytes_s == pytest.approx(102.4e9, rel=0.001)  # no cap: the most of the table


def test_a_mode_of_ones_own_counts_its_multiprocessors(tmp_path):
    orin_nano(tmp_path)
    caps = "TPC_POWER_GATING TPC_PG_MASK 252\nGPU MAX_FREQ 306000000\nEMC MAX_FREQ 2133000000\n"
    put(tmp_path, "etc/nvpmodel.conf", f"< POWER_MODEL ID=9 NAME=QUIET_9W >\n{caps}< PM_CONFIG DEFAULT=9 >\n")
    mode = detect(tmp_path).device().default_mode
    assert (mode.name, mode.sms, mode.gpu_hz) == ("QUIET_9W", 4, 306e6)
    assert mode.fp16_flops == pytest.approx(4 * 306e6 * 2048)


def test_without_nvpmodel_the_default_mode_of_the_table_stands(tmp_path):
    orin_nano(tmp_path)
    assert detect(tmp_path).device().default_mode.name == "25W"


def test_the_first_developer_kit_has_the_memory_that_it_has(tmp_path):
    put(tmp_path, "proc/device-tree/compatible", b"nvidia,p3737-0000+p3701-0000\0nvidia,p3701-0000\0nvidia,tegra234\0")
    put(tmp_path, "proc/meminfo", "MemTotal: 31000000 kB\n")
    device = detect(tmp_path).device()
    assert (device.name, device.memory_bytes) == ("jetson-agx-orin-64gb", 32 << 30)


def test_a_carrier_that_names_no_module_is_known_by_nvpmodels_file(tmp_path):
    put(tmp_path, "proc/device-tree/compatible", b"acme,carrier\0nvidia,tegra234\0")
    put(tmp_path, "etc/nvpmodel/nvpmodel_p3767_0000_super.conf", "< PM_CONFIG DEFAULT=4 >\n")
    (tmp_path / "etc/nvpmodel.conf").symlink_to("nvpmodel/nvpmodel_p3767_0000_super.conf")
    assert detect(tmp_path).row.name == "jetson-orin-nx-16gb"


def test_a_jetson_that_the_table_does_not_have_is_a_jetson_all_the_same(tmp_path):
    put(tmp_path, "etc/nv_tegra_release", "# R40 (release), REVISION: 1.0, GCID: 1\n")
    put(tmp_path, "proc/device-tree/model", b"NVIDIA Jetson Next\0")
    machine = detect(tmp_path)
    assert (machine.kind, machine.title, machine.row, machine.jetpack) == ("jetson", "NVIDIA Jetson Next", None, None)
    assert machine.device() is None


@pytest.mark.parametrize(("total_kb", "row"), [(8255824, "8gb"), (4147000, "4gb"), (16600000, "16gb")])
def test_rows_that_differ_in_memory_are_told_apart_by_it(tmp_path, total_kb, row):
    put(tmp_path, "proc/device-tree/compatible", b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    put(tmp_path, "proc/meminfo", f"MemTotal: {total_kb} kB\n")
    machine = detect(tmp_path)
    assert (machine.kind, machine.row.name) == ("cpu", f"raspberry-pi-5-{row}")


def test_a_processor_is_read_with_its_cores_cache_and_clock():
    cpu = detect(TREES / "x86-host").cpu
    assert (cpu.name, cpu.threads, cpu.cores) == ("12th Gen Intel(R) Core(TM) i5-12400", 12, 6)
    assert (cpu.max_hz, cpu.last_level_cache_bytes) == (4.4e9, 18432 << 10)
    assert {"avx2", "fma", "avx_vnni"} <= set(cpu.instructions)
    arm = detect(TREES / "raspberry-pi-5").cpu
    assert (arm.name, arm.cores, arm.max_hz) == ("Cortex-A76", 4, 2.4e9)


def test_a_processor_makes_a_device_and_a_measured_bandwidth_replaces_the_assumed_one():
    machine = detect(TREES / "x86-host")
    assert machine.row is None
    assert machine.device().fp16_flops == pytest.approx(6 * 4.4e9 * 32)  # six cores, AVX2: two multiply-adds of 8 lanes
    assert "NOT measured" in machine.device().source
    measured = machine.device(4e10)
    assert measured.bandwidth_bytes_s == 4e10
    assert "NOT measured" not in measured.source


def test_this_machine_is_something():
    machine = detect()
    assert machine.title
    assert machine.kind in {"jetson", "gpu", "cpu"}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def digits(path: Path) -> None:
    path.write_bytes(b"9" * 5000)


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # holes: it takes no room


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def outside(path: Path) -> None:
    path.unlink()
    path.symlink_to("/proc/self/status")


def copy_tree(source: Path, target: Path) -> list[Path]:
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in files:
        put(target, str(path.relative_to(source)), path.read_bytes())
    return [target / path.relative_to(source) for path in files]


@pytest.mark.parametrize(
    "damage", [empty, garbage, digits, huge, directory, pipe, loop, outside], ids=lambda damage: damage.__name__
)
@pytest.mark.parametrize("tree", ["orin-nano-super-25w", "thor-jetpack-7", "raspberry-pi-5"])
def test_a_broken_tree_never_raises_nor_waits(tree, damage, tmp_path):
    for index, path in enumerate(sorted((TREES / tree).rglob("*"))):
        if path.is_file():  # one file broken at a time
            root = tmp_path / str(index)
            copy_tree(TREES / tree, root)
            damage(root / path.relative_to(TREES / tree))
            check(detect(root))
    root = tmp_path / "all"
    for path in copy_tree(TREES / tree, root):
        damage(path)
    check(detect(root))


def check(machine: Machine) -> None:
    """What it found can be used, or is nothing."""
    device = machine.device()
    assert len(machine.title) <= 128
    assert machine.title.isprintable()
    assert device is None or 0 < device.bandwidth_bytes_s < 1e13


def test_a_tree_with_nothing_in_it_is_a_machine_without_a_name(tmp_path):
    machine = detect(tmp_path)
    assert (machine.kind, machine.title, machine.device()) == ("cpu", "a processor without a name", None)
    assert detect(tmp_path / "missing").memory_bytes is None


def test_no_more_boards_and_modes_are_kept_than_a_machine_can_have(tmp_path):
    names = b"\0".join(b"nvidia,p%04d-%04d" % (index % 9999, index % 7777) for index in range(50_000))
    put(tmp_path, "proc/device-tree/compatible", b"nvidia,tegra234\0" + names)
    put(tmp_path, "etc/nvpmodel.conf", "".join(f"< POWER_MODEL ID={index % 9999} NAME=M{index} >\n" for index in range(30_000)))
    jetson = read_jetson(tmp_path)
    assert len(jetson.boards) <= 65
    assert len(jetson.modes) <= 64


def test_reading_is_bounded_and_stays_below_the_root(tmp_path):
    put(tmp_path, "big", b"1" * (MAX_BYTES + 5))
    assert len(read_bytes(tmp_path, "big")) == MAX_BYTES
    assert read_number(tmp_path, "big") is None
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "big")
    assert read_bytes(tmp_path / "root", "link") is None
    assert read_bytes(tmp_path / "root", "../big") is None


def test_what_a_file_says_cannot_command_a_terminal(tmp_path):
    put(tmp_path, "model", b"Jetson\x1b[2J\x07 Nano\0")
    assert read_text(tmp_path, "model") == "Jetson?[2J? Nano"
