"""Autoencoders on sessions made of numpy: what goes through comes back, and what cannot is one line."""

import threading
import types

import msgspec
import numpy as np
import pytest

from edgegen.backends.fake import FakeSession
from edgegen.errors import BackendError, BundleError, InputError
from edgegen.pipelines import FAMILIES
from edgegen.pipelines.images import PixelRange, normal
from edgegen.pipelines.vae import Posterior, Vae, VaeSettings, drawn
from edgegen.tensors import Axis, TensorSpec

BATCH = Axis(1, 2, 4)


def spec(name, *axes, dtype="float32"):
    return TensorSpec(name, dtype, axes)


def spatial(settings=None, *, sides=(2, 4, 8), is_plain=False):
    """The latent is each 2x2 block's four pixels as four channels: nothing is lost, and every pixel's place shows."""

    def encode(feed, _state):
        image = feed["image"]
        n, _, h, w = image.shape
        blocks = image.reshape(n, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3).reshape(n, 4, h // 2, w // 2)
        made = {"mean": blocks * 0.5 + 3}
        return made if is_plain else made | {"log_variance": np.full_like(blocks, -2.0)}

    def decode(feed, _state):
        with np.errstate(over="ignore"):  # as a graph does
            latent = (feed["latent"] - 3) / 0.5
        n, _, h, w = latent.shape
        return {"image": latent.reshape(n, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(n, 1, h * 2, w * 2)}

    names = ("mean",) if is_plain else ("mean", "log_variance")
    encoder_axes = {"batch": BATCH, "height": Axis(*(2 * n for n in sides)), "width": Axis(*(2 * n for n in sides))}
    decoder_axes = {"batch": BATCH, "h": Axis(*sides), "w": Axis(*sides)}
    sessions = {
        "encoder": FakeSession(
            encode,
            [spec("image", "batch", 1, "height", "width")],
            [spec(name, "batch", 4, "h", "w") for name in names],
            axes=encoder_axes,
        ),
        "decoder": FakeSession(
            decode, [spec("latent", "batch", 4, "h", "w")], [spec("image", "batch", 1, "y", "x")], axes=decoder_axes
        ),
    }
    settings = settings or VaeSettings(scale=2, scaling_factor=2.0, shift_factor=3.0)
    return Vae(sessions, settings, {"encoder": encoder_axes, "decoder": decoder_axes})


def vector(classes=3):
    """Image = latent of four numbers, moved up by the class."""
    ids = spec("class_ids", "batch", dtype="int64")

    def encode(feed, _state):
        flat = feed["image"].reshape(-1, 4) - feed["class_ids"][:, None]
        return {"mean": flat, "log_variance": flat * 0}

    def decode(feed, _state):
        return {"image": (feed["latent"] + feed["class_ids"][:, None]).reshape(-1, 1, 2, 2)}

    image, latent = spec("image", "batch", 1, 2, 2), spec("latent", "batch", 4)
    outputs = [spec("mean", "batch", 4), spec("log_variance", "batch", 4)]
    axes = {"batch": BATCH}
    sessions = {
        "encoder": FakeSession(encode, [image, ids], outputs, axes=axes),
        "decoder": FakeSession(decode, [latent, ids], [image], axes=axes),
    }
    settings = VaeSettings(pixels=PixelRange(-8, 8), classes=classes)
    return Vae(sessions, settings, {"encoder": axes, "decoder": axes})


def quantized():
    """Codes are grey levels of 16, one for each 2x2 block."""

    def encode(feed, _state):
        return {"codes": np.rint(feed["image"][:, 0, ::2, ::2] * 15).astype(np.int64)}

    def decode(feed, _state):
        return {"image": np.repeat(np.repeat(feed["codes"][:, None] / np.float32(15), 2, 2), 2, 3).astype(np.float32)}

    axes = {"batch": BATCH, "h": Axis(1, 2, 4), "w": Axis(1, 2, 4)}
    codes, image = spec("codes", "batch", "h", "w", dtype="int64"), spec("image", "batch", 1, "y", "x")
    sessions = {
        "encoder": FakeSession(encode, [image], [codes]),
        "decoder": FakeSession(decode, [codes], [image], axes=axes),
    }
    return Vae(sessions, VaeSettings(pixels=PixelRange(0, 1), codes=16, scale=2), {"decoder": axes})


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_reconstruction_gives_the_image_back_through_scaled_latents():
    pixels = random_pixels(6, 8, 12, 1)  # more images than a batch holds
    with spatial() as vae:
        posterior = vae.encode(pixels)
        # (mean - 3) * 2, and the spread with it: log(e^-2 * 2^2)
        np.testing.assert_allclose(posterior.mean[0, 0], PixelRange().from_uint8(pixels)[0, 0, ::2, ::2], atol=1e-6)
        np.testing.assert_allclose(posterior.log_variance, -2 + 2 * np.log(2), rtol=1e-6)
        np.testing.assert_array_equal(vae.decode(posterior.mean).pixels, pixels)
        np.testing.assert_array_equal(vae.reconstruct(pixels).pixels, pixels)
        np.testing.assert_array_equal(vae.reconstruct(pixels[0]).pixels, pixels[:1])


def test_sides_that_the_latent_does_not_divide_are_continued_and_cut_off_again():
    pixels = random_pixels(7, 3, 1)
    np.testing.assert_array_equal(spatial().reconstruct(pixels).pixels[0], pixels)


def test_images_and_latents_larger_than_was_exported_go_in_tiles():
    pixels = random_pixels(50, 38, 1)  # up to 16 were exported
    vae = spatial()
    posterior = vae.encode(pixels)
    assert posterior.mean.shape == (1, 4, 25, 19)
    np.testing.assert_array_equal(vae.decode(posterior.mean).pixels[0], pixels)
    np.testing.assert_array_equal(vae.decode(posterior.mean, tile=4, overlap=1).pixels[0], pixels)
    fixed = spatial(sides=(4, 4, 4))
    np.testing.assert_array_equal(fixed.reconstruct(pixels).pixels[0], pixels)


SIZES = [{"tile": 4, "overlap": 1}, {"tile": 7}, {"tile": 16, "overlap": 8}, {"batch_size": 1}, {"tile": 8, "batch_size": 3}]


@pytest.mark.parametrize("sizes", SIZES)
def test_how_large_a_run_is_changes_no_image(sizes):
    pixels = random_pixels(5, 22, 12, 1)
    vae = spatial()
    np.testing.assert_array_equal(vae.reconstruct(pixels, **sizes).pixels, pixels)
    whole = vae.generate(count=3, seed=1, height=22)
    np.testing.assert_array_equal(vae.generate(count=3, seed=1, height=22, **sizes).pixels, whole.pixels)
    way, same = (vae.interpolate(pixels[0], pixels[1], 3, **given).pixels.astype(int) for given in ({}, sizes))
    assert np.abs(way - same).max() <= 1  # halfway between two grey levels, the last bit of a float32 sum decides
    # Where tiles meet, two shares of a number are summed in float32.
    np.testing.assert_allclose(vae.encode(pixels, **sizes).mean, vae.encode(pixels).mean, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"tile": 18}, "tile is 18; it must be 4 to 16 pixels"),
        ({"tile": 0}, "tile is 0; it must be 4 to 16 pixels"),
        ({"tile": -8}, "tile is -8"),
        ({"tile": 8, "overlap": 8}, "overlap is 8; for tiles of 8 pixels it is 0 to 4"),
        ({"overlap": -1}, "overlap is -1; for tiles of 16 pixels it is 0 to 8"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"batch_size": 1.5}, "batch_size is '1.5'; give a whole number"),
        ({"tile": "8"}, "tile is '8'; give a whole number"),
    ],
)
def test_a_run_that_cannot_be_so_large_is_one_line(sizes, said):
    vae = spatial(VaeSettings(scale=2))
    for call in (vae.generate, lambda **sizes: vae.reconstruct(random_pixels(8, 8, 1), **sizes)):
        with pytest.raises(InputError, match=said):
            call(**sizes)


