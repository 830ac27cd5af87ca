import threading
import time

import msgspec
import numpy as np
import pytest

from edgegen.backends.fake import FakeSession
from edgegen.errors import BackendError, BundleError, InputError
from edgegen.pipelines.gan import Gan, GanSettings
from edgegen.pipelines.images import normal
from edgegen.pipelines.latents import linear, spherical
from edgegen.tensors import Axis, TensorSpec

Z, W, LAYERS = 6, 5, 4
SIDES = (2, 2, 4, 4)
RNG = np.random.Generator(np.random.Philox(9))
TO_IMAGE = RNG.standard_normal((Z, 3 * 4 * 4)).astype(np.float32)
TO_W = RNG.standard_normal((Z, W)).astype(np.float32)
OF_CLASS = RNG.standard_normal((10, Z)).astype(np.float32)
STYLE = RNG.standard_normal((LAYERS, W, 3 * 4 * 4)).astype(np.float32) / 4
MEAN = tuple(map(float, RNG.standard_normal(W).astype(np.float32)))
STORED = [RNG.standard_normal((1, side, side)).astype(np.float32) for side in SIDES]
SETTINGS = GanSettings(mean_w=MEAN)


def generator(*, classes: bool = False) -> FakeSession:
    """A row of numpy's product may depend on how many there are: each is computed alone, so that equality can be exact."""

    def function(feed, _):
        z = feed["z"] + (OF_CLASS[feed["class_ids"]] if classes else 0)
        return {"image": np.tanh(np.stack([row @ TO_IMAGE for row in z])).reshape(-1, 3, 4, 4)}

    inputs = [TensorSpec("z", "float32", ("batch", Z))] + [TensorSpec("class_ids", "int64", ("batch",))] * classes
    outputs = [TensorSpec("image", "float32", ("batch", 3, 4, 4))]
    return FakeSession(function, inputs, outputs, axes={"batch": Axis(1, 1, 4)})


def plain(**options) -> Gan:
    classes = 10 if options.get("classes") else 0
    return Gan({"generator": generator(**options)}, GanSettings(classes=classes), {"generator": {"batch": Axis(1, 1, 4)}})


