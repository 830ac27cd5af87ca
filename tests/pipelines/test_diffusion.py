"""The diffusion pipeline on sessions made of numpy functions: no inference library, every number known."""

import threading

import numpy as np
import pytest

from edgegen.backends.fake import FakeSession
from edgegen.errors import BundleError, InputError
from edgegen.pipelines.batches import BatchedGraph
from edgegen.pipelines.diffusion import Diffusion
from edgegen.pipelines.diffusion_settings import DiffusionSettings, Latent, Text, TextEncoder
from edgegen.pipelines.guidance import Guided
from edgegen.schedules import Schedule, Step
from edgegen.tensors import Axis, TensorSpec
from edgegen.tokenizers import Tokenizer

BATCH = Axis(1, 1, 4)
CLEAN = Schedule(prediction="sample", kind="scaled_linear", spacing="trailing")  # the model gives the image itself


def specs(*texts):
    """Tensors as `edgegen inspect` writes them."""
    made = []
    for text in texts:
        name, dtype, axes = text.replace("]", "").replace("[", " ").split(" ", 2)
        made.append(TensorSpec(name, dtype, tuple(int(axis) if axis.isdigit() else axis for axis in axes.split(", "))))
    return made


def pixel_model(function, *, classes=0, null_class=None, batch=BATCH, schedule=CLEAN, calls=None, **settings):
    """A denoiser of 1 x 4 x 4 images; `function(sample, timestep, class_ids)`."""

    def run(feed, _state):
        if calls is not None:
            calls.append({name: array.copy() for name, array in feed.items()})
        return {"prediction": function(feed["sample"], feed["timestep"], feed.get("class_ids")).astype(np.float32)}

    inputs = specs("sample float32[batch, 1, 4, 4]", "timestep float32[batch]")
    inputs += specs("class_ids int64[batch]") if classes else []
    session = FakeSession(run, inputs, specs("prediction float32[batch, 1, 4, 4]"), axes={"batch": batch})
    made = DiffusionSettings(schedule, steps=4, classes=classes, null_class=null_class, **settings)
    return Diffusion({"denoiser": session}, made, {"denoiser": {"batch": batch}})


def grey(sample, timestep, class_ids):
    level = 0.5 if class_ids is None else class_ids[:, None, None, None] / 10
    return np.zeros_like(sample) + level


def shaky(sample, timestep, class_ids):
    """Depends on everything, so that any mix-up of rows shows."""
    level = 0 if class_ids is None else class_ids[:, None, None, None]
    return np.tanh(sample * 0.7 + 0.1 * level) + timestep[:, None, None, None] * 1e-4


@pytest.mark.parametrize("stepper", ["ddpm", "ddim", "euler", "heun", "dpmpp_2m"])
def test_a_model_that_knows_the_image_gives_it_with_every_stepper(stepper):
    with pixel_model(grey) as model:
        images = model.generate(count=2, seed=3, stepper=stepper, steps=10)
    assert images.pixels.shape == (2, 4, 4, 1)
    assert images.seeds == (3, 4)
    # 0.5 of -1 to 1 is grey 191; ddpm and the last sigma leave at most one level.
    assert np.abs(images.pixels.astype(int) - 191).max() <= 1
    assert images.parameters == {"steps": 10, "stepper": stepper, "guidance": 1.0}


@pytest.mark.parametrize("stepper", ["ddpm", "dpmpp_2m", "euler_ancestral"])
def test_an_image_does_not_depend_on_the_others_in_its_batch(stepper):
    schedule = Schedule(kind="scaled_linear", prediction="velocity")
    with pixel_model(shaky, schedule=schedule) as model:
        together = model.generate(count=7, seed=10, stepper=stepper).pixels
        for place in (0, 3, 6):
            np.testing.assert_array_equal(model.generate(seed=10 + place, stepper=stepper).pixels[0], together[place])


