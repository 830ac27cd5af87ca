"""Pages of mapped files go while a block runs, and only those that the file can give back."""

import mmap
import sys
import time
from pathlib import Path

import pytest

from edgegen.backends.memory import available_bytes, give_back, pages_let_go

SIZE = 64 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as opened:
        yield opened


def groups(tmp_path, listing, **files):
    for place, text in files.items():
        path = tmp_path / place.replace("__", "/").replace("_of_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cgroup").write_text(listing)
    (tmp_path / "meminfo").write_text("MemTotal:  8192 kB\nMemFree: 1 kB\nMemAvailable:  4096 kB\n")
    return tmp_path / "meminfo", tmp_path / "cgroup", tmp_path


def test_the_memory_of_the_machine_is_what_it_calls_available(tmp_path):
    assert available_bytes(*groups(tmp_path, "0::/\n")) == 4 << 20
    assert available_bytes(tmp_path / "no", tmp_path / "no", tmp_path) is None


def test_the_tightest_limit_of_the_groups_counts_and_files_kept_in_memory_are_free(tmp_path):
    limits = {"a__memory_of_max": f"{3 << 20}\n", "a__memory_of_current": f"{2 << 20}\n", "a__memory_of_stat": "anon 5\n"}
    inner = {"a__b__memory_of_max": "max\n", "a__b__memory_of_current": f"{2 << 20}\n"}
    place = groups(tmp_path, "0::/a/b\n", **limits, **inner)
    assert available_bytes(*place) == 1 << 20
    (tmp_path / "a" / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 20}\n")
    assert available_bytes(*place) == 2 << 20


def test_the_limit_of_version_one_is_read(tmp_path):
    files = {"limit_in_bytes": 3 << 20, "usage_in_bytes": 4 << 20, "stat": f"total_inactive_file {1 << 19}"}
    written = {f"memory__x__memory_of_{name}": f"{value}\n" for name, value in files.items()}
    assert available_bytes(*groups(tmp_path, "9:memory:/x\n", **written)) == 0  # more is used than is allowed


@linux
def test_pages_that_were_read_leave_the_process_and_come_back(file):
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    before = resident_file_bytes()
    with pages_let_go([memoryview(mapped), b"not mapped"]):
        for _ in range(200):  # 10 ms usually suffice; a busy machine gets two seconds
            assert sum(mapped[:: mmap.PAGESIZE]) == 0
            time.sleep(0.01)
            if resident_file_bytes() - before < SIZE // 4:
                break
        else:
            pytest.fail("pages stayed while the block ran")
        sum(mapped[:: mmap.PAGESIZE])
    assert resident_file_bytes() - before < SIZE // 4
    assert mapped[:5] == bytes(range(5))


def test_pages_that_someone_wrote_to_are_kept(file):
    copy = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    copy[:5] = b"other"
    with pages_let_go([copy]):
        pass
    assert copy[:5] == b"other"


def test_an_error_passes_through(file):
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with pytest.raises(KeyError), pages_let_go([mapped]):
        raise KeyError
    mapped.close()  # nothing holds it any more


def test_giving_back_needs_no_certain_system(monkeypatch):
    give_back()
    monkeypatch.setattr(sys, "platform", "other")
    give_back()