def style_image(w: np.ndarray, noise: list[np.ndarray]) -> np.ndarray:
    """w [layer, W], noise [layer] [1, side, side] -> [3, 4, 4]: every layer leaves its own trace."""
    total = sum(w[layer] @ STYLE[layer] for layer in range(LAYERS)).reshape(3, 4, 4)
    grown = [np.repeat(np.repeat(array, 4 // array.shape[1], 1), 4 // array.shape[1], 2) for array in noise]
    return np.tanh(total + 0.2 * sum((layer + 1) * array for layer, array in enumerate(grown)))


def styled(*, stored: bool = False, mean: bool = True, per_layer: bool = False) -> Gan:
    def mapping(feed, _):
        w = np.tanh(np.stack([row @ TO_W for row in feed["z"]]))
        return {"w": np.repeat(w[:, None], LAYERS, axis=1) if per_layer else w}

    def synthesis(feed, _):
        rows = range(len(feed["w"]))
        return {"image": np.stack([style_image(feed["w"][i], [feed[f"noise.{n}"][i] for n in range(LAYERS)]) for i in rows])}

    axes = {"batch": Axis(1, 1, 3)}
    w = TensorSpec("w", "float32", ("batch", LAYERS, W) if per_layer else ("batch", W))
    noises = [TensorSpec(f"noise.{n}", "float32", ("batch", 1, side, side)) for n, side in enumerate(SIDES)]
    sessions = {
        "mapping": FakeSession(mapping, [TensorSpec("z", "float32", ("batch", Z))], [w], axes=axes),
        "synthesis": FakeSession(
            synthesis,
            [TensorSpec("w", "float32", ("batch", LAYERS, W)), *reversed(noises)],
            [TensorSpec("image", "float32", ("batch", 3, 4, 4))],
            axes=axes,
        ),
    }
    settings = GanSettings(mean_w=MEAN if mean else (), stored_noise=stored)
    return Gan(sessions, settings, {"mapping": axes, "synthesis": axes}, STORED if stored else ())


def expected(w: np.ndarray, noise: list[list[np.ndarray]]) -> np.ndarray:
    return GanSettings().pixels.to_uint8(np.stack([style_image(*each) for each in zip(w, noise, strict=True)]))


def w_of(seeds: list[int]) -> np.ndarray:
    w = np.tanh(np.stack([row @ TO_W for row in normal(seeds, [Z])]))
    return np.repeat(w[:, None], LAYERS, axis=1)


ZERO = [np.zeros((1, side, side), np.float32) for side in SIDES]


def seeded(seed: int) -> list[np.ndarray]:
    return [normal([seed], [1, side, side], stream=layer + 1)[0] for layer, side in enumerate(SIDES)]


def test_images_are_those_of_the_latents_that_the_seeds_draw():
    made = plain().generate(count=3, seed=7)
    wanted = np.tanh(np.stack([row @ TO_IMAGE for row in normal([7, 8, 9], [Z])])).reshape(-1, 3, 4, 4)
    np.testing.assert_array_equal(made.pixels, GanSettings().pixels.to_uint8(wanted))
    assert made.pixels.dtype == np.uint8
    assert made.pixels.shape == (3, 4, 4, 3)
    assert made.seeds == (7, 8, 9)


@pytest.mark.parametrize("size", [None, 1, 2, 3, 4, 100])
def test_results_do_not_depend_on_the_batch_size(size):
    with plain() as model, styled() as other:
        wanted = np.concatenate([model.generate(seed=seed).pixels for seed in range(3, 14)])
        np.testing.assert_array_equal(model.generate(count=11, seed=3, batch_size=size).pixels, wanted)
        wanted = np.concatenate([other.generate(seed=seed, psi=0.5, mix=(1, 2)).pixels for seed in range(3, 14)])
        np.testing.assert_array_equal(other.generate(count=11, seed=3, psi=0.5, mix=(1, 2), batch_size=size).pixels, wanted)


def test_latents_of_ones_own_are_taken_instead_of_seeds():
    latents = normal([1, 2, 3, 4, 5], [Z])
    made = plain().generate(latents=latents.tolist())
    np.testing.assert_array_equal(made.pixels, plain().generate(count=5, seed=1).pixels)
    assert made.seeds == ()
    made = styled().generate(latents=latents[:2], seed=[8, 9])
    assert made.parameters == {"noise_seeds": [8, 9]}


def test_a_class_is_one_for_all_or_one_for_each():
    model = plain(classes=True)
    one = model.generate(count=2, seed=1, class_ids=4)
    np.testing.assert_array_equal(one.pixels, model.generate(seed=[1, 2], class_ids=[4, 4]).pixels)
    np.testing.assert_array_equal(one.pixels[1:], model.generate(seed=[0, 2], class_ids=[3, 4]).pixels[1:])
    assert (one.pixels != model.generate(count=2, seed=1, class_ids=5).pixels).any()
    assert len(model.generate(class_ids=list(range(10)), seed=1)) == 10
    assert one.parameters == {"class_ids": 4}


def test_styles_are_those_of_the_mapping():
    for per_layer in (False, True):
        made = styled(per_layer=per_layer).generate(count=5, seed=2, noise="zero")
        np.testing.assert_array_equal(made.pixels, expected(w_of([2, 3, 4, 5, 6]), [ZERO] * 5))


def test_psi_pulls_the_first_layers_towards_the_mean():
    model, w, mean = styled(), w_of([2]), np.array(MEAN, np.float32)
    wanted = w.copy()
    wanted[:, :3] = mean + np.float32(0.4) * (w[:, :3] - mean)
    np.testing.assert_array_equal(model.generate(seed=2, psi=0.4, cutoff=3, noise="zero").pixels, expected(wanted, [ZERO]))
    whole = model.generate(seed=2, psi=0.0, noise="zero").pixels
    np.testing.assert_array_equal(whole, expected(np.broadcast_to(mean, (1, LAYERS, W)), [ZERO]))
    np.testing.assert_array_equal(
        model.generate(seed=2, psi=0.2, cutoff=0, noise="zero").pixels, model.generate(seed=2, noise="zero").pixels
    )


def test_mixing_takes_the_later_layers_from_another_image():
    model, a, b = styled(), w_of([2]), w_of([30])
    wanted = expected(np.concatenate([a[:, :1], b[:, 1:]], axis=1), [ZERO])
    np.testing.assert_array_equal(model.generate(seed=2, mix=(30, 1), noise="zero").pixels, wanted)
    np.testing.assert_array_equal(model.generate(seed=2, mix=(normal([30], [Z]), 1), noise="zero").pixels, wanted)


def test_each_image_may_be_mixed_with_its_own():
    model = styled()
    together = model.generate(count=5, seed=2, mix=(normal([30, 31, 32, 33, 34], [Z]), 1), noise="zero").pixels
    apart = [model.generate(seed=2 + i, mix=(30 + i, 1), noise="zero").pixels for i in range(5)]
    np.testing.assert_array_equal(together, np.concatenate(apart))


def test_noise_is_fixed_seeded_or_zero():
    w = w_of([2, 3])
    model = styled(stored=True)
    np.testing.assert_array_equal(model.generate(count=2, seed=2).pixels, expected(w, [STORED, STORED]))
    np.testing.assert_array_equal(model.generate(count=2, seed=2, noise="fixed").pixels, expected(w, [STORED, STORED]))
    np.testing.assert_array_equal(model.generate(count=2, seed=2, noise="seeded").pixels, expected(w, [seeded(2), seeded(3)]))
    np.testing.assert_array_equal(styled().generate(count=2, seed=2).pixels, expected(w, [seeded(2), seeded(3)]))


@pytest.mark.parametrize("shape", [(W,), (2, W), (2, LAYERS, W)])
def test_w_of_ones_own_is_repeated_where_layers_are_missing(shape):
    w = RNG.standard_normal(shape).astype(np.float32)
    made = styled().generate(count=2, w=w, noise="zero")
    whole = w if w.ndim == 3 else np.broadcast_to(w[..., None, :], (2, LAYERS, W))
    np.testing.assert_array_equal(made.pixels, expected(whole, [ZERO] * 2))


def test_interpolation_ends_at_both_seeds_and_goes_through_w():
    model = styled(stored=True)
    path = model.interpolate(3, 8, 5, psi=0.9)
    np.testing.assert_array_equal(path.pixels[0], model.generate(seed=3, psi=0.9).pixels[0])
    np.testing.assert_array_equal(path.pixels[-1], model.generate(seed=8, psi=0.9).pixels[0])
    middle = (w_of([3])[:, 0] + w_of([8])[:, 0]) / 2
    np.testing.assert_array_equal(path.pixels[2], model.generate(w=middle, psi=0.9).pixels[0])


def test_interpolation_without_a_mapping_follows_the_sphere():
    model = plain(classes=True)
    path = model.interpolate(3, 8, 3, class_ids=2)
    np.testing.assert_array_equal(path.pixels[0], model.generate(seed=3, class_ids=2).pixels[0])
    np.testing.assert_array_equal(path.pixels[2], model.generate(seed=8, class_ids=2).pixels[0])


def test_the_sphere_keeps_the_length_and_the_angle():
    a, b = np.array([2.0, 0], np.float32), np.array([0, 2.0], np.float32)
    path = spherical(a, b, 4)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 2, rtol=1e-6)  # float32
    np.testing.assert_allclose(np.degrees(np.arctan2(path[:, 1], path[:, 0])), [0, 30, 60, 90], atol=1e-4)
    np.testing.assert_array_equal(spherical(a, 3 * a, 3), linear(a, 3 * a, 3))
    assert np.isfinite(spherical(a, np.zeros_like(a), 3)).all()


def test_progress_is_told_after_each_batch():
    told = []
    plain().generate(count=10, seed=0, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_a_deadline_gives_what_is_finished():
    whole = plain().generate(count=10, seed=0)
    made = plain().generate(count=10, seed=0, deadline_s=0.0)
    np.testing.assert_array_equal(made.pixels, whole.pixels[:4])
    assert made.seeds == (0, 1, 2, 3)
    assert made.parameters == {"stopped": "deadline"}
    some = plain().generate(count=10, seed=0, deadline_s=0.05, progress=lambda *_: time.sleep(0.03))
    assert len(some) == 8


def test_threads_share_a_pipeline():
    model = styled()
    wanted = {seed: model.generate(seed=seed).pixels for seed in range(8)}
    wrong = []

    def work(seed):
        wrong.extend(seed for _ in range(20) if (model.generate(seed=seed).pixels != wanted[seed]).any())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_replay_gives_each_case_in_order():
    model = styled(stored=True)
    noise = {f"noise.{n}": np.stack([a, a]) for n, a in enumerate(STORED)}
    numbers = {"psi": np.array(0.5), "cutoff": np.array(2), "layer": np.array(3)}
    found = dict(model.replay({"z": normal([1, 2], [Z]), "other": normal([3, 4], [Z]), **noise, **numbers}))
    assert list(found) == ["w", "w.other", "image", "image.truncated", "image.mixed", "image.zero_noise", "image.fixed_noise"]
    pixels = {name: GanSettings().pixels.to_uint8(array) for name, array in found.items() if name.startswith("image")}
    np.testing.assert_array_equal(pixels["image"], pixels["image.fixed_noise"])
    one = {"noise": "fixed", "count": 2, "seed": 1}
    np.testing.assert_array_equal(pixels["image.truncated"], model.generate(**one, psi=0.5, cutoff=2).pixels)
    np.testing.assert_array_equal(pixels["image.mixed"], model.generate(**one, mix=(normal([3, 4], [Z]), 3)).pixels)
    np.testing.assert_array_equal(pixels["image.zero_noise"], model.generate(count=2, seed=1, noise="zero").pixels)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": 10**9}, "at most 65536"),
        ({"latents": np.zeros((2, Z + 1))}, r"latents is \[2, 7\]; this model takes float32\[image, 6\]"),
        ({"latents": np.full((2, Z), np.nan)}, "12 numbers that are not finite"),
        ({"latents": "abc"}, "an array of numbers, not str"),
        ({"latents": np.zeros((0, Z))}, r"\[0, 6\]"),
        ({"latents": np.zeros((2, Z)), "count": 3}, "count is 3, but there are 2 latents"),
        ({"latents": np.zeros((1, Z)), "w": np.zeros(W)}, "not both"),
        ({"class_ids": 1}, "knows no classes"),
        ({"psi": 0.7}, "psi needs the graphs mapping and synthesis"),
        ({"mix": (1, 2)}, "mix needs the graphs"),
        ({"noise": "zero"}, "noise needs the graphs"),
        ({"w": np.zeros(W)}, "w needs the graphs"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "3"}, "batch_size is '3'; give a whole number"),
        ({"count": 2.5}, "count is '2.5'; give a whole number"),
        ({"count": True}, "count is 'True'; give a whole number"),
        ({"deadline_s": float("nan")}, "deadline_s is nan; give a number from 0"),
        ({"latents": np.zeros((2, Z), complex)}, "an array of numbers, not ndarray"),
        ({"latents": np.full((1, Z), 1e300)}, "6 numbers that are not finite"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": -1}, "from 0"),
    ],
)
def test_a_plain_generator_refuses_in_one_line(options, said):
    with plain() as model, pytest.raises(InputError, match=said) as caught:
        model.generate(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"psi": float("nan")}, "finite"),
        ({"psi": "much"}, "psi is 'much'; give a number"),
        ({"psi": 0.5, "cutoff": 1.5}, "cutoff is '1.5'; give a whole number"),
        ({"cutoff": 2}, "goes with psi"),
        ({"psi": 0.5, "cutoff": LAYERS + 1}, "0 to 4"),
        ({"mix": (1, 0)}, "give 1 to 3"),
        ({"mix": (1, LAYERS)}, "there are 4: give 1 to 3"),
        ({"mix": 3}, r"\(seed or latents, layer\)"),
        ({"mix": (np.zeros((3, Z)), 2), "count": 2}, "3 latents for 2 images"),
        ({"mix": (np.zeros(2), 2)}, r"mix is \[2\]"),
        ({"noise": "loud"}, "fixed, seeded or zero"),
        ({"noise": "fixed"}, "stores none"),
        ({"w": np.zeros((1, LAYERS, W + 1))}, r"float32\[5\] or float32\[image, 5\] or float32\[image, 4, 5\]"),
        ({"w": np.zeros(W), "class_ids": 1}, "do not go with w"),
    ],
)
def test_a_styled_generator_refuses_in_one_line(options, said):
    with styled() as model, pytest.raises(InputError, match=said):
        model.generate(**options)