@pytest.mark.parametrize("batch", [Axis(1, 1, 1), Axis(1, 2, 3), Axis(1, 1, 8), Axis(4, 4, 4), Axis(3, 3, 5)])
def test_guidance_is_the_same_in_one_run_or_in_several(batch):
    schedule = Schedule(prediction="velocity")
    options = {"count": 3, "seed": 5, "class_ids": [1, 2, 3], "guidance": 3.0, "guidance_rescale": 0.5}
    with pixel_model(shaky, classes=10, null_class=10, batch=Axis(1, 1, 64), schedule=schedule) as model:
        wanted = model.generate(**options).pixels
    with pixel_model(shaky, classes=10, null_class=10, batch=batch, schedule=schedule) as model:
        np.testing.assert_array_equal(model.generate(**options).pixels, wanted)


def test_guidance_goes_from_no_class_through_the_class():
    # Without a class the level is 0.2, with class 1 it is 0.1: a guidance of 3 is 0.2 + 3 (0.1 - 0.2) = -0.1.
    with pixel_model(grey, classes=2, null_class=2) as model:
        pixels = model.generate(class_ids=1, guidance=3.0, stepper="ddim").pixels
        plain = model.generate(class_ids=1, stepper="ddim").pixels
        unconditional = model.generate(stepper="ddim").pixels
    assert np.abs(pixels.astype(int) - round((-0.1 + 1) * 127.5)).max() <= 1
    assert np.abs(plain.astype(int) - round((0.1 + 1) * 127.5)).max() <= 1
    assert np.abs(unconditional.astype(int) - round((0.2 + 1) * 127.5)).max() <= 1


def test_the_time_and_the_scale_of_each_step_reach_the_model():
    calls = []
    with pixel_model(shaky, calls=calls, schedule=Schedule(kind="scaled_linear", spacing="trailing")) as model:
        model.generate(stepper="euler", steps=4, latents=np.ones((1, 1, 4, 4), np.float32))
    assert [call["timestep"].tolist() for call in calls] == [[999.0], [749.0], [499.0], [249.0]]
    # The first sample is sigma, the model sees sigma / sqrt(sigma^2 + 1), which is just below 1.
    assert 0.98 < calls[0]["sample"].max() < 1


def test_progress_is_told_and_closing_the_stream_ends_the_work():
    calls, told = [], []
    with pixel_model(grey, calls=calls) as model:
        model.generate(steps=3, progress=lambda done, steps: told.append((done, steps)))
        assert told == [(1, 3), (2, 3), (3, 3)]
        calls.clear()
        stream = model.stream(steps=9)
        first = next(stream)
        assert (first.step, first.steps, first.images) == (1, 9, None)
        stream.close()
        assert len(calls) == 1
        last = list(model.stream(steps=2))[-1]
        assert last.images is not None


def test_a_deadline_gives_what_the_model_takes_for_the_image_so_far():
    calls = []
    with pixel_model(grey, calls=calls) as model:
        images = model.generate(steps=50, deadline_s=0.0)
    assert len(calls) == 1
    assert images.parameters["steps_done"] == 1
    assert np.abs(images.pixels.astype(int) - 191).max() <= 1


def test_strength_leaves_out_the_noisy_steps():
    calls = []
    image = np.full((4, 4, 1), 100, np.uint8)
    with pixel_model(grey, calls=calls) as model:
        model.generate(init_image=image, strength=0.5, steps=10)
        assert len(calls) == 5
        # A model that leaves everything as it is: with little strength the image is still there.
    with pixel_model(lambda sample, *_: sample) as model:
        kept = model.generate(init_image=image, strength=0.1, steps=20).pixels
    assert np.abs(kept.astype(int) - 100).mean() < 30


def test_outside_the_mask_the_image_is_kept_exactly():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 1), np.uint8)
    mask = np.zeros((4, 4), np.uint8)
    mask[1:3, 1:3] = 255
    with pixel_model(grey) as model:
        made = model.generate(init_image=image, mask=mask, steps=5).pixels[0]
    np.testing.assert_array_equal(made[mask == 0], image[mask == 0])
    assert np.abs(made[mask > 0].astype(int) - 191).max() <= 1