def test_a_graph_without_bounds_is_cut_where_a_tile_is_asked_for():
    pixels = random_pixels(20, 12, 1)
    vae = spatial()
    free = Vae({name: graph.session for name, graph in vae.graphs.items()}, vae.settings)
    with pytest.raises(InputError, match="exported for"):
        free.reconstruct(pixels)  # the session knows its bounds all the same
    np.testing.assert_array_equal(free.reconstruct(pixels, tile=8).pixels[0], pixels)
    with pytest.raises(InputError, match="nothing is cut: give tile with it"):
        free.reconstruct(pixels, overlap=2)
    with pytest.raises(InputError, match="tile is 1; it must be 2 or more pixels"):
        free.reconstruct(pixels, tile=1)


def test_a_sample_of_the_posterior_has_its_mean_and_spread_and_belongs_to_its_seed():
    posterior = Posterior(np.full((2, 4000), 5, np.float32), np.full((2, 4000), np.log(4), np.float32))
    drawn_twice = posterior.sample(3), posterior.sample(3)
    np.testing.assert_array_equal(*drawn_twice)
    # 4 sigma of the mean of 4000 numbers of spread 2 is 0.13; of their spread 0.09
    assert abs(drawn_twice[0][1].mean() - 5) < 0.13
    assert abs(drawn_twice[0][1].std() - 2) < 0.09
    np.testing.assert_array_equal(drawn_twice[0][1], Posterior(posterior.mean[:1], posterior.log_variance[:1]).sample(4)[0])
    assert np.isfinite(drawn(np.zeros(1), np.array([1e9]), np.ones(1))).all()


