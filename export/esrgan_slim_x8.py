"""ESRGAN-slim x8 (UpscalerJS, MIT): super-resolution to eight times the size, from the npm package @upscalerjs/esrgan-slim."""

from typing import Any

from edgegen.export.fetch import fetch_from_npm
from edgegen.export.recipe import Recipe

PACKAGE, FOLDER = "@upscalerjs/esrgan-slim@1.0.0", "package/models/x8"
MODEL = "d4278813adf94b7dff96c756b97f95a41f56ff7e85b4ecec25dc06ddea1d49b6", 12_340  # sha256, bytes
SHARD = "0c5fe31649784135a431733f0f295838c5330f8f38011c10d29d36bd8dd7c293", 1_115_820


def modules() -> Any:
    """Fetch the network (1 MB) once, and build it."""
    from edgegen.models.esrgan import load_layers_model

    model = fetch_from_npm(PACKAGE, f"{FOLDER}/model.json", *MODEL)
    shard = fetch_from_npm(PACKAGE, f"{FOLDER}/group1-shard1of1.bin", *SHARD)
    return load_layers_model(model, shard)


RECIPE = Recipe(
    name="esrgan-slim-x8",
    family="gan",
    modules=modules,
    inputs={"translator": ("image float32[batch, 3, height, width]",)},
    axes={"batch": (1, 1, 8), "height": (8, 128, 512), "width": (8, 128, 512)},
    settings={"pixels": {"black": 0.0, "white": 255.0}},
    licence="MIT",
)