def latent_model(*, inpainting=False, calls=None, encoder=True):
    """Latents of 2 x 4 x 4 for images of 3 x 8 x 8; the VAE's own latents are twice as large and shifted by one."""
    channels = 5 if inpainting else 2

    def denoise(feed, _state):
        if calls is not None:
            calls.append({name: array.copy() for name, array in feed.items()})
        return {"prediction": np.full_like(feed["sample"][:, :2], 0.25)}

    def decode(feed, _state):
        image = np.repeat(np.repeat(feed["latent"][:, :1], 2, axis=2), 2, axis=3)
        return {"image": np.repeat(image, 3, axis=1)}

    def encode(feed, _state):
        small = feed["image"][:, :2, ::2, ::2]
        return {"mean": np.ascontiguousarray(small), "log_variance": np.full_like(small, -30.0)}

    sides = {"batch": BATCH, "height": Axis(2, 4, 8), "width": Axis(2, 4, 8)}
    sessions = {
        "denoiser": FakeSession(
            denoise,
            specs(f"sample float32[batch, {channels}, height, width]", "timestep float32[batch]"),
            specs("prediction float32[batch, 2, height, width]"),
            axes=sides,
        ),
        "vae_decoder": FakeSession(
            decode,
            specs("latent float32[batch, 2, height, width]"),
            specs("image float32[batch, 3, rows, columns]"),
            axes=sides,
        ),
    }
    if encoder:
        sessions["vae_encoder"] = FakeSession(
            encode,
            specs("image float32[batch, 3, rows, columns]"),
            specs("mean float32[batch, 2, height, width]", "log_variance float32[batch, 2, height, width]"),
        )
    settings = DiffusionSettings(CLEAN, steps=3, height=8, width=8, latent=Latent(2, 2, scale=0.5, shift=1.0))
    return Diffusion(sessions, settings, {"denoiser": sides, "vae_decoder": sides})


def test_latents_are_scaled_and_shifted_on_their_way_to_the_decoder():
    with latent_model() as model:
        images = model.generate(count=5, seed=0)
        wide = model.generate(height=4, width=16)
    assert images.pixels.shape == (5, 8, 8, 3)
    assert wide.pixels.shape == (1, 4, 16, 3)
    # 0.25 / 0.5 + 1 = 1.5: whiter than white.
    assert (images.pixels == 255).all()


def test_an_image_is_encoded_and_a_mask_shrinks_with_it():
    calls = []
    image = np.zeros((8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[0, 0] = 255
    with latent_model(inpainting=True, calls=calls) as model:
        made = model.generate(init_image=image, mask=mask).pixels[0]
    beside = calls[0]["sample"][0, 2:]  # mask, then the image with the mask's pixels grey
    np.testing.assert_array_equal(beside[0], np.pad([[1.0]], ((0, 3), (0, 3))))
    assert beside[1, 3, 3] == pytest.approx((-1 - 1) * 0.5)  # black is -1
    assert beside[1, 0, 0] == pytest.approx((128 / 127.5 - 1 - 1) * 0.5)
    assert (made[1:] == 0).all()
    assert (made[0, 0] == 255).all()
    with latent_model(inpainting=True) as model, pytest.raises(InputError, match="made for inpainting"):
        model.generate()
    with latent_model(encoder=False) as model, pytest.raises(InputError, match="needs the graph vae_encoder"):
        model.generate(init_image=image)


def test_how_large_a_run_of_the_vae_is_changes_no_image():
    image = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    with latent_model() as model:
        options = {"init_image": image, "strength": 0.5, "count": 3, "seed": 2}
        whole = model.generate(**options).pixels
        for sizes in ({"tile": 4}, {"tile": 8, "overlap": 3}, {"batch_size": 1}, {"tile": 4, "batch_size": 2}):
            np.testing.assert_array_equal(model.generate(**options, **sizes).pixels, whole)


def test_an_image_larger_than_the_vae_was_exported_for_goes_in_tiles():
    with latent_model() as model:
        small = Axis(2, 2, 3)
        sessions = {name: graph.session for name, graph in model.graphs.items()}
        axes = {"denoiser": model.graphs["denoiser"].axes, "vae_decoder": {"height": small, "width": small}}
        rows = []
        run = sessions["vae_decoder"].run
        sessions["vae_decoder"].run = lambda feed: (rows.append(feed["latent"].shape[2:]), run(feed))[1]
        assert Diffusion(sessions, model.settings, axes).generate(height=8, width=16).pixels.shape == (1, 8, 16, 3)
    assert len(rows) > 1
    assert max(max(sides) for sides in rows) <= 3


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"tile": 2}, "tile is 2; it must be 4 to 16 pixels"),
        ({"tile": 17}, None),  # 8 steps of the latent, of two pixels
        ({"tile": 18}, "tile is 18"),
        ({"tile": -4}, "tile is -4"),
        ({"tile": 8, "overlap": 5}, "for tiles of 8 pixels it is 0 to 4"),
        ({"overlap": -2}, "overlap is -2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
    ],
)
def test_a_run_that_cannot_be_so_large_is_refused_before_the_first_step(sizes, said):
    calls = []
    with latent_model(calls=calls) as model:
        if said is None:
            model.generate(**sizes)
            return
        with pytest.raises(InputError, match=said):
            model.generate(**sizes)
    assert calls == []


