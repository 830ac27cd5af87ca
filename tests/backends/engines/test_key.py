"""What an engine is bound to: content, never places."""

import shutil

import msgspec
import pytest
from bundles import make_bundle, manifest

from edgegen.backends.engines.driver import driver_version
from edgegen.backends.engines.estimate import MEASURED, Estimate
from edgegen.backends.engines.key import EngineKey, GraphDigest, Target
from edgegen.backends.engines.wanted import target_of
from edgegen.backends.trt.cuda import Gpu
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.bundle import Bundle
from edgegen.manifest import Graph
from edgegen.tensors import Axis

GPU = Gpu("NVIDIA RTX 4090", 89, 24 << 30, False, "13.0", "13.0")


def digest_of(path, variant="canonical"):
    with Bundle.open(path) as bundle:
        return GraphDigest.of(bundle, "decoder", variant)


def test_the_same_graph_has_the_same_digest_wherever_it_lies(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "copy.bundle")
    assert digest_of(tiny_bundle) == digest_of(tmp_path / "copy.bundle")
    assert digest_of(tiny_bundle) != digest_of(tiny_bundle, "onnxruntime")


def test_other_axes_are_another_graph_though_its_bytes_are_the_same(tiny_bundle, tmp_path):
    decoder = manifest().graphs["decoder"]
    wider = {"decoder": Graph(decoder.variants, decoder.axes | {"batch": Axis(1, 2, 4)})}
    other = digest_of(make_bundle(tmp_path / "other.bundle", graphs=wider))
    assert other.model == digest_of(tiny_bundle).model
    assert other.signature != digest_of(tiny_bundle).signature


def test_a_key_survives_its_record_and_its_digest_is_that_of_its_content(tiny_bundle):
    key = EngineKey(digest_of(tiny_bundle), "tensorrt-rtx", "1.7.1", Target((89,)), BuildOptions((89,)).as_dict())
    again = msgspec.json.decode(msgspec.json.encode(key), type=EngineKey)
    assert (again, again.digest) == (key, key.digest)
    assert len(key.digest) == 64
    assert "/" not in msgspec.json.encode(key).decode().replace("Linux-x86_64", "")  # no path of any bundle


def test_an_engine_for_named_gpus_is_bound_to_these_and_any_other_to_the_gpu_and_its_driver():
    assert target_of(BuildOptions((89, 120)), GPU) == Target((89, 120))
    bound = target_of(BuildOptions(), GPU)
    assert (bound.compute_capabilities, bound.gpu, bound.sm, bound.cuda) == ((), "NVIDIA RTX 4090", 89, "13.0")
    assert bound.driver.endswith("13.0")


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:19:24 UTC 2025\nGCC version: 12.2.0",
            "580.65.06",
        ),
        ("# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64", "R36 (release), REVISION: 4.7"),
        ("", ""),
    ],
)
def test_the_release_of_the_driver_is_read_from_what_the_system_says(monkeypatch, tmp_path, text, release):
    (tmp_path / "said").write_text(text)
    monkeypatch.setattr("edgegen.backends.engines.driver._KERNEL", tmp_path / "said")
    monkeypatch.setattr("edgegen.backends.engines.driver._JETSON", tmp_path / "absent")
    assert driver_version() == release


@pytest.mark.parametrize("build", MEASURED, ids=lambda build: build.what)
def test_an_estimate_is_near_what_was_measured(build):
    estimate = Estimate.of(build.weights_bytes, build.nodes)
    # As the table's docstring says; memory decides whether a build is begun.
    assert 0.8 <= estimate.memory_bytes / build.peak_memory_bytes <= 1.2
    assert 0.5 <= estimate.seconds / build.seconds <= 2
