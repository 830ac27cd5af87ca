"""The cache on disk: one build for all who want an engine, and nothing served that is not exactly what was asked for."""

import errno
import logging
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from small_disk import small_disk

from edgegen.backends.engines import entry, lock, store
from edgegen.backends.engines.key import EngineKey, GraphDigest, Target
from edgegen.backends.engines.store import Built, CacheError, EngineStore
from edgegen.errors import BackendError, InputError

GRAPH = GraphDigest("a" * 64, {"decoder.weights": "b" * 64}, "c" * 64)
KEY = EngineKey(GRAPH, "tensorrt-rtx", "1.7.1.116", Target((89,)), {"prefill": 512, "cache_length": None})
DATA = b"vtrt" + bytes(range(200))


def changed(**fields):
    return msgspec.structs.replace(KEY, **fields)


OTHERS = {
    "the graph": changed(graph=msgspec.structs.replace(GRAPH, model="d" * 64)),
    "weights": changed(graph=msgspec.structs.replace(GRAPH, weights={"decoder.weights": "d" * 64})),
    "the name of the weights": changed(graph=msgspec.structs.replace(GRAPH, weights={"other.weights": "b" * 64})),
    "axes": changed(graph=msgspec.structs.replace(GRAPH, signature="d" * 64)),
    "flavour": changed(flavour="tensorrt"),
    "version": changed(version="1.7.2.1"),
    "sm": changed(target=Target((120,))),
    "a gpu": changed(target=Target(gpu="NVIDIA GeForce RTX 4090", sm=89)),
    "driver": changed(target=Target((89,), driver="580.65")),
    "cuda": changed(target=Target((89,), cuda="13.0")),
    "an option": changed(options={"prefill": 256, "cache_length": None}),
    "the format": changed(format=KEY.format + 1),
}


def names(folder):
    return [path.name for path in folder.iterdir()]


class Maker:
    """Counts its builds."""

    def __init__(self, data=DATA):
        self.data, self.calls = data, 0

    def __call__(self):
        self.calls += 1
        return Built(self.data, 2.5, 1 << 20)


@pytest.fixture
def cache(tmp_path):
    return EngineStore(tmp_path / "engines", 1 << 20)


def test_the_latest_engine_of_a_graph_is_found_whatever_it_was_built_for(cache):
    assert cache.latest(KEY) is None
    for other in OTHERS.values():
        cache.obtain(other, Maker())
    assert cache.latest(KEY) == OTHERS["an option"]
    cache.obtain(KEY, Maker())
    os.utime(cache.path(OTHERS["an option"]), (1, 1))
    assert cache.latest(KEY) == cache.latest(OTHERS["an option"]) == KEY
    cache.get(OTHERS["an option"])  # who takes it makes it the latest
    assert cache.latest(KEY) == OTHERS["an option"]
    cache.path(OTHERS["an option"]).write_bytes(b"torn")
    renamed = cache.path(changed(options={"prefill": 1}))
    renamed.write_bytes(cache.path(OTHERS["the graph"]).read_bytes())
    assert cache.latest(KEY) == KEY


def test_the_order_of_use_holds_though_the_clock_stands_still_or_is_set_back(cache, monkeypatch):
    keys = (KEY, OTHERS["sm"], OTHERS["driver"])
    for now_ns in (5 * 10**18, 5 * 10**18, 10**18):
        monkeypatch.setattr(store.time, "time_ns", lambda now_ns=now_ns: now_ns)
        for key in (*keys, KEY):
            cache.obtain(key, Maker())
            assert cache.entries()[-1] == cache.path(key)
    assert cache.entries() == [cache.path(key) for key in (OTHERS["sm"], OTHERS["driver"], KEY)]


def test_an_engine_is_built_once_and_then_comes_from_the_disk_with_what_is_known_of_it(cache):
    make = Maker()
    first, second = cache.obtain(KEY, make), EngineStore(cache.root).obtain(KEY, make)
    assert make.calls == 1
    assert (first.data, first.is_new) == (DATA, True)
    assert (second.data, second.is_new) == (DATA, False)
    record = second.record
    assert (record.key, record.size_bytes, record.build_s, record.peak_memory_bytes) == (KEY, len(DATA), 2.5, 1 << 20)
    assert record.built_at == pytest.approx(time.time(), abs=60)
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.path(KEY).stat().st_mode) == 0o600
    assert names(cache.root) == [f"{KEY.digest}.engine"]


@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_in_anything_is_another_engine(cache, what):
    cache.obtain(KEY, Maker())
    other = Maker(b"vtrt other")
    assert cache.obtain(OTHERS[what], other).data == b"vtrt other"
    assert other.calls == 1
    assert cache.get(KEY).data == DATA