def test_sizes_are_told_in_pixels_and_as_those_of_the_image_that_was_given():
    with latent_model() as model:
        with pytest.raises(InputError, match="height is 5; it must be a multiple of 2"):
            model.generate(height=5)
        with pytest.raises(InputError, match="width is 18 pixels; this model was exported for 4 to 16"):
            model.generate(width=18)
        with pytest.raises(InputError, match="init_image's height is 32 pixels; this model was exported for 4 to 16"):
            model.generate(init_image=np.zeros((32, 8, 3), np.uint8))
        sides = {"batch": BATCH, "height": Axis(2, 4, 8, 2), "width": Axis(2, 4, 8, 2)}
        sessions = {name: graph.session for name, graph in model.graphs.items()}
        by_fours = Diffusion(sessions, model.settings, dict.fromkeys(sessions, sides))
        with pytest.raises(InputError, match=r"^height is 10 pixels; this model was exported for 4 to 16, in multiples of 4$"):
            by_fours.generate(height=10)
        with pytest.raises(InputError, match=r"^init_image's width is 6 pixels; .* in multiples of 4$"):
            by_fours.generate(init_image=np.zeros((8, 6, 3), np.uint8))


def test_a_model_of_pixels_has_nothing_to_cut_but_its_batches():
    calls = []
    with pixel_model(grey, calls=calls, classes=2, null_class=2) as model:
        model.generate(count=3, class_ids=1, guidance=2.0, batch_size=1, steps=1)
        assert [len(call["sample"]) for call in calls] == [2, 2, 2]  # with the class and without
        calls.clear()
        model.generate(count=3, batch_size=2, steps=1)
        assert [len(call["sample"]) for call in calls] == [2, 1]
        with pytest.raises(InputError, match="works on pixels"):
            model.generate(tile=2)
        with pytest.raises(InputError, match="batch_size is 0"):
            model.generate(batch_size=0)


@pytest.mark.parametrize(("scale", "count", "is_fed"), [(1.0, 4, True), (0.5, 4, False), (1.0, 7, True), (1.0, 1, False)])
def test_a_sample_that_needs_no_change_is_fed_as_it_is(scale, count, is_fed):
    fed = []

    def run(feed, _state):
        fed.append(feed["sample"])
        return {"prediction": feed["sample"] * 2}

    axes = {"batch": Axis(2, 2, 4)}
    inputs = specs("sample float32[batch, 1, 2, 2]", "timestep float32[batch]")
    session = FakeSession(run, inputs, specs("prediction float32[batch, 1, 2, 2]"), axes=axes)
    sample = np.random.default_rng(0).standard_normal((count, 1, 2, 2)).astype(np.float32)
    guided = Guided(BatchedGraph(session, axes), sample.shape, {})
    made = guided.predict(sample, Step(3.0, scale, 1.0, 0.0, {}, {}))
    np.testing.assert_array_equal(made, sample * np.float32(2 * scale))
    assert np.shares_memory(fed[0], sample) is is_fed


TOKENIZER = b"""{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
  "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": "<end>", "type_id": 0}}], "pair": [], "special_tokens":
    {"<end>": {"id": "<end>", "ids": [1], "tokens": ["<end>"]}}},
  "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "<end>": 1, "red": 2, "green": 3, "blue": 4}, "unk_token": "<pad>"}}"""