def test_a_plain_autoencoder_has_no_spread():
    vae = spatial(is_plain=True)
    pixels = random_pixels(4, 4, 1)
    np.testing.assert_array_equal(vae.reconstruct(pixels).pixels[0], pixels)
    with pytest.raises(InputError, match="plain autoencoder"):
        vae.reconstruct(pixels, seed=1)


def test_generation_decodes_the_prior_and_an_image_depends_on_its_seed_alone():
    vae = spatial(VaeSettings(scale=2))
    whole = vae.generate(count=6, seed=10)
    assert whole.pixels.shape == (6, 8, 8, 1)
    assert whole.seeds == tuple(range(10, 16))
    np.testing.assert_array_equal(vae.generate(seed=14).pixels[0], whole.pixels[4])
    np.testing.assert_array_equal(vae.decode(normal([14], (4, 4, 4))).pixels[0], whole.pixels[4])
    assert vae.generate(height=12, width=6).pixels.shape == (1, 12, 6, 1)
    assert vae.generate(height=40).pixels.shape == (1, 40, 8, 1)  # in tiles
    with pytest.raises(InputError, match="height is 5; it must be a multiple of 2"):
        vae.generate(height=5)


def test_progress_is_told_and_a_deadline_returns_what_is_finished():
    told = []
    vae = spatial(VaeSettings(scale=2))
    vae.generate(count=6, seed=0, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]
    late = vae.generate(count=6, seed=0, deadline_s=0.0)
    assert (len(late), late.seeds) == (4, (0, 1, 2, 3))


def test_classes_reach_encoder_and_decoder():
    vae = vector()
    images = vae.generate(count=2, seed=1, class_ids=[0, 2])
    floats = vae.settings.pixels.from_uint8(images.pixels).reshape(2, 4)
    np.testing.assert_allclose(floats, normal([1, 2], (4,)) + np.array([[0], [2]]), atol=16 / 255 / 2)  # half a grey level
    again = vae.reconstruct(images.pixels, class_ids=[0, 2])
    np.testing.assert_array_equal(again.pixels, images.pixels)
    moved = vae.encode(images.pixels, class_ids=1).mean - vae.encode(images.pixels, class_ids=0).mean
    np.testing.assert_allclose(moved, -1, rtol=1e-6)
    with pytest.raises(InputError, match="class_ids are missing"):
        vae.generate()


