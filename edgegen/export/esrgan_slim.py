"""ESRGAN-slim (UpscalerJS, MIT) as the npm package @upscalerjs/esrgan-slim has it: what its recipes have in common."""

from typing import Any

from edgegen.export.fetch import fetch_from_npm
from edgegen.export.recipe import Recipe

_PACKAGE = "@upscalerjs/esrgan-slim@1.0.0"


def esrgan_slim(scale: int, model: tuple[str, int], shard: tuple[str, int]) -> Recipe:
    """The recipe for super-resolution to `scale` times the size; `model` and `shard` are digest and bytes of its two files."""

    def modules() -> Any:
        """Fetch the network (1 MB) once, and build it."""
        from edgegen.models.esrgan import load_layers_model  # here: recipes load without torch

        folder = f"package/models/x{scale}"
        layers = fetch_from_npm(_PACKAGE, f"{folder}/model.json", *model)
        return load_layers_model(layers, fetch_from_npm(_PACKAGE, f"{folder}/group1-shard1of1.bin", *shard))

    return Recipe(
        name=f"esrgan-slim-x{scale}",
        family="gan",
        modules=modules,
        inputs={"translator": ("image float32[batch, 3, height, width]",)},
        axes={"batch": (1, 1, 8), "height": (8, 128, 512), "width": (8, 128, 512)},
        settings={"pixels": {"black": 0.0, "white": 255.0}},
        licence="MIT",
    )
