"""Bounds whose arithmetic is known by hand."""

from dataclasses import replace

import pytest
from bundles import make_bundle
from bundles_to_plan import CHANNELS, LAYERS, convolutions
from graphs import forms, node

from edgegen.planner.graphs import CPU, Ask, read_bundle
from edgegen.planner.roofline import Peaks, ops_of, roofs, work_of


def ops(one, **shapes):
    return ops_of(one, forms(**shapes))


def test_a_product_is_two_operations_for_each_pair():
    assert ops(node("MatMul", "x w", "y"), x=(2, 5, 3), w=(3, 4), y=(2, 5, 4)) == (240, 240)
    assert ops(node("Gemm", "x w", "y", transA=1), x=(3, 5), w=(3, 4), y=(5, 4)) == (120, 120)


def test_a_convolution_of_3_by_3_needs_no_more_than_a_quarter():
    shapes = {"x": (1, 4, 8, 8), "w": (6, 4, 3, 3), "y": (1, 6, 8, 8)}
    assert ops(node("Conv", "x w", "y"), **shapes) == (2 * 384 * 36, 2 * 384 * 9)
    stepped = shapes | {"y": (1, 6, 4, 4)}
    assert ops(node("Conv", "x w", "y", strides=(2, 2)), **stepped) == (2 * 96 * 36, 2 * 96 * 36)


def test_a_transposed_convolution_counts_what_each_input_adds_to():
    shapes = {"x": (1, 4, 5, 5), "w": (4, 6, 4, 4), "y": (1, 6, 10, 10)}
    whole, least = ops(node("ConvTranspose", "x w", "y", strides=(2, 2)), **shapes)
    assert whole == 2 * 100 * 96
    assert least == pytest.approx(whole * 16 / 36)


def test_attention_counts_scores_and_sums():
    shapes = {"q": (1, 4, 6, 8), "k": (1, 2, 6, 8), "v": (1, 2, 6, 8), "y": (1, 4, 6, 8)}
    whole, least = ops(node("Attention", "q k v", "y"), **shapes)
    assert whole == least == 2 * 4 * 36 * 16
    _, masked = ops(node("Attention", "q k v", "y", is_causal=1), **shapes)
    assert whole / 2 < masked < whole  # half of the scores, and the diagonal


def test_what_is_not_known_counts_nothing():
    assert ops(node("MatMul", "x w", "y"), x=(2, 3)) == (0, 0)


def test_decoding_reads_every_weight_and_the_cache(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path / "tiny.bundle"), CPU)
    peaks = Peaks(bandwidth_bytes_s=1e3, flops=1e15, int8_ops=1e15)
    short, long = (next(roof for roof in roofs(bundle, Ask(context=size), peaks) if roof.name == "decode") for size in (8, 64))
    assert long.work.state_bytes == 8 * short.work.state_bytes == 2 * 64 * 4 * 4
    assert long.bound == "bandwidth"
    assert long.seconds == (long.work.weights_bytes + long.work.state_bytes) / 1e3
    assert long.per_s == 1 / long.seconds


def test_what_caches_hold_need_not_come_from_memory(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path / "tiny.bundle"), CPU)
    decode = next(roof for roof in roofs(bundle, Ask(), Peaks(1e3, 1e6, 1e6, 1 << 20)) if roof.name == "decode")
    assert (decode.bandwidth_s, decode.bound) == (0, "arithmetic")


def test_an_image_takes_its_convolutions(tmp_path):
    bundle = read_bundle(convolutions(tmp_path / "images.bundle"), CPU)
    graph = bundle.graphs[0]
    work = work_of(graph, {"batch": 2, "height": 16, "width": 24})
    pairs = 3 * CHANNELS + (LAYERS - 1) * CHANNELS**2 + CHANNELS * 3
    assert work.ops == 2 * 9 * pairs * 2 * 16 * 24
    assert work.least_ops == work.ops / 4
    assert work.weights_bytes == 4 * 9 * pairs
    (roof,) = roofs(bundle, Ask(batch=2, height=16, width=24), Peaks(1e12, 1e9, 1e9))
    assert (roof.bound, roof.seconds) == ("arithmetic", work.least_ops / 1e9)


def test_a_run_counts_no_more_images_than_it_was_exported_for(tmp_path):
    bundle = read_bundle(convolutions(tmp_path / "images.bundle"), CPU)
    steps = replace(bundle, graphs=(replace(bundle.graphs[0], name="denoiser"),))
    most, more = (roofs(steps, Ask(batch=batch), Peaks(1e12, 1e9, 1e9))[0] for batch in (8, 1000))
    assert most == more
    assert (most.unit, most.count, most.per_s) == ("step", 8, 8 / most.seconds)
