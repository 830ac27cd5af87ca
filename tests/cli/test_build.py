"""`edgegen build`: what it says before and after, what it takes from the cache, and how it refuses."""

import errno
import json

import pytest
from bundles_to_plan import convolutions
from command_line import run

from edgegen.backends.engines import ahead, estimate, wanted
from edgegen.backends.engines.portable import read_portable
from edgegen.backends.engines.store import Built, EngineStore
from edgegen.backends.trt.flavours import Flavour
from edgegen.errors import BackendError


@pytest.fixture
def builds(monkeypatch):
    """Stands for the builder and the library: the requests that came."""
    requests = []

    def build(request, *, progress=None, cancelled=None, folder=None):
        requests.append(request)
        if progress is not None:
            progress("parse", 1, 2)
        return Built(b"vtrt" + str(request.options["compute_capabilities"]).encode(), 1.5, 300 << 20)

    monkeypatch.setattr(wanted, "build", build)
    monkeypatch.setattr(Flavour, "load", lambda _self: None)
    monkeypatch.setattr(Flavour, "version", lambda _self: "1.7.1")
    return requests


def test_each_gpu_gets_an_engine_and_what_is_there_is_not_built_again(tiny_bundle, builds):
    first = run("build", str(tiny_bundle), "--sm", "120", "--sm", "89")
    assert first.exit_code == 0, first.output
    assert first.stderr.count("building decoder: about 1 s and 0.2 GB") == 2
    for sm in (89, 120):
        assert f"decoder for SM {sm}: 0.0 MB, 1.5 s, peak 300 MB (expected about 1 s and 0.2 GB)" in first.stdout
    again = run("build", str(tiny_bundle), "--sm", "89")
    assert "was built before" in again.stdout
    assert again.stderr == ""
    assert [request.options["compute_capabilities"] for request in builds] == [[89], [120]]


def test_json_says_where_each_engine_is_and_what_it_took(tiny_bundle, builds):
    done = run("build", str(tiny_bundle), "--sm", "89", "--context", "32", "--prefill", "16", "--graph", "decoder", "--json")
    report = json.loads(done.stdout)
    (engine,) = report["engines"]
    assert (report["backend"], report["version"], engine["graph"], engine["sm"]) == ("tensorrt-rtx", "1.7.1", "decoder", 89)
    assert (engine["seconds"], engine["peak_memory_bytes"], engine["size_bytes"]) == (1.5, 300 << 20, 8)
    assert engine["place"] == str(EngineStore().root / f"{engine['key']}.engine")
    assert builds[0].options["cache_length"] == 32
    assert builds[0].options["prefill"] == 16


def test_an_option_is_another_engine(tiny_bundle, builds):
    run("build", str(tiny_bundle), "--sm", "89", "--context", "32")
    run("build", str(tiny_bundle), "--sm", "89")
    assert len(builds) == 2


def test_engines_to_carry_away_come_with_their_digests(tiny_bundle, builds, tmp_path):
    place = tmp_path / "out"
    assert run("build", str(tiny_bundle), "--sm", "89", "-o", str(place)).exit_code == 0
    listed = json.loads((place / "engines.json").read_text())
    said = listed["engines"]["decoder.sm89"]
    assert listed["bundle"] == "tiny"
    assert said["key"]["target"]["compute_capabilities"] == [89]
    assert sorted(path.name for path in place.iterdir()) == ["decoder.sm89.engine", "engines.json"]
    assert read_portable(place / said["file"], said["sha256"]) == b"vtrt[89]"
    with pytest.raises(BackendError, match="not the one that was asked for"):
        read_portable(place / said["file"], "0" * 64)
    refused = run("build", str(tiny_bundle), "--sm", "89", "-o", str(place))
    assert (refused.exit_code, "use --force" in refused.stderr) == (1, True)
    assert run("build", str(tiny_bundle), "--sm", "89", "-o", str(place), "--force").exit_code == 0


@pytest.mark.parametrize("options", [["--context", "32"], ["--prefill", "16"]])
def test_what_is_for_language_models_is_refused_of_others(tmp_path, builds, options):
    images = convolutions(tmp_path / "images.bundle")
    done = run("build", str(images), "--sm", "89", *options)
    assert (done.exit_code, done.stderr.count("\n"), builds) == (1, 1, [])
    assert "keeps no cache: --context and --prefill are for language models" in done.stderr


