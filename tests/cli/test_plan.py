"""`edgegen plan`: exit codes, the object for machines, the lines for people, and the line of `edgegen inspect`."""

import json
import re

import msgspec
import pytest
from bundles import make_bundle
from bundles_to_plan import MODE, convolutions, device
from command_line import run

from edgegen.planner.graphs import Ask, read_bundle
from edgegen.planner.plan import plan
from edgegen.planner.report import lines
from edgegen.planner.target import target

SLOW_MEMORY = msgspec.structs.replace(MODE, bandwidth_bytes_s=1000.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(make_bundle(tmp_path_factory.mktemp("plan") / "tiny.bundle"))


def test_a_bundle_that_fits_exits_with_0_and_tells_each_part(bundle):
    result = run("plan", bundle, "--target", "jetson-orin-nano-8gb")
    assert result.exit_code == 0, result.output
    for word in ("weights", "cache", "activations", "runtime", "fits", "decode", "prefill", "at most"):
        assert word in result.output


def test_one_that_does_not_fit_exits_with_1(bundle):
    # Four gigabytes have no room for a thousand copies of what runs one of them; nor for so many conversations.
    result = run("plan", bundle, "--target", "raspberry-pi-5-4gb", "--batch", "2000000")
    assert result.exit_code == 1
    assert "DOES NOT FIT" in result.output
    assert "--batch" in result.output


def test_the_object_for_machines_has_everything(bundle):
    result = run("plan", bundle, bundle, "--target", "orin-nano", "--mode", "15W", "--context", "32", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["mode"]["name"] == "15W"
    assert said["budget_bytes"] == said["device"]["memory_bytes"] - said["device"]["reserved_bytes"]
    one, other = said["bundles"]
    assert one["asked"]["context"] == 32
    assert one["size_bytes"] >= sum(part["size_bytes"] for part in one["parts"])
    assert (one["unknown_shapes"], one["fits"]) == (0, True)
    assert [roof["name"] for roof in other["roofline"]] == ["prefill", "decode"]
    assert said["together_bytes"] > said["in_turns_bytes"]


def test_bundles_of_one_name_are_told_apart_by_their_paths(bundle, tmp_path):
    other = make_bundle(tmp_path / "other.bundle")
    for bundles, names in (([bundle, str(other)], [bundle, str(other)]), ([bundle], ["tiny"])):
        said = " ".join(run("plan", *bundles, "--target", "orin-nano").output.split())
        assert [said.count(f" {name} (decoder_lm") for name in names] == [1] * len(names)


def test_a_bound_by_bandwidth_says_what_it_leaves_to_caches(bundle):
    small = target(msgspec.structs.replace(device(4000), modes=(SLOW_MEMORY,)), cache_bytes=2048)
    said = "\n".join(lines(plan([read_bundle(bundle, "onnxruntime")], small, Ask()), 400))
    assert re.search(r"decode at .*, by bandwidth \(0\.0 MiB read, 0\.0 of them perhaps from caches, .* GFLOP a run\)", said)
    assert json.loads(run("plan", bundle, "--target", "orin-nano", "--json").output)["cache_bytes"] == 8 << 20


def test_a_context_beyond_the_exported_is_one_line(bundle):
    result = run("plan", bundle, "--target", "orin-nano", "--context", "4096")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "at most 64" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "orin-nano", "--tile", "64"], "asked of images, and no bundle here makes any"),
        (["--target", "raspberry-pi-5-8gb", "--backend", "tensorrt"], "Raspberry Pi 5 8GB has none; plan it with"),
    ],
)
def test_what_cannot_be_asked_is_one_line(bundle, options, said):
    result = run("plan", bundle, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert said in result.stderr


def test_a_context_is_not_asked_of_images(tmp_path):
    result = run("plan", str(convolutions(tmp_path / "images.bundle")), "--target", "orin-nano", "--context", "99")
    assert (result.exit_code, "asked of language models" in result.stderr) == (1, True)


def test_without_a_target_it_is_this_machine(bundle):
    result = run("plan", bundle, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["backend"] == "onnxruntime"


def test_inspect_tells_whether_it_fits_here(bundle):
    assert "fits here" in run("inspect", bundle).output


def test_inspect_counts_what_a_container_may_take_not_what_the_machine_has(bundle, monkeypatch):
    monkeypatch.setattr("edgegen.planner.here.available_bytes", lambda: 5 << 20)
    assert "DOES NOT FIT here, 5 MiB are free" in run("inspect", bundle).output
