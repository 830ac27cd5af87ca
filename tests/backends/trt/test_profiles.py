"""Which shapes an engine is built for, and which profile a feed takes."""

import numpy as np
import pytest

from edgegen.backends.trt.profiles import BuildOptions, plan, settled
from edgegen.errors import InputError
from edgegen.manifest import StatePair, Variant
from edgegen.tensors import Axis, TensorSpec

PAST = TensorSpec("past", "float16", ("batch", 2, "cache", 8))
DECODER = Variant(
    "graphs/d.onnx",
    (),
    (TensorSpec("ids", "int64", ("batch", "sequence")), TensorSpec("keep", "int64", ()), PAST),
    (TensorSpec("logits", "float32", ("batch", "kept", 99)), TensorSpec("present", "float16", PAST.axes)),
    (StatePair("past", "present", 2),),
)
AXES = {
    "batch": Axis(1, 1, 1),
    "sequence": Axis(1, 1, 2048),
    "kept": Axis(1, 1, 2048),
    "cache": Axis(1, 512, 2048),
    "unused": Axis(1, 2, 3),
}
IMAGE = Variant(
    "graphs/i.onnx",
    (),
    (TensorSpec("noise", "float32", ("batch", 4, "height", "width")),),
    (TensorSpec("pixels", "float32", ("batch", 3, "height_out", "width_out")),),
)
IMAGE_AXES = {
    "batch": Axis(1, 1, 4),
    "height": Axis(8, 64, 128, 8),
    "width": Axis(64, 64, 64),
    "height_out": Axis(64, 512, 1024, 64),
    "width_out": Axis(512, 512, 512),
}


def test_the_cache_and_every_axis_of_one_size_are_fixed():
    assert plan(DECODER, AXES, BuildOptions()).sizes == {"batch": 1, "cache": 2048}
    assert plan(DECODER, AXES, BuildOptions(cache_length=256)).sizes == {"batch": 1, "cache": 256}
    assert plan(IMAGE, IMAGE_AXES, BuildOptions()).sizes == {"width": 64, "width_out": 512}


def test_an_image_graph_has_one_profile_as_the_manifest_says():
    found = plan(IMAGE, IMAGE_AXES, BuildOptions())
    assert [profile.name for profile in found.profiles] == ["all"]
    assert found.profiles[0].shapes(IMAGE.inputs[0]) == ((1, 4, 8, 64), (1, 4, 64, 64), (4, 4, 128, 64))
    assert found.axes["height"].step == 8  # which TensorRT cannot be told: the feed is checked


def test_a_decoder_has_two_and_a_prompt_is_at_most_as_long_as_asked_for():
    found = plan(DECODER, AXES, BuildOptions(prefill=100))
    decode, prefill = found.profiles
    ids, keep, past = DECODER.inputs
    assert decode.shapes(ids) == ((1, 1), (1, 1), (1, 1))
    assert prefill.shapes(ids) == ((1, 1), (1, 50), (1, 100))
    assert decode.shapes(past) == prefill.shapes(past) == ((1, 2, 2048, 8),) * 3
    assert found.values(decode, keep) == ((1,), (1,), (1,))
    assert found.values(prefill, keep) == ((1,), (1,), (100,))
    assert found.axes["sequence"] == Axis(1, 50, 100)
    assert found.axes["cache"] == Axis(1, 2048, 2048)  # whoever asks for less room gets all of it


def test_a_prompt_is_no_longer_than_the_cache():
    short = plan(DECODER, AXES, BuildOptions(cache_length=100))
    assert (short.axes["sequence"].max, short.axes["kept"].max, short.axes["cache"].max) == (100, 100, 100)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({}, {}),
        ({"cache_length": 2048}, {}),
        ({"cache_length": 100}, {"cache_length": 100, "prefill": 100}),
        ({"cache_length": 100, "prefill": 30}, {"cache_length": 100, "prefill": 30}),
        ({"prefill": 9999}, {"prefill": 2048}),
    ],
)
def test_options_that_mean_the_same_engine_are_settled_as_one(said, meant):
    found = settled(DECODER, AXES, BuildOptions(**said))
    assert found == BuildOptions(**meant)
    assert plan(DECODER, AXES, found) == plan(DECODER, AXES, BuildOptions(**said))
    assert settled(IMAGE, IMAGE_AXES, BuildOptions(prefill=7)) == BuildOptions()


def test_a_prompt_is_no_longer_than_what_was_exported():
    assert plan(DECODER, AXES | {"sequence": Axis(1, 1, 7)}, BuildOptions()).axes["sequence"].max == 7


@pytest.mark.parametrize(("length", "kept", "place"), [(1, 1, 0), (2, 1, 1), (100, 100, 1)])
def test_the_first_profile_that_fits_is_chosen(length, kept, place):
    found = plan(DECODER, AXES, BuildOptions(prefill=100))
    specs = {spec.name: spec for spec in DECODER.inputs[:2]}
    feed = {"ids": np.zeros((1, length), np.int64), "keep": np.array(kept)}
    assert found.choose(specs, feed, {"keep": specs["keep"]}) == place


@pytest.mark.parametrize(("length", "kept"), [(101, 1), (1, 101), (1, 0)])
def test_a_feed_that_fits_no_profile_is_told_the_ranges(length, kept):
    found = plan(DECODER, AXES, BuildOptions(prefill=100))
    specs = {spec.name: spec for spec in DECODER.inputs[:2]}
    feed = {"ids": np.zeros((1, length), np.int64), "keep": np.array(kept)}
    said = rf"not built for batch 1, sequence {length}, keep {kept}; .*prefill \(sequence 1 to 100, kept 1 to 100\)"
    with pytest.raises(InputError, match=said):
        found.choose(specs, feed, {"keep": specs["keep"]})