@pytest.mark.parametrize("what", OTHERS)
def test_an_entry_under_the_name_of_another_key_is_removed_and_built_again(cache, what, caplog):
    cache.obtain(OTHERS[what], Maker(b"vtrt other"))
    cache.path(OTHERS[what]).rename(cache.path(KEY))
    make = Maker()
    assert cache.obtain(KEY, make).data == DATA
    assert make.calls == 1
    assert "made for another" in caplog.text


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def foreign(path):
    path.write_bytes(b"vtrt" + b"\x90" * 300)


def linked(path):
    target = path.with_suffix(".elsewhere")
    path.rename(target)
    path.symlink_to(target)


DAMAGES = {
    "a bit of the engine": lambda path: flip(path, -1),
    "a bit of the record": lambda path: flip(path, 60),
    "the magic": lambda path: flip(path, 0),
    "the record's length": lambda path: flip(path, 22),
    "cut in the engine": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut in the record": lambda path: os.truncate(path, 100),
    "cut in the head": lambda path: os.truncate(path, 5),
    "empty": lambda path: os.truncate(path, 0),
    "more behind it": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "an engine put there by hand": foreign,
    "a symbolic link": linked,
    "a hard link": lambda path: os.link(path, path.with_suffix(".twin")),
    "writable by others": lambda path: path.chmod(0o622),
    "a pipe that nobody writes to": lambda path: (path.unlink(), os.mkfifo(path)),
    "no engine": lambda path: rewrite(path, b"#!/bin/sh"),
}


def rewrite(path, data):
    """An entry that is right in all but its engine's header."""
    path.unlink()
    EngineStore(path.parent).obtain(KEY, Maker(data))


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_altered_is_never_served_but_removed_and_built_again(cache, damage, caplog):
    cache.obtain(KEY, Maker())
    DAMAGES[damage](cache.path(KEY))
    assert cache.get(KEY) is None
    assert not os.path.lexists(cache.path(KEY))
    make = Maker()
    assert cache.obtain(KEY, make).data == DATA
    assert make.calls == 1
    assert caplog.text.count("is not used, and built again") == 1


def test_an_entry_of_another_user_is_not_believed(cache, monkeypatch):
    cache.obtain(KEY, Maker())
    uid = os.geteuid()
    monkeypatch.setattr(entry.os, "geteuid", lambda: uid + 1)
    with pytest.raises(entry.StaleEntryError, match="another user"):
        entry.read(cache.path(KEY), KEY)


def open_to_others(root):
    root.mkdir()
    root.chmod(0o777)


def a_link(root):
    (root.parent / "elsewhere").mkdir()
    root.symlink_to(root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("make", "said"), [(open_to_others, "others may write"), (a_link, "a link"), (Path.touch, "no folder")]
)
def test_a_folder_that_others_could_put_something_into_is_refused(cache, make, said):
    make(cache.root)
    for use in (lambda: cache.get(KEY), lambda: cache.obtain(KEY, Maker())):
        with pytest.raises(CacheError, match=said):
            use()


def test_a_folder_of_another_user_is_refused(cache, monkeypatch):
    cache.obtain(KEY, Maker())
    uid = os.geteuid()
    monkeypatch.setattr(store.os, "geteuid", lambda: uid + 1)
    with pytest.raises(CacheError, match="belongs to another user"):
        cache.get(KEY)


def in_process(root, marks, waits):
    def make():
        Path(marks, str(os.getpid())).touch()
        time.sleep(0.4)
        return Built(DATA, 0.4)

    engine = EngineStore(root).obtain(KEY, make, waiting=lambda who: Path(waits, who).touch())
    assert engine.data == DATA


def test_of_two_processes_that_want_one_engine_one_builds_it_and_the_other_says_whom_it_waits_for(tmp_path):
    marks, waits = tmp_path / "marks", tmp_path / "waits"
    marks.mkdir()
    waits.mkdir()
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=in_process, args=(tmp_path / "engines", marks, waits)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    (builder,) = names(marks)
    # None where the other came after all was done; nobody's name in the instant before the builder has said who it is.
    assert names(waits) in ([f"process {builder}"], ["another process"], [])
    assert names(tmp_path / "engines") == [f"{KEY.digest}.engine"]


