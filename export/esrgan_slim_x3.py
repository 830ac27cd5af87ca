"""ESRGAN-slim x3 (UpscalerJS, MIT): super-resolution to three times the size, from the npm package @upscalerjs/esrgan-slim."""

from typing import Any

from edgegen.export.fetch import fetch_from_npm
from edgegen.export.recipe import Recipe

PACKAGE, FOLDER = "@upscalerjs/esrgan-slim@1.0.0", "package/models/x3"
MODEL = "642208758cf6c42a4f88745894b45cc03776681a46027b85963f01fe003e9917", 12_336  # sha256, bytes
SHARD = "9d344609abd1e29bd3924f9c4e9ffaa1aee6be7c3586bab0f52863597858a2ba", 907_260


def modules() -> Any:
    """Fetch the network (1 MB) once, and build it."""
    from edgegen.models.esrgan import load_layers_model

    model = fetch_from_npm(PACKAGE, f"{FOLDER}/model.json", *MODEL)
    shard = fetch_from_npm(PACKAGE, f"{FOLDER}/group1-shard1of1.bin", *SHARD)
    return load_layers_model(model, shard)


RECIPE = Recipe(
    name="esrgan-slim-x3",
    family="gan",
    modules=modules,
    inputs={"translator": ("image float32[batch, 3, height, width]",)},
    axes={"batch": (1, 1, 8), "height": (8, 128, 512), "width": (8, 128, 512)},
    settings={"pixels": {"black": 0.0, "white": 255.0}},
    licence="MIT",
)
