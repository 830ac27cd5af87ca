"""The recipes in export/ that can be trained, on images made up in their sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgegen.errors import InputError, SourceError
from edgegen.export.parts import example, parse_spec
from edgegen.export.recipe import load_recipe
from edgegen.export.sources.module import load_weights, open_recipe
from edgegen.tensors import Axis
from edgegen.train import loop
from edgegen.train.data import Data
from edgegen.train.loop import Options
from edgegen.train.recipe import load_training

SIZES = {"cvae_fashion_mnist": (28, 1), "dcgan_fashion_mnist": (28, 1), "ddpm_fashion_mnist": (28, 1)}
SIZES |= {"stylegan2_emoji": (64, 3), "classifier_fashion_mnist": (28, 1)}
FOLDER = Path(__file__).resolve().parents[2] / "export"


def test_every_recipe_that_can_be_trained_is_tried_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.py") if "TRAINING" in path.read_text()} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_trains_and_its_checkpoint_has_the_graphs_that_it_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, channels = SIZES[name]
    rng = np.random.default_rng(0)
    data = Data(rng.integers(0, 256, (8, size, size, channels), np.uint8), np.arange(8))
    recipe, training = load_training(FOLDER / f"{name}.py")
    monkeypatch.setattr(loop, "load_training", lambda _: (recipe, replace(training, data=lambda: data, held_out=lambda: data)))
    output = tmp_path / "model.safetensors"
    assert loop.train(FOLDER / f"{name}.py", output, Options(device="cpu", steps=1, batch_size=4)).steps == 1
    assert recipe.modules is not None
    modules = recipe.modules()
    load_weights(modules, output)
    axes = {axis: Axis(*sizes) for axis, sizes in recipe.axes.items()}
    for graph, module in modules.items():
        made = module.eval()(*(example(parse_spec(text), axes) for text in recipe.inputs[graph]))
        made = [made] if isinstance(made, torch.Tensor) else made
        promised = [parse_spec(text).axes[1:] for text in recipe.outputs[graph]]
        assert [tuple(tensor.shape[1:]) for tensor in made] == promised


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_that_nobody_trained_is_not_exported_with_random_weights(name: str) -> None:
    with pytest.raises(SourceError, match=rf"train it first: `edgegen train .*{name}.py -o {name}\.safetensors`"):
        open_recipe(load_recipe(FOLDER / f"{name}.py"), None)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((2, 4, 4), np.uint8), None, r"images are uint8\[2, 4, 4\]"),
        (np.zeros((2, 4, 4, 1), np.float32), None, r"images are float32"),
        (np.zeros((0, 4, 4, 1), np.uint8), None, r"and some"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, np.int64), r"labels are int64\[3\]"),
    ],
)
def test_data_of_another_form_is_refused(images, labels, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        Data(images, labels)


def test_labels_beyond_the_classes_are_refused() -> None:
    data = Data(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 3]))
    with pytest.raises(InputError, match="labels from 0 to 3; the objective has 3 classes"):
        loop._check_classes(data, 3)
    loop._check_classes(data, 4)
