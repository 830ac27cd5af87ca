"""ESRGAN-slim from its package: read, exported, run by onnxruntime, and held to the publisher's own result."""

import json

import pytest

torch = pytest.importorskip("torch")

from pathlib import Path

import numpy as np

import edgegen
from edgegen.errors import SourceError
from edgegen.export import export
from edgegen.export.fetch import fetch_from_npm
from edgegen.export.recipe import load_recipe
from edgegen.media import read_image
from edgegen.models.esrgan import load_layers_model
from edgegen.pipelines.images import PixelRange
from edgegen.proof import verify_bundle

RECIPES = Path(__file__).parents[2] / "export"
RECIPE = RECIPES / "esrgan_slim_x2.py"
ASSETS = {  # the publisher's own picture, and what its network made of it
    "package/assets/fixture.png": ("9c42004f3493b1520d7fcaa908f63bf1e34eb1206ff49ee71724c67fc5ce8294", 41_529),
    "package/assets/samples/2x/result.png": ("3374bbc0af08d3c245f173becabef4fe67ea9c933bff4464e26a2960394a3141", 134_906),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(bundle, the publisher's input, the publisher's output); skipped with the reason where the package cannot be had."""
    package = "@upscalerjs/esrgan-slim@1.0.0"
    try:
        fixture, result = (read_image(fetch_from_npm(package, name, *facts), 3) for name, facts in ASSETS.items())
        load_recipe(RECIPE).modules()
    except SourceError as error:
        pytest.skip(str(error))
    bundle = tmp_path_factory.mktemp("esrgan") / "x2.bundle"
    export(str(RECIPE), bundle)
    return bundle, fixture, result


def test_it_makes_what_its_publisher_shows(published):
    bundle, fixture, wanted = published
    with edgegen.load(bundle) as model:
        made = model.translate(fixture)
        difference = np.abs(made.pixels[0].astype(int) - wanted)
        assert made.parameters["tiles"] == "1 x 1"
        # The publisher's was computed by TensorFlow.js, perhaps on a GPU. Measured here: 0.000015 grey levels, 1 at most.
        assert difference.mean() <= 0.001
        assert difference.max() <= 1
        tiled = model.translate(fixture, tile=64)
        assert tiled.parameters["tiles"] == "3 x 3"
        assert np.abs(tiled.pixels[0].astype(int) - wanted).max() <= 1


def test_it_is_proven_and_knows_its_scale_and_how_far_it_looks(published):
    bundle, _, _ = published
    report = verify_bundle(str(bundle))
    assert report.passed
    assert report.fidelity.worst.largest < 1e-5  # 20 layers of float32 sums; measured 5e-7
    with edgegen.load(bundle) as model:
        assert model.settings.scale == (2, 1)
        # 3x3 kernels seven times before the doubling, one 5x5 (two pixels), and half a pixel after it
        assert model.settings.receptive_field == 10


@pytest.mark.parametrize("scale", [3, 4, 8])
def test_the_larger_scales_are_read_from_the_same_package(published, scale):
    _, fixture, _ = published
    network = load_recipe(RECIPES / f"esrgan_slim_x{scale}.py").modules()
    with torch.no_grad():
        made = network(torch.from_numpy(PixelRange(0.0, 255.0).from_uint8(fixture[None, :16, :24])))
    assert made.shape == (1, 3, 16 * scale, 24 * scale)


LAYERS = [
    {"class_name": "InputLayer", "config": {"name": "in"}, "inbound_nodes": []},
    {
        "class_name": "Conv2D",
        "config": {
            "name": "a",
            "filters": 2,
            "kernel_size": [3, 3],
            "strides": [1, 1],
            "padding": "same",
            "data_format": "channels_last",
            "dilation_rate": [1, 1],
            "activation": "relu",
            "use_bias": True,
        },
        "inbound_nodes": [[["in", 0, 0, {}]]],
    },
    {"class_name": "Concatenate", "config": {"name": "b", "axis": 3}, "inbound_nodes": [[["a", 0, 0, {}], ["in", 0, 0, {}]]]},
    {"class_name": "Add", "config": {"name": "c"}, "inbound_nodes": [[["b", 0, 0, {}], ["b", 0, 0, {}]]]},
    {
        "class_name": "UpSampling2D",
        "config": {"name": "d", "size": [3, 3], "interpolation": "nearest", "data_format": "channels_last"},
        "inbound_nodes": [[["c", 0, 0, {}]]],
    },
]
WEIGHTS = [
    {"name": "a/kernel", "shape": [3, 3, 1, 2], "dtype": "float32"},
    {"name": "a/bias", "shape": [2], "dtype": "float32"},
]
NUMBERS = np.random.default_rng(0).standard_normal(20).astype("<f4")


def written(folder, layers=LAYERS, weights=WEIGHTS, numbers=NUMBERS, outputs=(("d", 0, 0),)):
    config = {"layers": layers, "input_layers": [["in", 0, 0]], "output_layers": list(outputs)}
    text = json.dumps({"modelTopology": {"model_config": {"config": config}}, "weightsManifest": [{"weights": weights}]})
    (folder / "model.json").write_text(text)
    (folder / "shard.bin").write_bytes(numbers.tobytes())
    return folder / "model.json", folder / "shard.bin"


def test_a_graph_of_layers_computes_what_keras_would(tmp_path):
    network = load_layers_model(*written(tmp_path))
    image = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    kernel, bias, wide = NUMBERS[:18].reshape(3, 3, 1, 2), NUMBERS[18:], np.pad(image, 1)
    made = np.zeros((2, 5, 4), np.float32)
    for y in range(5):
        for x in range(4):
            made[:, y, x] = np.maximum((wide[y : y + 3, x : x + 3, None] * kernel[:, :, 0]).sum((0, 1)) + bias, 0)
    wanted = 2 * np.concatenate([made, image[None]]).repeat(3, axis=1).repeat(3, axis=2)
    with torch.no_grad():
        found = network(torch.from_numpy(image)[None, None])[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # float32, nine products


def changed(index, **config):
    layers = json.loads(json.dumps(LAYERS))
    layers[index]["config"] |= config
    return {"layers": layers}


def other(index, **fields):
    layers = json.loads(json.dumps(LAYERS))
    layers[index] |= fields
    return {"layers": layers}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (other(3, class_name="Lambda"), "c is a Lambda"),
        (changed(1, strides=[2, 2]), "padding 'same' with the strides"),
        (changed(1, activation="swish"), "the Conv2D a cannot be read: 'swish'"),
        (changed(1, filters=3), "its kernel is"),
        (changed(1, name="z"), "z/kernel"),
        (changed(4, interpolation="bilinear"), "which is not known here"),
        (changed(4, data_format="channels_first"), "channels_first"),
        (changed(2, axis=1), "which is not known here"),
        (other(1, inbound_nodes=[[["d", 0, 0, {}]]]), "a takes d, which no layer before it gives"),
        (other(1, inbound_nodes=[]), "used 0 times"),
        ({"numbers": NUMBERS[:19]}, "76 bytes"),
        ({"weights": [*WEIGHTS, {"name": "q", "shape": [0], "dtype": "float32"}]}, "no layer has the weights q"),
        ({"weights": [{"name": "a/kernel"}]}, "no layers model"),
        ({"outputs": (("c", 0, 0),)}, "is not the last layer"),
        ({"outputs": ()}, "0 outputs"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(changes, said, tmp_path):
    with pytest.raises(SourceError, match=said) as caught:
        load_layers_model(*written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_what_is_no_json_is_refused(tmp_path):
    model, shard = written(tmp_path)
    model.write_text("[1, 2]")
    with pytest.raises(SourceError, match="no layers model"):
        load_layers_model(model, shard)
    with pytest.raises(SourceError, match="no layers model"):
        load_layers_model(tmp_path / "none.json", shard)
