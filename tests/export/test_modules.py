"""Modules of one's own: how they are named, and what they give."""

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from command_line import run
from own_modules import captured, declared, package_in, source_of
from torch import nn

import edgegen
from edgegen.bundle import Bundle
from edgegen.errors import CaptureError, EdgegenError, ExportError, InputError
from edgegen.export import export
from edgegen.export.parts import Part, parse_axis, parse_named, parse_spec, specs_for
from edgegen.tensors import Axis

OPTIONS = {
    "family": "gan",
    "inputs": ["z float32[batch, 16]"],
    "outputs": ["image float32[batch, 3, 4, 4]"],
    "axes": ["batch=1..4..16"],
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with package_in(tmp_path, monkeypatch) as folder:
        yield folder


def test_a_function_of_the_current_directory_becomes_a_bundle(package: Path):
    export("my_package.my_module:make_generator", package / "g.bundle", **OPTIONS, settings=['pixels={"black": 0, "white": 1}'])
    with Bundle.open(package / "g.bundle") as bundle:
        manifest = bundle.manifest
        assert (manifest.name, manifest.settings["pixels"]) == ("make_generator", {"black": 0, "white": 1})
        assert manifest.graphs["generator"].axes["batch"] == Axis(1, 4, 16)
    with edgegen.load(package / "g.bundle") as gan:
        assert gan.generate(count=2, seed=0).pixels.shape == (2, 4, 4, 3)


def test_the_command_line_names_inputs_outputs_axes_and_settings(package: Path):
    arguments = ["export", "my_package.my_module:make_generator", "-o", "g.bundle", "--family", "gan"]
    named = ["--input", OPTIONS["inputs"][0], "--returns", OPTIONS["outputs"][0], "--axis", "batch=2"]
    result = run(*arguments, *named, "--setting", 'pixels={"black": 0, "white": 1}')
    assert result.exit_code == 0, result.output
    with Bundle.open("g.bundle") as bundle:
        assert bundle.manifest.graphs["generator"].axes["batch"] == Axis(2, 2, 2)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("my_package.my_module:nothing", {}, "has no nothing; it has Generator"),
        ("my_package.nowhere:make", {}, "no module named my_package.nowhere"),
        ("my_package.missing:make", {}, "no module named no_such_library"),
        ("my_package.failing:make", {}, "importing my_package.failing failed: ZeroDivisionError"),
        ("my_package.my_module:broken", {}, "failed: RuntimeError: no such dataset"),
        ("my_package.my_module:needs", {}, "called without arguments"),
        ("my_package.my_module:number", {}, "returned a int; it must return a torch.nn.Module"),
        ("my_package.my_module:CONSTANT", {}, "is a int; give a function"),
        ("my_package.my_module:leaves", {}, "failed: SystemExit: 3; it is called without arguments"),
        ("my_package.my_module:lazy", {}, "0.weight has no size yet; give lazy layers their sizes"),
        ("my_package.my_module:empty", {}, "net.0.weight is on the device meta and holds no numbers"),
        ("my_package.my_module:scripted", {}, "returned a TorchScript module; return the Python module"),
        ("my_package.my_module:make_generator", {"family": None}, "give --family, one of"),
        ("my_package.my_module:make_generator", {"family": "decoder_lm"}, "reads language models"),
        ("my_package.my_module:make_generator", {"inputs": ["z float99[3]"]}, "is not a tensor; write it as"),
        ("my_package.my_module:make_generator", {"inputs": ["z float32[batch, 17]"]}, r"net\.0 \(Linear\).*--input"),
        ("my_package.my_module:make_generator", {"outputs": ["photo float32[batch, 3, 4, 4]"]}, "returns no photo; it returns"),
        ("my_package.my_module:make_generator", {"outputs": ["image float32[batch, 3, 4]"]}, "the shape .4, 3, 4, 4., not"),
        ("my_package.my_module:make_generator", {"outputs": ["image float32[batch, 3, 4, 5]"]}, "asked for was image"),
        ("my_package.my_module:make_generator", {"axes": ["batch=4..2"]}, "out of order"),
        ("my_package.my_module:make_generator", {"axes": ["batch"]}, "write it as batch=1..4..16"),
        ("my_package.my_module:make_generator", {"axes": ["bath=4"]}, "no tensor has an axis named bath; there are batch"),
        ("my_package.my_module:make_generator", {"settings": ["pixels"]}, "is not NAME=JSON"),
        ("my_package.my_module:make_generator", {"inputs": ["z float32[n, 16]"], "outputs": [], "axes": []}, "--axis n=LEAST"),
        ("my_package.my_module:two", {}, "there is no graph ''; this source has mapping, synthesis"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_that_says_what_to_give(package: Path, source: str, options: dict, said: str):
    with pytest.raises(EdgegenError, match=said) as caught:
        export(source, package / "g.bundle", **(OPTIONS | options))
    assert "\n" not in str(caught.value)
    assert not (package / "g.bundle").exists()


def test_options_of_modules_are_refused_where_there_are_none(tmp_path: Path):
    from tiny_models import make_tiny

    with pytest.raises(InputError, match="are for modules and ONNX files"):
        export(str(make_tiny("llama", tmp_path / "llama")), tmp_path / "x.bundle", axes=["batch=1"])


@pytest.mark.parametrize("family", ["gan", "vae", "diffusion", "features"])
def test_families_of_images_refuse_a_language_model(family: str, tmp_path: Path):
    from tiny_models import make_tiny

    with pytest.raises(InputError, match=f"is a language model's checkpoint, which the family decoder_lm reads, not {family}"):
        export(str(make_tiny("llama", tmp_path / "llama")), tmp_path / "x.bundle", family=family)


def test_tensors_are_read_by_graph_and_axes_in_three_forms():
    found = parse_named(
        ("mapping: z float32[batch, 512]", "synthesis: w float32[batch, 4, 8]", "synthesis: noise.0 float32[1]")
    )
    assert [str(spec) for spec in found["synthesis"]] == ["w float32[batch, 4, 8]", "noise.0 float32[1]"]
    assert parse_axis("height=64..256") == ("height", Axis(64, 64, 256))
    assert parse_axis("height=64") == ("height", Axis(64, 64, 64))
    assert parse_spec("t float32[]").axes == ()


def test_a_family_can_ask_for_what_is_not_given():
    source = source_of(nn.Linear(3, 4))
    with pytest.raises(
        ExportError, match=r"nothing says what the graph generator takes; its forward is forward\(input.*--input"
    ):
        specs_for(source, "generator")
    with pytest.raises(ExportError, match=r"gives; .* give --returns"):
        specs_for(dataclasses.replace(source, inputs={"": (parse_spec("z float32[batch, 3]"),)}), "generator")


Result = collections.namedtuple("Result", "image mask")


@dataclasses.dataclass
class Output:
    features: torch.Tensor
    image: torch.Tensor
    nothing: None = None


@pytest.mark.parametrize(
    ("give", "names"),
    [
        (lambda x: {"other": x, "features": x, "image": x * 2}, ["features", "image"]),
        (lambda x: Output(x, x * 2), ["image"]),
        (lambda x: Output(x, x * 2), ["features", "image"]),
        (lambda x: (x, x * 2), ["a", "image"]),
        (lambda x: [x, x * 2], ["a", "image"]),
        (lambda x: Result(x * 2, x), ["mask", "image"]),
        (lambda x: {"first": x, "second": x * 2}, ["a", "image"]),
        (lambda x: [x * 2], ["image"]),
    ],
)
def test_whatever_a_forward_returns_becomes_named_tensors(give, names: list[str]):
    class Gives(nn.Module):
        def forward(self, x):
            return give(x)

    part = declared(Gives(), ["x float32[batch, 3]"], [f"{name} float32[batch, 3]" for name in names])
    x = torch.randn(2, 3)
    made = part.module(x)
    image = made if isinstance(made, torch.Tensor) else made[names.index("image")]
    assert torch.equal(image, x * 2)
    if len(names) == 2 and names[0] == "features":  # a capture takes a second: once for a dataclass, once for a dict
        np.testing.assert_array_equal(captured(part)(x)[names.index("image")], (x * 2).numpy())


def test_a_tensor_too_many_is_told():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(CaptureError, match="returns Tensor, Tensor; declared is y: give one --returns for each"):
        declared(Two(), ["x float32[batch, 3]"], ["y float32[batch, 3]"])


def test_a_number_without_axes_goes_in_and_out():
    class Scale(nn.Module):
        def forward(self, x, t):
            return x * t, t + 1

    part = declared(Scale(), ["x float32[batch, 3]", "t float32[]"], ["y float32[batch, 3]", "u float32[]"])
    y, u = captured(part)(torch.ones(2, 3), torch.tensor(3.0))
    assert y.tolist() == [[3.0] * 3] * 2
    assert (u.shape, float(u)) == ((), 4.0)


def test_an_axis_of_one_size_is_fixed_and_a_batch_of_one_stays_free():
    part = Part(nn.Linear(3, 4), (parse_spec("x float32[batch, 3]"),), (parse_spec("y float32[batch, 4]"),))
    assert captured(part, {"batch": Axis(1, 1, 8)})(torch.zeros(5, 3))[0].shape == (5, 4)
    assert captured(part, {"batch": Axis(3, 3, 3)})(torch.zeros(3, 3))[0].shape == (3, 4)
