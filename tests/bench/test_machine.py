"""What can be read of a machine is read rightly; what cannot is None."""

import json
import sys

import pytest

from edgegen.backends.threads import cgroup_quota, default_threads, physical_cores
from edgegen.bench.machine import describe, last_level_cache_bytes, peak_memory_bytes, read_bandwidth


def test_the_description_is_json_and_names_the_libraries():
    machine = json.loads(json.dumps(describe()))
    assert machine["usable_cores"] >= 1
    assert {"edgegen", "numpy"} <= machine["libraries"].keys()


def test_the_largest_cache_is_the_last_level(tmp_path):
    for index, size in enumerate(("32K", "1024K", "16384K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_level_cache_bytes(tmp_path) == 16 << 20
    assert last_level_cache_bytes(tmp_path / "none") is None


def test_bandwidth_is_that_of_memory():
    # The slowest memory of a supported device (Jetson Nano class) reads some GB/s; no CPU reads 2 TB/s.
    assert 5e8 < read_bandwidth(1) < 2e12


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_plausible():
    assert 10 << 20 < peak_memory_bytes() < 1 << 40


def test_two_hardware_threads_of_a_core_count_once(tmp_path):
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    assert physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert physical_cores({0, 2}, tmp_path) == 1
    assert physical_cores({0, 1, 7}, tmp_path) == 3


def test_the_tightest_quota_of_the_cgroup_and_its_parents_counts(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    proc = tmp_path / "cgroup"
    proc.write_text("0::/a/b\n")
    assert cgroup_quota(proc, tmp_path) == 1.5


def test_the_quota_of_version_one_is_read(tmp_path):
    (tmp_path / "cpu" / "x").mkdir(parents=True)
    (tmp_path / "cpu" / "x" / "cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu" / "x" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    proc = tmp_path / "cgroup"
    proc.write_text("4:cpu,cpuacct:/x\n0::/\n")
    assert cgroup_quota(proc, tmp_path) == 2


def test_no_cgroup_means_no_quota(tmp_path):
    assert cgroup_quota(tmp_path / "none", tmp_path) is None


def test_at_least_one_thread_is_used(monkeypatch):
    monkeypatch.setattr("edgegen.backends.threads.cgroup_quota", lambda: 0.5)
    assert default_threads() == 1