def test_a_bundle_without_a_mean_latent_says_what_to_do():
    with pytest.raises(InputError, match="holds none; export the model again"):
        styled(mean=False).generate(psi=0.5)


@pytest.mark.parametrize("ids", [None, 10, -1, [1, 2, 3], 1.5, "cat", []])
def test_wrong_classes_say_how_many_there_are(ids):
    with pytest.raises(InputError, match="10 classes"):
        plain(classes=True).generate(count=2, class_ids=ids)


def test_pixels_that_are_not_finite_are_not_images():
    session = FakeSession(
        lambda feed, _: {"image": np.full((len(feed["z"]), 1, 2, 2), np.nan, np.float32)},
        [TensorSpec("z", "float32", ("batch", 2))],
        [TensorSpec("image", "float32", ("batch", 1, 2, 2))],
    )
    with pytest.raises(BackendError, match="not finite"):
        Gan({"generator": session}, GanSettings()).generate()


def test_steps_and_images_are_checked():
    with pytest.raises(InputError, match="at least 2"):
        plain().interpolate(1, 2, 1)
    with pytest.raises(InputError, match=r"steps is '2\.5'; give a whole number"):
        plain().interpolate(1, 2, 2.5)
    with pytest.raises(InputError, match=r"from one seed to another, .* no encoder for images"):
        plain().interpolate(np.zeros((4, 4, 3), np.uint8), 2, 3)
    with pytest.raises(InputError, match="takes the graph translator"):
        plain().translate(np.zeros((1, 4, 4, 3), np.uint8))


