"""The features of a classifier: how they learn, how they are measured, and that a bundle sees the pixels that training saw."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_trainings import write_recipe
from torch import Tensor, nn

from edgegen.errors import InputError, SourceError, TrainingError
from edgegen.export.assemble import export_model
from edgegen.export.families.features import build
from edgegen.export.recipe import load_recipe
from edgegen.export.request import Request
from edgegen.export.sources.module import open_recipe
from edgegen.pipelines.images import PixelRange
from edgegen.runtime import load
from edgegen.train import loop
from edgegen.train.classification import Classification
from edgegen.train.data import Data, shapes
from edgegen.train.loop import Options
from edgegen.train.objective import Batch
from edgegen.train.order import Batches, in_order, indices
from edgegen.train.recipe import load_training


class Corners(nn.Module):
    """Features that are three pixels of the first row."""

    features = 3

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.gain * image[:, 0, 0, :3]


def objective() -> Classification:
    """Takes the brightest of the three for the class."""
    made = Classification({"features": Corners()}, classes=3, decay=0.0)
    with torch.no_grad():
        made.trained["top"].weight.copy_(torch.eye(3))
        made.trained["top"].bias.zero_()
    return made


def bright(*places: int) -> Tensor:
    images = torch.zeros(len(places), 1, 3, 4)
    for index, place in enumerate(places):
        images[index, 0, 0, place] = 1
        images[index, 0, 2, 0] = index  # which image it is
    return images


def test_the_loss_is_the_cross_entropy_and_the_layer_on_top_is_not_exported() -> None:
    made = objective()
    found = made.step(Batch(bright(0, 2), torch.tensor([0, 1])), 0)["cross_entropy"].item()
    # Logits are 1 where it is bright, else 0: one image right, one wrong.
    assert found == pytest.approx(math.log(math.e + 2) - 0.5, rel=1e-6)
    assert list(made.exported()) == ["features"]


def test_accuracy_is_the_share_of_all_held_out_images_whatever_their_batches() -> None:
    made = objective()
    batches = [Batch(bright(0, 1, 2), torch.tensor([0, 1, 1])), Batch(bright(2), torch.tensor([2]))]
    made.held_out = lambda: batches
    assert made.measure() == {"held_out_accuracy": 0.75}


def test_a_sheet_has_a_column_for_each_class_that_is_found() -> None:
    made = objective()
    made.held_out = lambda: [Batch(bright(1, 0, 1, 2), torch.tensor([0, 0, 0, 0]))]
    sheet = made.sample(6)
    assert sheet.shape == (6, 1, 3, 4)
    assert [int(image[0, 0].argmax()) for image in sheet[:3]] == [0, 1, 2]
    assert int(sheet[4, 0, 0].argmax()) == 1  # there were two of them
    assert float(sheet[3].max()) == float(sheet[5].max()) == 0.0  # and no more of the others


def test_images_in_order_are_all_there_once_as_the_training_sees_them() -> None:
    data, pixels = shapes(20), PixelRange(3.0, -1.0)
    batches = list(in_order(data, pixels, torch.device("cpu"), size=8))
    assert [len(batch.images) for batch in batches] == [8, 8, 4]
    learned = Batches(data, pixels, seed=1, batch_size=20)(0, torch.device("cpu"))
    order = indices(1, 0, 20, 20)
    assert torch.equal(torch.cat([batch.images for batch in batches])[order], learned.images)
    assert np.array_equal(np.concatenate([batch.class_ids for batch in batches]), data.labels)


def test_a_training_tells_its_accuracy_and_it_learns(tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path, "classification", ("save_every=100", "save_every=20")), tmp_path / "a.safetensors"
    told: list[dict[str, float]] = []
    report = loop.train(recipe, output, Options(device="cpu", steps=60), lambda _, __, losses: told.append(dict(losses)))
    assert "held_out_accuracy" not in told[0]
    assert [told[step]["held_out_accuracy"] for step in (19, 38)] == [
        told[19]["held_out_accuracy"]
    ] * 2  # the last that is known
    assert report.losses["held_out_accuracy"] == told[-1]["held_out_accuracy"]
    assert report.losses["held_out_accuracy"] > 0.6  # of three classes, by chance 1/3


@pytest.mark.parametrize(
    ("held_out", "said", "error"),
    [
        (None, "give its TRAINING `held_out`", SourceError),
        (lambda: shapes(9, 8), r"held-out images are \[8, 8, 1\], those to learn from \[16, 16, 1\]", SourceError),
        (lambda: Data(shapes(9).images, np.full(9, 3)), "labels from 3 to 3; the objective has 3 classes", InputError),
        (lambda: Data(shapes(9).images), "the data has no labels", TrainingError),
    ],
)
def test_held_out_images_that_do_not_go_are_refused(held_out, said, error, tmp_path: Path, monkeypatch) -> None:
    path = write_recipe(tmp_path, "classification")
    recipe, training = load_training(path)
    monkeypatch.setattr(loop, "load_training", lambda _: (recipe, replace(training, held_out=held_out)))
    with pytest.raises(error, match=said):
        loop.train(path, tmp_path / "a.safetensors", Options(device="cpu", steps=1))


def test_one_class_is_nothing_to_tell_apart() -> None:
    with pytest.raises(TrainingError, match="takes 2 at least"):
        Classification({"features": Corners()}, classes=1)


def test_the_bundle_sees_the_pixels_that_the_training_saw(tmp_path: Path) -> None:
    """A range that nothing has by default: whoever forgets it gives other features."""
    path = write_recipe(tmp_path, "classification", ('"black": -1.0, "white": 1.0', '"black": 2.0, "white": -3.0'))
    path.write_text(
        path.read_text().replace("settings=", 'inputs={"features": ("image float32[batch, 1, 16, 16]",)}, settings=')
    )
    output = tmp_path / "a.safetensors"
    loop.train(path, output, Options(device="cpu", steps=3))
    recipe, training = load_training(path)
    source = open_recipe(load_recipe(path), output)
    request = Request(source, tmp_path / "f.bundle", "fp32", "tiny")
    export_model(request, build(source), lambda _stage, _share: None)
    data, pixels = training.data(), PixelRange(**recipe.settings["pixels"])
    seen = torch.cat([batch.images for batch in in_order(data, pixels, torch.device("cpu"))])
    with load(tmp_path / "f.bundle") as network, torch.no_grad():
        wanted = source.modules["features"](seen)
        # float32 sums in another order
        np.testing.assert_allclose(network.extract(data.images), wanted.numpy(), rtol=1e-4, atol=1e-5)
        assert network.settings.pixels == pixels
