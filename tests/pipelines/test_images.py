"""What image pipelines share: pixel ranges, seeds, noise, classes, and what users bring."""

import types

import msgspec
import numpy as np
import pytest

from edgegen.errors import BackendError, InputError
from edgegen.pipelines import images
from edgegen.pipelines.images import MAX_SEED, PixelRange, check_room, class_ids_for, draws, normal, pixel_batch, seeds_for
from edgegen.tensors import TensorSpec


def test_pixels_go_there_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    for span in (PixelRange(), PixelRange(0, 1), PixelRange(0, 255), PixelRange(1, -1)):
        floats = span.from_uint8(pixels)
        assert (floats.shape, floats.dtype) == ((1, 1, 16, 16), np.float32)
        np.testing.assert_array_equal(span.to_uint8(floats), pixels)


def test_pixels_beyond_the_range_are_clipped_and_ones_that_are_not_finite_refused():
    assert PixelRange().to_uint8(np.array([[[[-9.0, 9.0]]]])).ravel().tolist() == [0, 255]
    with pytest.raises(BackendError, match="not finite"):
        PixelRange().to_uint8(np.array([[[[np.nan]]]]))


def test_a_range_without_width_is_not_read_from_a_manifest():
    for span in ({"black": 1.0, "white": 1.0}, {"white": float("inf")}):
        with pytest.raises(msgspec.ValidationError, match="finite"):
            msgspec.convert(span, PixelRange)


def test_seeds_count_up_from_one_or_are_given():
    assert seeds_for(3, 5) == (5, 6, 7)
    assert seeds_for(2, [9, 1]) == (9, 1)
    assert seeds_for(1, np.int64(4)) == (4,)
    assert len(set(seeds_for(4, None))) == 4


@pytest.mark.parametrize(
    ("count", "seed"),
    [(0, 1), (2, [1]), (1, -1), (1, MAX_SEED + 1), (2, MAX_SEED), (1, 0.5), (1, np.zeros((2, 2))), (1, ["a"])],
)
def test_seeds_that_cannot_be_used_are_one_line(count, seed):
    with pytest.raises(InputError) as caught:
        seeds_for(count, seed)
    assert "\n" not in str(caught.value)


def test_more_images_than_memory_holds_are_refused_before_any_is_made(monkeypatch):
    monkeypatch.setattr(images, "available_bytes", lambda: 1 << 32)
    check_room(600, 1024, 1024, 3)
    with pytest.raises(InputError, match=r"65536 images of 1024 x 512 take 206 GB of memory, and 4\.29 GB are free"):
        check_room(65536, 512, 1024, 3)
    monkeypatch.setattr(images, "available_bytes", lambda: None)
    check_room(65536, 512, 1024, 3)


def test_noise_of_a_seed_is_the_same_alone_and_in_a_batch():
    np.testing.assert_array_equal(normal([1, 2, 3], (4, 2))[1], normal([2], (4, 2))[0])
    assert not np.array_equal(normal([1], (4,)), normal([1], (4,), stream=1))


def test_classes_are_one_for_all_or_one_each():
    assert class_ids_for(2, 3, 10).tolist() == [2, 2, 2]
    assert class_ids_for([0, 9], 2, 10).tolist() == [0, 9]
    assert class_ids_for(None, 3, 0) is None


@pytest.mark.parametrize(
    ("given", "classes"), [(None, 10), (10, 10), (-1, 10), ([1, 2, 3], 10), (0.5, 10), ("a", 10), (1, 0), ([[0], [1, 2]], 10)]
)
def test_classes_that_do_not_fit_are_one_line(given, classes):
    with pytest.raises(InputError, match="class"):
        class_ids_for(given, 2, classes)


def test_a_users_image_becomes_a_batch_with_the_wanted_channels():
    grey = np.zeros((4, 5, 1), np.uint8)
    assert pixel_batch(grey, 3).shape == (1, 4, 5, 3)
    assert pixel_batch(grey[None], 1).shape == (1, 4, 5, 1)


@pytest.mark.parametrize(
    "given",
    [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3)), np.zeros((4, 5, 2), np.uint8), np.zeros((0, 5, 3), np.uint8), "x"],
)
def test_what_is_no_image_is_one_line(given):
    with pytest.raises(InputError):
        pixel_batch(given, 3)


def test_a_bundle_whose_graphs_all_begin_with_an_image_makes_none_from_seeds():
    def manifest(*graphs, **settings):
        variants = [types.SimpleNamespace(inputs=[TensorSpec(name, "float32", ()) for name in names]) for names in graphs]
        named = {str(i): types.SimpleNamespace(variants={"canonical": variant}) for i, variant in enumerate(variants)}
        return types.SimpleNamespace(graphs=named, settings=settings)

    assert draws(manifest(["z", "class_ids"]))
    assert draws(manifest(["image"], ["latent"]))
    assert not draws(manifest(["image"]))
    assert not draws(manifest(["image"], ["codes"], codes=16))