def test_settings_that_do_not_fit_the_graphs_are_refused():
    with pytest.raises(BundleError, match="10 classes"):
        Gan({"generator": generator()}, GanSettings(classes=10))
    with pytest.raises(BundleError, match="0 classes"):
        Gan({"generator": generator(classes=True)}, GanSettings())
    model = styled()
    with pytest.raises(BundleError, match="mean latent has 2 numbers"):
        Gan({name: graph.session for name, graph in model.graphs.items()}, GanSettings(mean_w=(1.0, 2.0)))
    with pytest.raises(BundleError, match="must give image"):
        Gan({"generator": FakeSession(lambda *_: {}, [TensorSpec("z", "float32", ("batch", 2))], [])}, GanSettings())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mean": 1}, "unknown field"),
        ({"classes": -1}, "classes is -1"),
        ({"multiple": 0}, "multiple is 0"),
        ({"scale": [0, 1]}, "scale is"),
        ({"scale": [1000, 1]}, "1 to 64"),
        ({"receptive_field": -3}, "receptive_field is -3"),
        ({"pixels": {"black": 1.0, "white": 1.0}}, "not the same"),
    ],
)
def test_absurd_settings_of_a_stranger_are_refused(settings, said):
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(settings, GanSettings)


def test_the_mean_latent_survives_the_manifest_to_the_last_bit():
    there = msgspec.json.encode(msgspec.to_builtins(SETTINGS))
    assert np.array_equal(np.float32(msgspec.json.decode(there, type=GanSettings).mean_w), np.float32(MEAN))


def test_a_closed_pipeline_says_so():
    model = plain()
    model.close()
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model.generate()
