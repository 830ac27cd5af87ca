import time

import numpy as np
import pytest

from edgegen.backends.fake import FakeSession
from edgegen.errors import BackendError, BundleError, InputError
from edgegen.pipelines.gan import Gan, GanSettings
from edgegen.tensors import Axis, TensorSpec

SPEC = TensorSpec("image", "float32", ("batch", 3, "height", "width"))
OUT = TensorSpec("image_out", "float32", ("batch", 3, "height_out", "width_out"))


def box(images: np.ndarray) -> np.ndarray:
    """A mean over 3 x 3 pixels, zeros outside: its receptive field has radius 1."""
    wide = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = images.shape[2:]
    return sum(wide[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)) / np.float32(9)


def doubled(images: np.ndarray) -> np.ndarray:
    return box(images).repeat(2, axis=2).repeat(2, axis=3)


def halved(images: np.ndarray) -> np.ndarray:
    count, channels, height, width = images.shape
    return images.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))


class Recorded(Gan):
    """A translator that remembers the sizes that its graph was run with."""

    def __init__(self, function, bounds=(4, 16), spec=SPEC, out=OUT, **settings):
        self.sizes = []

        def run(feed, _):
            self.sizes.append(feed["image"].shape[2:])
            return {"image_out": function(feed["image"])}

        axes = {
            "batch": Axis(1, 1, 8),
            "height": Axis(bounds[0], bounds[0], bounds[1]),
            "width": Axis(bounds[0], bounds[0], bounds[1]),
        }
        session = FakeSession(run, [spec], [out], axes=axes)
        super().__init__({"translator": session}, GanSettings(**settings), {"translator": axes})


def upscaler(**changes) -> Recorded:
    return Recorded(doubled, **{"scale": (2, 1), "receptive_field": 1} | changes)


def photo(height: int, width: int, count: int = 1, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def in_one_piece(pixels: np.ndarray, function=doubled) -> np.ndarray:
    settings = GanSettings()
    return settings.pixels.to_uint8(function(settings.pixels.from_uint8(pixels)))


def assert_alike(got: np.ndarray, wanted: np.ndarray) -> None:
    """Within a grey level: joining rounds the float32 once more, which may carry a pixel over the edge between two greys."""
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).max() <= 1
    assert (got != wanted).mean() < 0.01


@pytest.mark.parametrize(("reach", "side", "warned"), [(None, 20, True), (None, 16, False), (1, 20, False)])
def test_tiles_of_a_model_that_looks_at_the_whole_image_are_warned_of(reach, side, warned, caplog):
    upscaler(receptive_field=reach).translate(photo(side, side))
    assert ("may differ from an image in one piece" in caplog.text) is warned


def test_an_image_that_fits_is_run_in_one_piece():
    model, pixels = upscaler(), photo(12, 16, count=2)
    made = model.translate(pixels)
    np.testing.assert_array_equal(made.pixels, in_one_piece(pixels))
    assert model.sizes == [(12, 16)] * 2
    assert made.parameters == {"tiles": "1 x 1", "scale": "2"}
    assert made.seeds == ()


@pytest.mark.parametrize("size", [(17, 16), (40, 9), (33, 50), (100, 100)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": 11, "blend": 2},
        {"tile": 8, "blend": None},
        {"overlap": 8, "blend": 3, "ramp": "linear"},
        {"tile": 8, "blend": 0},
    ],
)
def test_an_image_that_is_too_large_is_joined_from_tiles_that_fit(size, options):
    model, pixels = upscaler(), photo(*size)
    made = model.translate(pixels, **({"blend": 4} | options)).pixels
    assert_alike(made, in_one_piece(pixels))
    assert len(model.sizes) > 1
    assert all(4 <= side <= options.get("tile", 16) for sides in model.sizes for side in sides)


def test_the_result_does_not_depend_on_the_tiles_away_from_seams():
    model, pixels = upscaler(receptive_field=None), photo(12, 60)
    hard = [model.translate(pixels, tile=tile, overlap=0, blend=0).pixels.astype(int) for tile in (16, 12)]
    whole = in_one_piece(pixels).astype(int)
    seams = [{15, 30, 45}, {12, 24, 36, 48}]
    for made, places in zip(hard, seams, strict=True):
        near = np.isin(np.arange(60), [x + d for x in places for d in (-1, 0)]).repeat(2)
        assert np.abs(made - whole)[:, :, near].max() > 1
        assert np.abs(made - whole)[:, :, ~near].max() <= 1