def test_interpolation_joins_seeds_on_the_sphere_and_images_in_a_line():
    vae = vector()
    path = vae.interpolate(1, 2, 5, class_ids=0)
    np.testing.assert_array_equal(path.pixels[[0, -1]], vae.generate(count=2, seed=1, class_ids=0).pixels)
    black, white = np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 250, np.uint8)
    between = vae.interpolate(black, white, 3, class_ids=0).pixels
    assert between[:, 0, 0, 0].tolist() == [0, 125, 250]
    with pytest.raises(InputError, match="at least 2"):
        vae.interpolate(1, 2, 1, class_ids=0)
    with pytest.raises(InputError, match="one size"):
        spatial().interpolate(np.zeros((4, 4, 1), np.uint8), np.zeros((8, 4, 1), np.uint8), 2)


def test_codes_are_encoded_decoded_and_tiled():
    vae = quantized()
    pixels = np.repeat(np.repeat(random_pixels(2, 3, 1) // 17 * 17, 2, 0), 2, 1)
    codes = vae.encode(pixels)
    assert (codes.dtype, codes.shape) == (np.int64, (1, 2, 3))
    np.testing.assert_array_equal(vae.decode(codes).pixels[0], pixels)
    np.testing.assert_array_equal(vae.reconstruct(pixels).pixels[0], pixels)
    many = np.random.default_rng(0).integers(0, 16, (1, 11, 9))
    large = vae.decode(many).pixels  # up to 4 were exported
    np.testing.assert_array_equal(large[0, ::2, ::2, 0], many[0] * 17)
    for call in (vae.generate, lambda: vae.interpolate(1, 2, 3), lambda: vae.reconstruct(pixels, seed=1)):
        with pytest.raises(InputError, match="codes"):
            call()
    with pytest.raises(InputError, match="this model has 0 to 15"):
        vae.decode(many + 1)
    with pytest.raises(InputError, match="int64 with 3 axes"):
        vae.decode(many[0])


@pytest.mark.parametrize(
    "latents", [np.zeros((1, 3, 4, 4)), np.zeros((4, 4, 4)), np.full((1, 4, 4, 4), np.nan), "text", np.zeros((0, 4, 4, 4))]
)
def test_latents_that_do_not_fit_are_one_line(latents):
    with pytest.raises(InputError, match="latents"):
        spatial().decode(latents)


def test_images_that_do_not_fit_are_one_line():
    with pytest.raises(InputError, match="in colour, grey is wanted"):
        spatial().encode(random_pixels(4, 4, 3))
    with pytest.raises(InputError, match=r"the image is 4 x 6; this model takes 2 x 2$"):
        vector().encode(random_pixels(6, 4, 1), class_ids=0)
    with pytest.raises(InputError, match="one size"):
        vector().generate(class_ids=0, height=4)
    with pytest.raises(InputError, match="no sides"):
        vector().decode(np.zeros((1, 4)), class_ids=0, tile=2)
    with pytest.raises(InputError, match="overlap is 2, but this model's latent has no sides"):
        vector().generate(class_ids=0, overlap=2)


def test_sizes_are_told_in_pixels_before_a_graph_sees_them():
    vae = spatial(VaeSettings(scale=2))
    with pytest.raises(InputError, match="width is 2; this model was exported for 4 to 16, in multiples of 2, and larger ones"):
        vae.generate(width=2)
    with pytest.raises(InputError, match=r"height is '8\.5'; give a whole number"):
        vae.generate(height=8.5)
    with pytest.raises(InputError, match=r"an end of the way is a seed, or an image .* not None"):
        vae.interpolate(None, 3, 4)
    decoder = vae.graphs["decoder"]
    fours = Vae(
        {"decoder": decoder.session}, vae.settings, {"decoder": dict.fromkeys(("h", "w"), Axis(2, 4, 8, 2)) | {"batch": BATCH}}
    )
    with pytest.raises(InputError, match="height is 10; this model was exported for 4 to 16, in multiples of 4"):
        fours.generate(height=10)


def test_a_model_that_gives_what_is_not_finite_says_so():
    with pytest.raises(BackendError, match="not finite"):
        spatial(VaeSettings(scale=2)).decode(np.full((1, 4, 2, 2), 3e38))


def test_a_bundle_with_a_decoder_alone_makes_images_but_encodes_none():
    whole = spatial(VaeSettings(scale=2))
    alone = Vae({"decoder": whole.graphs["decoder"].session}, whole.settings, {"decoder": whole.graphs["decoder"].axes})
    assert alone.generate(seed=1).pixels.shape == (1, 8, 8, 1)
    with pytest.raises(InputError, match="no encoder"):
        alone.reconstruct(random_pixels(4, 4, 1))
    named = dict(alone.replay({"latent": normal([0], (4, 4, 4))}))
    assert list(named) == ["image"]


def test_replay_yields_every_tensor_in_order():
    image, noise = np.zeros((2, 1, 4, 4), np.float32), normal([0, 1], (4, 2, 2))
    named = dict(spatial().replay({"image": image, "noise": noise}))
    assert list(named) == ["mean", "log_variance", "latent", "image"]
    np.testing.assert_allclose(named["latent"], 3 + np.exp(-1) * noise, rtol=1e-6)
    assert list(dict(spatial(is_plain=True).replay({"image": image}))) == ["mean", "image"]
    given = {"image": np.zeros((1, 1, 4, 4), np.float32), "codes": np.array([[[0, 0], [0, 1]]])}
    named = dict(quantized().replay(given))
    assert named["codes.agreement"].tolist() == [0.75]
    assert named["image"][0, 0, 3, 3] == np.float32(1 / 15)  # of the codes that were recorded
    ids = np.array([0, 1])
    named = dict(vector().replay({"image": np.zeros((2, 1, 2, 2), np.float32), "noise": np.zeros((2, 4)), "class_ids": ids}))
    np.testing.assert_array_equal(named["mean"][1], [-1, -1, -1, -1])


def test_threads_may_share_a_pipeline():
    vae, wrong = spatial(VaeSettings(scale=2)), []
    wanted = [vae.generate(seed=i).pixels for i in range(4)]

    def work(i):
        for _ in range(20):
            wrong.extend([i] * (not np.array_equal(vae.generate(seed=i).pixels, wanted[i])))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def fake_bundle(graphs=("encoder", "decoder"), **settings):
    inner = spatial()
    listed = {name: types.SimpleNamespace(axes=inner.graphs["decoder"].axes, row_bytes=0) for name in graphs}
    manifest = types.SimpleNamespace(graphs=listed, settings=settings)
    closed = []
    bundle = types.SimpleNamespace(manifest=manifest, close=lambda: closed.append(True), closed=closed)
    return bundle, lambda name: inner.graphs[name].session


def test_a_pipeline_is_made_from_a_bundle_and_closes_it():
    assert FAMILIES["vae"] == "edgegen.pipelines.vae:Vae"
    bundle, opener = fake_bundle(**msgspec.to_builtins(VaeSettings(scale=2)))
    with Vae.from_bundle(bundle, opener) as vae:
        assert vae.generate(seed=1).pixels.shape == (1, 8, 8, 1)
    vae.close()
    assert bundle.closed
    with pytest.raises(BackendError, match="closed"):
        vae.generate()


@pytest.mark.parametrize(
    ("graphs", "settings"),
    [
        (("encoder",), {"scale": 2}),
        (("encoder", "decoder", "more"), {"scale": 2}),
        (("encoder", "decoder"), {"unknown": 1}),
        (("encoder", "decoder"), {"scaling_factor": 0.0}),
        (("encoder", "decoder"), {"scale": -1}),
        (("encoder", "decoder"), {"classes": 3}),
        (("encoder", "decoder"), {"codes": 3}),
        (("encoder", "decoder"), {"pixels": {"black": 1.0, "white": 1.0}}),
    ],
)
def test_settings_and_graphs_that_do_not_fit_are_a_bundle_error(graphs, settings):
    bundle, opener = fake_bundle(graphs, **settings)
    with pytest.raises(BundleError):
        Vae.from_bundle(bundle, opener)