def text_model(*, calls, zero_negative=False, guidance=1.0):
    """Two encoders: hidden states side by side and rows, the second one pooled."""

    def encode(width):
        def run(feed, _state):
            ids = feed["token_ids"].astype(np.float32)
            return {"hidden": np.repeat(ids[..., None], width, axis=2), "pooled": ids[:, :2].copy()}

        inputs = specs("token_ids int64[batch, 4]")
        return FakeSession(run, inputs, specs(f"hidden float32[batch, 4, {width}]", "pooled float32[batch, 2]"))

    def denoise(feed, _state):
        calls.append({name: array.copy() for name, array in feed.items()})
        return {"prediction": np.zeros_like(feed["sample"])}

    inputs = specs(
        "sample float32[batch, 1, 4, 4]",
        "timestep float32[batch]",
        "encoder_hidden_states float32[batch, tokens, 5]",
        "pooled float32[batch, 2]",
        "time_ids float32[batch, 6]",
    )
    denoiser = FakeSession(denoise, inputs, specs("prediction float32[batch, 1, 4, 4]"))
    text = Text(
        (TextEncoder("one", "t", 4, 0, "side"), TextEncoder("two", "t", 4, 0, "rows", pooled=True)), 5, zero_rows=1,
        zero_negative=zero_negative,
    )  # fmt: skip
    settings = DiffusionSettings(CLEAN, steps=1, guidance=guidance, text=text)
    tokenizer = Tokenizer.from_bytes(TOKENIZER)
    sessions = {"denoiser": denoiser, "one": encode(3), "two": encode(5)}
    return Diffusion(sessions, settings, None, {"one": tokenizer, "two": tokenizer})


def test_prompts_are_padded_encoded_and_joined():
    calls = []
    with text_model(calls=calls) as model:
        model.generate(prompt=["red green", "blue", "red green"])
    told = calls[0]
    assert told["encoder_hidden_states"].shape == (3, 9, 5)
    np.testing.assert_array_equal(told["encoder_hidden_states"][0, :, 0], [2, 3, 1, 0, 2, 3, 1, 0, 0])
    np.testing.assert_array_equal(told["encoder_hidden_states"][1, :, 4], [0, 0, 0, 0, 4, 1, 0, 0, 0])  # filled up to 5
    np.testing.assert_array_equal(told["pooled"], [[2, 3], [4, 1], [2, 3]])
    np.testing.assert_array_equal(told["time_ids"][0], [4, 4, 0, 0, 4, 4])


def test_a_negative_prompt_stands_first_in_the_batch_and_zeros_where_the_model_wants_them():
    calls = []
    with text_model(calls=calls, guidance=5.0) as model:
        model.generate(prompt="red", negative_prompt="blue")
        model.generate(prompt="red")
    assert calls[0]["pooled"].tolist() == [[4, 1], [2, 1]]
    assert calls[1]["pooled"].tolist() == [[1, 0], [2, 1]]
    with text_model(calls=calls, guidance=5.0, zero_negative=True) as model:
        model.generate(prompt="red")
    assert calls[2]["pooled"].tolist() == [[0, 0], [2, 1]]


