import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegen.errors import InputError
from edgegen.pipelines.tiling import Tiling, padded, pieces, strips, tiled

EXACT = 1e-6  # weights of neighbours are rounded to float32 once each, and sum to 1 within two roundings


def picture(height: int, width: int, count: int = 1, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, channels, height, width), np.float32)


def box(images: np.ndarray) -> np.ndarray:
    """A mean over 5 x 5 pixels (zeros outside, as convolutions do it): its receptive field has radius 2."""
    wide = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    height, width = images.shape[2:]
    return sum(wide[:, :, y : y + height, x : x + width] for y in range(5) for x in range(5)) / np.float32(25)


def doubled(images: np.ndarray) -> np.ndarray:
    return box(images).repeat(2, axis=2).repeat(2, axis=3)


def halved(images: np.ndarray) -> np.ndarray:
    count, channels, height, width = images.shape
    return images.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))


@settings(deadline=None, max_examples=200)
@given(
    length=st.integers(1, 400),
    tile=st.integers(1, 32),
    share=st.floats(0, 0.5),
    blend=st.floats(0, 1),
    multiple=st.sampled_from([1, 4]),
    scale=st.sampled_from([Fraction(1), Fraction(3), Fraction(1, 4)]),
)
def test_weights_sum_to_one_and_every_pixel_used_is_inside_its_tile(length, tile, share, blend, multiple, scale):
    if scale == Fraction(1, 4):
        multiple = 4
    tile, length = tile * multiple, -(-length // multiple) * multiple
    overlap = int(tile * share) // multiple * multiple
    tiling = Tiling(tile, overlap, int(overlap * blend), multiple=multiple)
    total = np.zeros(int(length * scale))
    for piece in pieces(length, tiling, scale):
        assert piece.start % multiple == piece.stop % multiple == 0
        assert piece.start * scale <= piece.first <= piece.last <= piece.stop * scale
        assert piece.stop - piece.start <= min(tile, length)
        total[piece.first : piece.last] += piece.weights
    np.testing.assert_allclose(total, 1, atol=EXACT)


def test_tiles_are_no_larger_than_their_number_asks_unless_the_network_has_one_size():
    assert Tiling(512, 32, 16).spans(600) == [(0, 316), (284, 600)]
    assert Tiling(512, 32, 16, least=512).spans(600) == [(0, 512), (88, 600)]
    assert Tiling(512, 32, 16).spans(512) == [(0, 512)]


@settings(deadline=None, max_examples=200)
@given(length=st.integers(33, 400), overlap=st.integers(0, 16), blend=st.integers(0, 16))
def test_no_pixel_that_is_used_is_nearer_to_an_inner_edge_than_promised(length, overlap, blend):
    tiling = Tiling(32, overlap, min(blend, overlap))
    found = pieces(length, tiling)
    promised = (overlap - tiling.blend) // 2
    for before, after in itertools.pairwise(found):
        assert after.first - after.start >= promised
        assert before.stop - before.last >= promised


@pytest.mark.parametrize("size", [(40, 40), (41, 97), (16, 33), (7, 100)])
@pytest.mark.parametrize("ramp", ["cosine", "linear"])
def test_an_overlap_of_the_receptive_field_gives_the_image_of_one_piece(size, ramp):
    images = picture(*size, count=2)
    tiling = Tiling(16, 2 * 2 + 3, 3, ramp)
    np.testing.assert_allclose(tiled(box, images, tiling), box(images), atol=EXACT)
    np.testing.assert_allclose(tiled(doubled, images, tiling, Fraction(2)), doubled(images), atol=EXACT)


def test_a_smaller_overlap_differs_only_near_the_seams_and_never_jumps():
    images = np.ones((1, 1, 16, 44), np.float32)
    whole, joined = box(images), tiled(box, images, Tiling(16, 2, 2))
    seams = [piece.first for piece in pieces(44, Tiling(16, 2, 2))[1:]]
    near = np.zeros(44, bool)
    for seam in seams:
        near[seam : seam + 2] = True
    assert len(seams) == 2
    assert np.abs(joined - whole)[..., near].max() > 0.1  # the test would see an error
    np.testing.assert_allclose(joined[..., ~near], whole[..., ~near], atol=EXACT)


def test_ramps_go_from_one_tile_to_the_other_without_a_step():
    tiles = iter([np.zeros((1, 1, 32, 32), np.float32), np.ones((1, 1, 32, 32), np.float32)])
    joined = tiled(lambda _: next(tiles), picture(32, 48), Tiling(32, 16, 16))[0, 0, 0]
    assert joined[0] == 0
    assert joined[-1] == 1
    assert 0 < np.diff(joined).max() < 0.11  # a cosine over 16 pixels rises by pi / 32 at most
    assert (np.diff(joined) >= 0).all()


def test_smaller_outputs_work_too():
    images = picture(36, 52)
    joined = tiled(halved, images, Tiling(16, 4, 4, multiple=2), Fraction(1, 2))
    np.testing.assert_allclose(joined, halved(images), atol=EXACT)


def test_rows_come_as_they_are_finished_and_one_strip_is_held_at_a_time():
    images = picture(64, 20)
    found = [strip.shape[2] for strip in strips(box, images, Tiling(16, 7, 3))]
    assert sum(found) == 64
    assert len(found) == len(pieces(64, Tiling(16, 7, 3))) > 3
    assert max(found) <= 16


def test_a_session_may_reuse_its_output_buffer():
    buffer = np.zeros((1, 3, 16, 16), np.float32)

    def run(images: np.ndarray) -> np.ndarray:
        buffer[:] = box(images)
        return buffer

    images = picture(40, 40)
    np.testing.assert_allclose(tiled(run, images, Tiling(16, 7, 3)), box(images), atol=EXACT)


def test_padding_reflects_and_keeps_what_is_large_enough():
    images = picture(5, 9)
    wide = padded(images, 8, 4)
    assert wide.shape == (1, 3, 8, 12)
    np.testing.assert_array_equal(wide[:, :, :5, :9], images)
    np.testing.assert_array_equal(wide[:, :, 5, :9], images[:, :, 3])
    assert padded(wide, 8, 4) is wide
    assert padded(picture(1, 2), 16).shape == (1, 3, 16, 16)  # further than one reflection reaches


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tile": 0, "overlap": 0, "blend": 0}, "tile is 0"),
        ({"tile": 18, "overlap": 4, "blend": 4, "multiple": 4}, "multiple of 4"),
        ({"tile": 16, "overlap": 9, "blend": 4}, "0 to 8"),
        ({"tile": 16, "overlap": -1, "blend": 0}, "overlap is -1"),
        ({"tile": 16, "overlap": 4, "blend": 5}, "blend is 5"),
        ({"tile": 16, "overlap": 4, "blend": 4, "ramp": "steep"}, "cosine or linear"),
    ],
)
def test_a_tiling_that_cannot_be_says_why(arguments, said):
    with pytest.raises(InputError, match=said):
        Tiling(**arguments)


def test_sides_and_results_that_do_not_fit_say_so():
    with pytest.raises(InputError, match="33 is not a multiple of 4"):
        tiled(box, picture(33, 32), Tiling(16, 4, 4, multiple=4))
    with pytest.raises(InputError, match="scale 1/2"):
        tiled(halved, picture(33, 32), Tiling(16, 4, 4), Fraction(1, 2))
    with pytest.raises(InputError, match=r"must be \[28, 28\]"):
        tiled(box, picture(32, 32), Tiling(16, 4, 4), Fraction(2))
