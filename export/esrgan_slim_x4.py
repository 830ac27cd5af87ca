"""ESRGAN-slim x4 (UpscalerJS, MIT): super-resolution to four times the size, from the npm package @upscalerjs/esrgan-slim."""

from typing import Any

from edgegen.export.fetch import fetch_from_npm
from edgegen.export.recipe import Recipe

PACKAGE, FOLDER = "@upscalerjs/esrgan-slim@1.0.0", "package/models/x4"
MODEL = "3a2eaa642232567e7d2a2e7638c9704f42f63f355fc656c18aa78bf2da1d903d", 12_336  # sha256, bytes
SHARD = "82637daaf3ba024df5e9da2389e8992e7a6e8a992ba6268ce6bc490c92e9516e", 933_804


def modules() -> Any:
    """Fetch the network (1 MB) once, and build it."""
    from edgegen.models.esrgan import load_layers_model

    model = fetch_from_npm(PACKAGE, f"{FOLDER}/model.json", *MODEL)
    shard = fetch_from_npm(PACKAGE, f"{FOLDER}/group1-shard1of1.bin", *SHARD)
    return load_layers_model(model, shard)


RECIPE = Recipe(
    name="esrgan-slim-x4",
    family="gan",
    modules=modules,
    inputs={"translator": ("image float32[batch, 3, height, width]",)},
    axes={"batch": (1, 1, 8), "height": (8, 128, 512), "width": (8, 128, 512)},
    settings={"pixels": {"black": 0.0, "white": 255.0}},
    licence="MIT",
)
