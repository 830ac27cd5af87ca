"""Images on the command line, with a pipeline made of numpy in a small real bundle."""

import json
import sys
import types

import numpy as np
import pytest
from bundles import make_bundle
from command_line import run

pytest.importorskip("PIL")
from PIL import Image

from edgegen.errors import InputError
from edgegen.media import read_image, write_png
from edgegen.pipelines import FAMILIES
from edgegen.pipelines.images import Images, seeds_for

CALLS = []


class FakePipeline:
    """Remembers how it was called; image i is all of grey level i."""

    def __init__(self, bundle):
        self.bundle = bundle

    @classmethod
    def from_bundle(cls, bundle, open_session):
        return cls(bundle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bundle.close()


def images(count, seeds=(), **parameters):
    return Images(
        np.zeros((count, 4, 6, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None], seeds, parameters
    )


class FakeGan(FakePipeline):
    def generate(self, *, count=1, seed=None, class_ids=None, psi=1.0, mix=None, cutoff=None, noise=None, batch_size=None):
        if cutoff is not None:
            CALLS.append((cutoff, noise, batch_size))
        CALLS.append(("generate", count, seed, class_ids, psi, mix))
        return images(count, seeds_for(count, seed), psi=psi)

    def translate(self, pixels, *, tile=None, overlap=None):
        CALLS.append(("translate", pixels.shape) if tile is None else ("translate", tile, overlap))
        return images(1)

    def interpolate(self, first, last, count, *, psi=1.0):
        CALLS.append(("interpolate", first, last, count, psi))
        return images(count)


class FakeDiffusion(FakePipeline):
    def generate(self, *, count=1, seed=None, steps=20, prompt=None, init_image=None, mask=None, progress=None, **_unused):
        CALLS.append(("generate", steps, prompt, None if init_image is None else init_image.shape, progress))
        if steps == 4:
            raise InputError("the pipeline\nsays no")
        return images(1)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    CALLS.clear()
    monkeypatch.setitem(sys.modules, "fake_families", types.SimpleNamespace(Gan=FakeGan, Diffusion=FakeDiffusion))
    monkeypatch.setitem(FAMILIES, "fake_gan", "fake_families:Gan")
    monkeypatch.setitem(FAMILIES, "fake_diffusion", "fake_families:Diffusion")
    make_bundle(tmp_path / "d.bundle", family="fake_diffusion")
    return make_bundle(tmp_path / "g.bundle", family="fake_gan")


def refused(*arguments):
    result = run("generate", *map(str, arguments))
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("edgegen: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_several_images_become_a_sheet_with_what_made_them(bundle, tmp_path):
    sheet = tmp_path / "sheet.png"
    result = run("generate", str(bundle), "--count", "4", "--seed", "3", "--psi", "0", "-o", str(sheet))
    assert (result.exit_code, result.output) == (0, "")
    assert CALLS == [("generate", 4, 3, None, 0.0, None)]
    with Image.open(sheet) as image:
        assert image.size == (2 * 6 + 2, 2 * 4 + 2)
        text = image.text
    assert text["seed"] == "3,4,5,6"
    assert text["model"] == "tiny"
    assert len(text["model_sha256"]) == 64
    assert json.loads(text["parameters"]) == {"method": "generate", "count": 4, "psi": 0.0}
    assert text["Software"].startswith("edgegen ")


def test_one_image_is_written_as_it_is(bundle, tmp_path):
    assert run("generate", str(bundle), "-o", str(tmp_path / "one.png"), "--no-metadata").exit_code == 0
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), images(1).pixels[0])
    with Image.open(tmp_path / "one.png") as image:
        assert image.text == {}


def test_a_folder_gets_one_file_for_each_image(bundle, tmp_path):
    result = run("generate", str(bundle), "--count", "2", "--seed", "9", "-o", str(tmp_path / "out"), "--json")
    told = json.loads(result.stdout)
    assert told["files"] == [str(tmp_path / "out" / name) for name in ("0000-seed9.png", "0001-seed10.png")]
    assert (told["images"], told["height"], told["width"], told["channels"], told["seeds"]) == (2, 4, 6, 3, [9, 10])
    with Image.open(told["files"][1]) as image:
        assert image.text["seed"] == "10"
        assert image.getpixel((0, 0)) == (1, 1, 1)


def test_options_reach_the_pipeline_in_its_own_words(bundle, tmp_path):
    run("generate", str(bundle), "--class", "1,0", "--count", "2", "--mix", "7:4", "-o", str(tmp_path / "a.png"))
    run("generate", str(bundle), "--class", "5", "-o", str(tmp_path / "a.png"))
    assert CALLS == [("generate", 2, None, [1, 0], 1.0, (7, 4)), ("generate", 1, None, 5, 1.0, None)]


def test_options_of_layers_tiles_and_batches_reach_the_pipeline(bundle, tmp_path):
    place = str(tmp_path / "a.png")
    run("generate", str(bundle), "--psi", "0.5", "--cutoff", "2", "--noise", "zero", "--batch-size", "4", "-o", place)
    assert CALLS[0] == (2, "zero", 4)
    write_png(tmp_path / "in.png", np.zeros((2, 5, 3), np.uint8))
    run("generate", str(bundle), "--input", str(tmp_path / "in.png"), "--tile", "64", "--overlap", "8", "-o", place)
    assert CALLS[-1] == ("translate", 64, 8)
    assert "the family fake_gan has no --tile, --overlap;" in refused(bundle, "--tile", 8, "--overlap", 2, "-o", place)
    assert run("generate", str(bundle), "--noise", "loud", "-o", place).exit_code == 2


def test_interpolation_takes_seeds_or_files(bundle, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert run("generate", str(bundle), "--interpolate", "3:7:8", "--psi", "0.5", "-o", str(tmp_path / "b.png")).exit_code == 0
    assert CALLS == [("interpolate", 3, 7, 8, 0.5)]
    run("generate", str(bundle), "--interpolate", f"{tmp_path}/a.png:7:2", "-o", str(tmp_path / "b.png"))
    assert CALLS[1][1].shape == (2, 2, 3)
    assert "--interpolate" in run("generate", str(bundle), "--interpolate", "3:7", "-o", "x.png").stderr


def test_an_input_image_is_read_before_the_model_is_loaded(bundle, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((2, 5, 3), np.uint8))
    assert run("generate", str(bundle), "--input", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")).exit_code == 0
    assert CALLS == [("translate", (2, 5, 3))]
    (tmp_path / "bad.png").write_text("no")
    assert "cannot read" in refused(bundle, "--input", tmp_path / "bad.png", "-o", tmp_path / "b.png")


def test_an_option_that_the_family_lacks_is_one_line_that_says_what_it_takes(bundle, tmp_path):
    said = refused(bundle, "--steps", 5, "--top-k", 3, "-o", tmp_path / "a.png")
    assert "the family fake_gan has no --top-k, --steps;" in said
    assert "it takes --seed, --count, --class, --psi, --cutoff, --noise, --mix, --input, --batch-size, --interpolate" in said
    assert "translate of the family fake_gan has no --psi" in refused(
        bundle, "--input", "a.png", "--psi", 1, "-o", tmp_path / "a.png"
    )
    diffusion = bundle.with_name("d.bundle")
    assert "has no --input" in refused(diffusion, "--input", "a.png", "-o", tmp_path / "a.png")
    assert "has no --interpolate" in refused(diffusion, "--interpolate", "1:2:3", "-o", tmp_path / "a.png")
    assert CALLS == []


def test_a_prompt_and_files_reach_a_diffusion_model_and_no_bar_is_drawn_off_a_terminal(bundle, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((2, 5, 3), np.uint8))
    diffusion = bundle.with_name("d.bundle")
    options = ["--prompt", "-", "--steps", "4", "--init-image", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    result = run("generate", str(diffusion), *options, stdin="a fox")
    assert CALLS == [("generate", 4, "a fox", (2, 5, 3), None)]
    assert (result.exit_code, result.stderr) == (1, "edgegen: the pipeline says no\n")


def test_metadata_has_the_prompt_that_was_read_and_the_names_of_files(bundle, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((2, 5, 3), np.uint8))
    write_png(tmp_path / "m.png", np.zeros((2, 5, 1), np.uint8))
    options = ["--prompt", "-", "--init-image", str(tmp_path / "a.png"), "--mask", str(tmp_path / "m.png")]
    run("generate", str(bundle.with_name("d.bundle")), *options, "-o", str(tmp_path / "b.png"), stdin="a fox")
    with Image.open(tmp_path / "b.png") as image:
        told = json.loads(image.text["parameters"])
    assert told == {"method": "generate", "prompt": "a fox", "init_image": "a.png", "mask": "m.png"}


def test_images_need_a_place_that_is_a_png_or_a_folder(bundle, tmp_path):
    assert "-o sheet.png" in refused(bundle)
    assert "written as PNG; name it a.png" in refused(bundle, "-o", tmp_path / "a.jpg")
    assert "does not exist" in refused(bundle, "-o", tmp_path / "no" / "a.png")
    (tmp_path / "x.png").mkdir()
    assert "is a folder" in refused(bundle, "-o", tmp_path / "x.png")
    assert "count is 0" in refused(bundle, "--count", 0, "-o", tmp_path / "a.png")
    assert "give one of them" in refused(bundle, "--input", "a.png", "--interpolate", "1:2:3", "-o", tmp_path / "a.png")


def test_a_language_model_has_no_image_options(tiny_bundle, tmp_path):
    assert "is a language model, which makes text; it has no --count, --psi" in refused(
        tiny_bundle, "--prompt", "a", "--psi", 1, "--count", 2
    )


@pytest.mark.parametrize("arguments", [["--class", "a"], ["--mix", "3"], ["--interpolate", "1:2:x"]])
def test_malformed_values_are_wrong_usage(arguments):
    assert run("generate", "b", *arguments).exit_code == 2


def test_help_lists_text_and_image_options_under_their_own_headings():
    text = run("generate", "--help").stdout
    general, language, image = text.index("\nOptions:"), text.index("\nLanguage models:"), text.index("\nImage models")
    assert general < text.index("--deadline") < language < text.index("--top-k") < image < text.index("--psi")


@pytest.mark.parametrize("option", ["--output", "--input"])
def test_an_empty_path_is_refused(bundle, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    assert f"{option} is empty; give a path" in refused(bundle, "-o", "x.png", option, "")
    assert not CALLS


@pytest.mark.parametrize(
    ("options", "said", "named"),
    [
        (["--init-image", "a.png"], "the image is 6 x 4", "a.png: the image"),
        (["--init-image", "a.png"], "init_image has a height of 4", "a.png: init_image"),
        (["--init-image", "a.png", "--mask", "m.png"], "the mask is black everywhere", "m.png: the mask"),
        (["--init-image", "a.png"], "steps is 0", "edgegen: steps"),
    ],
)
def test_an_error_about_an_image_names_its_file(bundle, tmp_path, monkeypatch, options, said, named):
    def refuse(*_arguments, init_image=None, mask=None):
        raise InputError(said)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FakeDiffusion, "generate", refuse)
    for name in ("a.png", "m.png"):
        write_png(tmp_path / name, images(1).pixels[0])
    assert named in refused(bundle.with_name("d.bundle"), *options, "-o", "b.png")


def test_an_error_about_an_image_to_change_names_its_file(bundle, tmp_path, monkeypatch):
    def refuse(_self, _pixels):
        raise InputError("the image has transparency")

    monkeypatch.setattr(FakeGan, "translate", refuse)
    write_png(tmp_path / "a.png", images(1).pixels[0])
    said = refused(bundle, "--input", tmp_path / "a.png", "-o", tmp_path / "b.png")
    assert f"{tmp_path / 'a.png'}: the image has transparency" in said