def test_a_prompt_that_is_too_long_is_cut_and_says_so(caplog):
    calls = []
    with text_model(calls=calls) as model:
        model.generate(prompt="red green blue red green blue")
    assert calls[0]["encoder_hidden_states"][0, :4, 0].tolist() == [2, 3, 4, 1]
    assert "reads the first 4" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "at least 1"),
        ({"prompt": "x"}, "takes no text"),
        ({"class_ids": 3}, "knows no classes"),
        ({"guidance": 2.0}, "nothing to be guided by"),
        ({"guidance": float("nan")}, "finite"),
        ({"steps": 0}, "steps is 0"),
        ({"stepper": "dimd"}, "did you mean 'ddim'"),
        ({"height": 5}, "exported for 4"),
        ({"height": 0}, "height is 0; it must be 1 or more"),
        ({"height": 4.5}, "height is '4.5'; give a whole number"),
        ({"steps": 2.5}, "steps is '2.5'; give a whole number"),
        ({"guidance": "strong"}, "guidance is 'strong'; give a number"),
        ({"deadline_s": -1}, "deadline_s is -1; give a number from 0"),
        ({"stepper": 3}, "no stepper named 3; known: ddim"),
        ({"strength": 0.5}, "go with init_image"),
        ({"mask": np.zeros((4, 4), np.uint8)}, "go with init_image"),
        ({"init_image": np.zeros((4, 4, 1), np.float32)}, "uint8"),
        ({"init_image": np.zeros((5, 4, 1), np.uint8)}, "exported for 4"),
        ({"init_image": np.zeros((4, 4, 1), np.uint8), "height": 8}, "scale it first"),
        ({"init_image": np.zeros((4, 4, 1), np.uint8), "strength": 0.0}, "above 0"),
        ({"init_image": np.zeros((4, 4, 1), np.uint8), "mask": np.zeros((3, 4), np.uint8)}, "the mask is"),
        ({"init_image": np.zeros((4, 4, 1), np.uint8), "mask": np.zeros((4, 4), np.uint8)}, "nothing to make anew"),
        ({"latents": np.zeros((1, 1, 4, 5), np.float32)}, "latents are"),
        ({"latents": np.full((1, 1, 4, 4), np.nan, np.float32)}, "latents are"),
        ({"eta": 2.0}, "eta 0 to 1"),
        ({"guidance_rescale": 2.0}, "0 to 1"),
    ],
)
def test_an_option_that_does_not_fit_says_what_does(options, message):
    with pixel_model(grey) as model, pytest.raises(InputError, match=message):
        model.generate(**options)


def test_a_prompt_must_be_there_and_be_text():
    with text_model(calls=[]) as model:
        with pytest.raises(InputError, match="prompt is missing"):
            model.generate()
        with pytest.raises(InputError, match="2 texts for 3 images"):
            model.generate(prompt=["red", "blue"], count=3)
        with pytest.raises(InputError, match="prompt is text, or a list of texts, not 3"):
            model.generate(prompt=3)
        with pytest.raises(InputError, match="a prompt is text"):
            model.generate(prompt=[3])
        with pytest.raises(InputError, match="needs a guidance"):
            model.generate(prompt="red", negative_prompt="blue")
        with pytest.raises(InputError, match="no option named 'colour'"):
            model.stream(colour="red")


def test_graphs_that_do_not_go_with_the_settings_are_refused():
    denoiser = FakeSession(
        lambda _feed, _state: {},
        specs("sample float32[batch, 1, 4, 4]", "timestep float32[batch]"),
        specs("prediction float32[1]"),
    )
    with pytest.raises(BundleError, match="needs the graphs \\['vae_decoder'\\]"):
        Diffusion({"denoiser": denoiser}, DiffusionSettings(latent=Latent(4, 8)))
    with pytest.raises(BundleError, match="conditions are not those"):
        Diffusion({"denoiser": denoiser}, DiffusionSettings(classes=3))


def test_several_threads_may_share_a_pipeline():
    with pixel_model(shaky, schedule=Schedule(prediction="velocity")) as model:
        wanted = [model.generate(count=3, seed=seed, stepper="ddpm").pixels for seed in range(4)]
        found = [None] * 4

        def work(seed):
            found[seed] = model.generate(count=3, seed=seed, stepper="ddpm").pixels

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_replay_with_the_same_noise_takes_the_way_of_generation():
    schedule = Schedule(prediction="velocity", kind="scaled_linear")
    with pixel_model(shaky, schedule=schedule, stepper="ddpm", classes=3, null_class=3) as model:
        from edgegen.pipelines.images import normal

        inputs = {"latents": normal([7], (1, 4, 4)), "steps": np.array(4), "guidance": np.array(2.0, np.float32)}
        inputs |= {"class_ids": np.array([1])} | {f"noise.{i}": normal([7], (1, 4, 4), stream=i + 1) for i in range(3)}
        replayed = dict(model.replay(inputs))
        made = model.generate(seed=7, class_ids=1, guidance=2.0)
    assert list(replayed) == ["step.0", "step.1", "step.2", "step.3", "image"]
    np.testing.assert_array_equal(model.settings.pixels.to_uint8(replayed["image"]), made.pixels)
