"""Pages of mapped files go while a block runs, and only those that the file can give back."""

import mmap
import sys
import time
from pathlib import Path

import pytest

from edgegen.backends.memory import give_back, pages_let_go

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