def test_threads_of_one_process_build_it_once_too(cache):
    calls, waited = [], []

    def make():
        calls.append(1)
        while not waited:
            time.sleep(0.01)
        return Built(DATA, 0.1)

    threads = [threading.Thread(target=cache.obtain, args=(KEY, make), kwargs={"waiting": waited.append}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert calls == [1]
    assert waited == [f"process {os.getpid()}"]


KILLED = """
import os, signal, sys
from backends.engines import test_store as here
from edgegen.backends.engines import entry
cache = here.EngineStore(sys.argv[1])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "while it builds":
    cache.obtain(here.KEY, die)
write = entry.write
def write_half(descriptor, engine):
    write(descriptor, engine)
    die()
entry.write = write_half
cache.obtain(here.KEY, here.Maker())
"""


@pytest.mark.parametrize("when", ["while it builds", "while it writes"])
def test_a_killed_builder_leaves_nothing_that_is_served_and_its_rest_is_swept(cache, when):
    tests = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", KILLED, str(cache.root), when]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": tests}, check=False, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names(cache.root)
    assert cache.entries() == []
    assert cache.get(KEY) is None
    make = Maker()
    assert cache.obtain(KEY, make).data == DATA
    assert make.calls == 1
    assert names(cache.root) == [f"{KEY.digest}.engine"]


def test_what_another_process_is_writing_is_not_swept(cache):
    cache.obtain(KEY, Maker())
    partial = cache.root / ".x.partial"
    with lock.written(partial), lock.held(cache.root / ".x.lock"):
        cache.obtain(OTHERS["sm"], Maker())
        assert partial.exists()
        assert (cache.root / ".x.lock").exists()
    assert not partial.exists()
    assert not (cache.root / ".x.lock").exists()


def test_what_was_said_of_an_engine_goes_with_it(cache):
    cache.obtain(KEY, Maker())
    said = [cache.path(key).with_suffix(store.VERDICT) for key in (KEY, OTHERS["sm"])]
    for path in said:
        path.touch()
    cache.obtain(OTHERS["driver"], Maker())
    assert [path.exists() for path in said] == [True, False]


def test_a_failed_build_leaves_nothing(cache):
    def fail():
        raise BackendError("no such operator")

    with pytest.raises(BackendError, match="no such operator"):
        cache.obtain(KEY, fail)
    assert names(cache.root) == []


def test_the_engine_that_was_not_used_for_longest_makes_room_for_a_new_one(tmp_path):
    size = len(DATA) + 1000  # a record has less
    cache = EngineStore(tmp_path / "engines", 3 * size)
    keys = [changed(version=str(number)) for number in range(4)]
    for age, key in enumerate(keys[:3]):
        cache.obtain(key, Maker(DATA + bytes(500)))
        os.utime(cache.path(key), (1e9 + age, 1e9 + age))
    cache.get(keys[0])  # used again
    cache.obtain(keys[3], Maker(DATA + bytes(500)))
    assert [cache.path(key).exists() for key in keys] == [True, False, True, True]


def test_neither_an_entry_that_is_being_read_nor_the_new_one_is_evicted(tmp_path):
    cache = EngineStore(tmp_path / "engines", 10)  # nothing fits
    cache.obtain(KEY, Maker())
    assert cache.path(KEY).exists()
    with cache.path(KEY).open("rb") as reader:
        entry.fcntl.flock(reader, entry.fcntl.LOCK_SH)
        cache.obtain(OTHERS["sm"], Maker())
        assert cache.path(KEY).exists()
    cache.obtain(OTHERS["driver"], Maker())
    assert cache.entries() == [cache.path(OTHERS["driver"])]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_an_engine_that_cannot_be_kept_is_used_all_the_same_and_one_line_says_why(cache, code, monkeypatch, caplog):
    def fail(descriptor, engine):
        os.write(descriptor, b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(entry, "write", fail)
    make = Maker()
    with caplog.at_level(logging.WARNING):
        assert cache.obtain(KEY, make).data == DATA
    (line,) = (record.message for record in caplog.records)
    assert os.strerror(code) in line
    assert ("make room" in line) == (code in (errno.ENOSPC, errno.EDQUOT))
    assert names(cache.root) == []


def test_a_folder_that_cannot_be_made_does_not_stop_anything(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = EngineStore(tmp_path / "file" / "engines")
    assert cache.get(KEY) is None
    assert cache.obtain(KEY, Maker()).data == DATA
    assert f"engines are not kept in {cache.root}: File exists; name another folder" in caplog.text
    with pytest.raises(CacheError, match="are not kept"):
        cache.keep(cache.obtain(KEY, Maker()))


def test_a_full_disk_loses_no_engine_and_leaves_no_half_of_one(tmp_path, caplog):
    place = tmp_path / "small"
    place.mkdir()
    with small_disk(place, "64k"):
        cache = EngineStore(place / "engines")
        data = b"vtrt" + bytes(200_000)
        assert cache.obtain(KEY, Maker(data)).data == data
        assert "No space left" in caplog.text
        assert names(cache.root) == []
        cache.obtain(KEY, Maker())
        assert cache.get(KEY).data == DATA


def test_the_place_and_the_limit_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGEGEN_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineStore().root == tmp_path / "edgegen" / "engines"
    monkeypatch.setenv("EDGEGEN_ENGINES", str(tmp_path / "mine"))
    monkeypatch.setenv("EDGEGEN_ENGINES_LIMIT", "3g")
    assert (EngineStore().root, EngineStore().limit_bytes) == (tmp_path / "mine", 3 << 30)
    for wrong in ("much", "-1", "²G", "G"):
        monkeypatch.setenv("EDGEGEN_ENGINES_LIMIT", wrong)
        with pytest.raises(InputError, match=rf"\$EDGEGEN_ENGINES_LIMIT is '{wrong}'"):
            EngineStore()
    assert EngineStore(limit_bytes=5).limit_bytes == 5
