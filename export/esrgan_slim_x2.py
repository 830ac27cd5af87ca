"""ESRGAN-slim x2 (UpscalerJS, MIT): super-resolution to twice the size, from the npm package @upscalerjs/esrgan-slim."""

from typing import Any

from edgegen.export.fetch import fetch_from_npm
from edgegen.export.recipe import Recipe

PACKAGE, FOLDER = "@upscalerjs/esrgan-slim@1.0.0", "package/models/x2"
MODEL = "8efb488c2caed0196a6163e3f06798f9245e92623ffd50654a26c372e09150ea", 12_336  # sha256, bytes
SHARD = "5cb464ae4d390ce0a771afd5feaf60fbfcdb18ab48a56db98cdf6b88202369de", 888_300


def modules() -> Any:
    """Fetch the network (1 MB) once, and build it."""
    from edgegen.models.esrgan import load_layers_model

    model = fetch_from_npm(PACKAGE, f"{FOLDER}/model.json", *MODEL)
    shard = fetch_from_npm(PACKAGE, f"{FOLDER}/group1-shard1of1.bin", *SHARD)
    return load_layers_model(model, shard)


RECIPE = Recipe(
    name="esrgan-slim-x2",
    family="gan",
    modules=modules,
    inputs={"translator": ("image float32[batch, 3, height, width]",)},
    axes={"batch": (1, 1, 8), "height": (8, 128, 512), "width": (8, 128, 512)},
    settings={"pixels": {"black": 0.0, "white": 255.0}},
    licence="MIT",
)