def test_an_image_that_is_too_small_is_reflected_and_cut_again():
    model, pixels = upscaler(), photo(3, 2)
    made = model.translate(pixels).pixels
    wide = np.pad(pixels, ((0, 0), (0, 1), (0, 2), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(made, in_one_piece(wide)[:, :6, :4])
    assert model.sizes == [(4, 4)]
    assert upscaler().translate(photo(1, 1)).pixels.shape == (1, 2, 2, 3)


def test_a_network_of_one_size_takes_any():
    spec, out = TensorSpec("image", "float32", (1, 3, 8, 16)), TensorSpec("image_out", "float32", (1, 3, 16, 32))
    model, pixels = upscaler(spec=spec, out=out), photo(21, 43, count=2)
    assert_alike(model.translate(pixels, blend=2).pixels, in_one_piece(pixels))
    assert set(model.sizes) == {(8, 16)}
    assert model.translate(photo(5, 5)).pixels.shape == (1, 10, 10, 3)


def test_sides_are_brought_to_the_multiple_that_the_network_needs():
    model = Recorded(halved, scale=(1, 2), multiple=2, receptive_field=1)
    made = model.translate(photo(31, 44)).pixels
    assert made.shape == (1, 16, 22, 3)
    assert all(side % 2 == 0 for sides in model.sizes for side in sides)
    assert_alike(made[:, :15], in_one_piece(photo(31, 44)[:, :30], halved))


def test_grey_becomes_rgb_and_opaque_alpha_goes():
    model, grey = upscaler(), photo(8, 8, channels=1)
    np.testing.assert_array_equal(model.translate(grey).pixels, in_one_piece(grey.repeat(3, axis=3)))
    rgb = photo(8, 8)
    rgba = np.concatenate([rgb, np.full((1, 8, 8, 1), 255, np.uint8)], axis=3)
    np.testing.assert_array_equal(model.translate(rgba).pixels, model.translate(rgb).pixels)
    np.testing.assert_array_equal(model.translate(rgb[0]).pixels, model.translate(rgb).pixels)


def test_progress_counts_tiles():
    told = []
    model = upscaler()
    model.translate(photo(16, 40, count=2), blend=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, len(model.sizes)) for i in range(len(model.sizes))]


def test_a_deadline_gives_the_images_that_are_finished():
    model, pixels = upscaler(), photo(8, 8, count=5)
    made = model.translate(pixels, deadline_s=0.05, progress=lambda *_: time.sleep(0.03))
    np.testing.assert_array_equal(made.pixels, upscaler().translate(pixels).pixels[:2])
    assert made.parameters["stopped"] == "deadline"
    with pytest.raises(InputError, match="no image was finished"):
        model.translate(pixels, deadline_s=0.0)


@pytest.mark.parametrize(
    ("pixels", "options", "said"),
    [
        (photo(8, 8).astype(np.float32), {}, r"not float32\[1, 8, 8, 3\]"),
        (photo(8, 8, channels=2), {}, "2 channels"),
        (photo(8, 8, channels=4), {}, "transparency"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, r"\[0, 8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), {}, r"\[8, 8\]"),
        ("photo.png", {}, "not <U9"),
        (photo(8, 8), {"tile": 8.5}, "tile is '8.5'; give a whole number"),
        (photo(8, 8), {"deadline_s": -1}, "deadline_s is -1; give a number from 0"),
        (photo(8, 8), {"tile": 3}, "exported for sides of 4 to 16$"),
        (photo(8, 8), {"tile": 17}, "exported for sides of 4 to 16$"),
        (photo(8, 8), {"overlap": 9}, "0 to 8"),
        (photo(8, 8), {"overlap": 4, "blend": 5}, "blend is 5"),
        (photo(8, 8), {"ramp": "steep"}, "cosine or linear"),
    ],
)
def test_what_cannot_be_done_is_one_line(pixels, options, said):
    with pytest.raises(InputError, match=said) as caught:
        upscaler().translate(pixels, **options)
    assert "\n" not in str(caught.value)


def test_colour_is_not_lost_silently():
    grey = TensorSpec("image", "float32", ("batch", 1, "height", "width"))
    with pytest.raises(InputError, match="in colour"):
        upscaler(spec=grey).translate(photo(8, 8))


def test_latents_are_not_wanted():
    with upscaler() as model:
        with pytest.raises(InputError, match="translate"):
            model.generate(seed=1)
        with pytest.raises(InputError, match="translate"):
            model.interpolate(1, 2, 3)


def test_pixels_that_are_not_finite_are_not_images():
    with pytest.raises(BackendError, match="not finite"):
        Recorded(lambda images: images * np.float32("nan")).translate(photo(8, 8))


def test_a_graph_that_is_no_translator_is_refused():
    with pytest.raises(BundleError, match="takes image and gives image_out"):
        Recorded(doubled, spec=TensorSpec("picture", "float32", SPEC.axes))
    with pytest.raises(BundleError, match="none is allowed"):
        Recorded(doubled, bounds=(5, 7), multiple=8)
    with pytest.raises(BundleError, match="so many channels"):
        Recorded(doubled, spec=TensorSpec("image", "float32", ("batch", "channel", "height", "width")))


def test_replay_gives_the_image_in_one_piece_and_joined():
    image = np.random.default_rng(0).random((1, 3, 40, 40), np.float32)
    cut = {"tile": np.array([12]), "overlap": np.array(6), "blend": np.array(4)}
    found = dict(upscaler(bounds=(4, 64)).replay({"image": image, **cut}))
    assert list(found) == ["image_out", "image_out.tiled"]
    np.testing.assert_allclose(found["image_out.tiled"], found["image_out"], atol=1e-6)  # one more rounding of float32
    assert list(dict(upscaler(bounds=(4, 64)).replay({"image": image}))) == ["image_out"]