@pytest.mark.parametrize("device", [["--target", "orin-nano"], ["--sm", "87"], ["--sm", "89", "--sm", "87"]])
def test_a_device_that_the_library_does_not_build_for_is_to_build_itself(tiny_bundle, builds, monkeypatch, device):
    monkeypatch.setattr(Flavour, "capabilities", lambda _self: (75, 89))
    done = run("build", str(tiny_bundle), *device)
    assert (done.exit_code, done.stderr.count("\n"), builds) == (1, 1, [])
    assert "builds for SM 75, 89, not for SM 87: copy the bundle to the device and build there" in done.stderr
    assert run("build", str(tiny_bundle), "--target", "rtx-4090").exit_code == 0


@pytest.mark.parametrize(("said", "sm"), [("89", 89), ("8.9", 89), ("sm_89", 89), ("SM89", 89), ("12.0", 120), ("sm_120", 120)])
def test_a_compute_capability_is_read_as_people_write_it(tiny_bundle, builds, monkeypatch, said, sm):
    monkeypatch.setattr(Flavour, "capabilities", lambda _self: (89, 120))
    assert run("build", str(tiny_bundle), "--sm", said).exit_code == 0
    assert builds[0].options["compute_capabilities"] == [sm]


@pytest.mark.parametrize("said", ["89a", "9", "8.9.1", "-1", "", "orin"])
def test_what_is_no_compute_capability_is_wrong_usage(tiny_bundle, builds, said):
    done = run("build", str(tiny_bundle), "--sm", said)
    assert (done.exit_code, builds) == (2, [])
    assert f"{said!r} is no compute capability; give 8.9 or 89" in done.stderr


REFUSALS = {
    "a context that was not exported": (["--sm", "89", "--context", "100000"], "exported for 1 to 64"),
    "no such graph": (["--sm", "89", "--graph", "decodr"], "did you mean 'decoder'?"),
    "a gpu for a library that needs the gpu": (["--backend", "tensorrt", "--sm", "89"], "run the command on the device"),
    "nowhere to write": (["--sm", "89", "-o", "/no/such/place"], "the folder /no/such does not exist"),
    "engines that cannot travel": (["--backend", "tensorrt", "-o", "out"], "kept in the cache"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_is_one_line(tiny_bundle, builds, what):
    options, said = REFUSALS[what]
    done = run("build", str(tiny_bundle), *options)
    assert done.exit_code == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert builds == []


@pytest.mark.parametrize(
    ("backend", "said"),
    [("tensorrt", "copy the bundle to the device and run the same command there"), ("tensorrt-rtx", "--sm 89")],
)
def test_without_a_gpu_it_says_what_to_do(tiny_bundle, builds, monkeypatch, backend, said):
    def none():
        raise BackendError("no driver")

    monkeypatch.setattr(ahead, "load_runtime", none)
    done = run("build", str(tiny_bundle), "--backend", backend)
    assert done.exit_code == 1
    assert "(no driver)" in done.stderr
    assert said in done.stderr


def test_a_build_that_would_not_fit_in_memory_is_refused_unless_forced(tiny_bundle, builds, monkeypatch):
    monkeypatch.setattr(estimate, "available_bytes", lambda: 100 << 20)
    refused = run("build", str(tiny_bundle), "--sm", "89")
    assert refused.exit_code == 1
    assert "a build takes about" in refused.stderr
    assert "100 MB are free" in refused.stderr
    assert builds == []
    assert run("build", str(tiny_bundle), "--sm", "89", "--force").exit_code == 0


def test_a_cache_that_cannot_keep_the_engine_is_an_error_here(tiny_bundle, builds, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEGEN_ENGINES", str(tmp_path / "file" / "engines"))
    done = run("build", str(tiny_bundle), "--sm", "89")
    assert done.exit_code == 1
    assert "engines are not kept in" in done.stderr
    assert builds == []  # said before anything long is done
    assert run("build", str(tiny_bundle), "--sm", "89", "-o", str(tmp_path / "out")).exit_code == 0


def test_a_disk_that_fills_up_while_an_engine_is_built_is_an_error(tiny_bundle, builds, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgegen.backends.engines.entry.write", full)
    done = run("build", str(tiny_bundle), "--sm", "89")
    assert done.exit_code == 1
    assert "No space left on device; make room" in done.stderr
