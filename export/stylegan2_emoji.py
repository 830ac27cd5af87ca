"""A small StyleGAN2 on the faces among Twitter's emoji (64x64, CC-BY-4.0). Half an hour on two cores shows faces."""

from typing import TYPE_CHECKING, Any

from edgegen.export.recipe import Recipe
from edgegen.train.data import emoji
from edgegen.train.recipe import Training, untrained

if TYPE_CHECKING:
    from edgegen.train.objective import Objective

SIDES = (4, 8, 8, 16, 16, 32, 32, 64, 64)
WIDTHS = (96, 96, 64, 32, 16)  # channels at 4x4, 8x8, ..., 64x64: narrow, for two cores to see each picture many times


def modules() -> Any:
    """Both graphs."""
    from edgegen.models.stylegan2 import Mapping, Synthesis

    return {"mapping": Mapping(latent=128), "synthesis": Synthesis(size=64, style=128, widths=WIDTHS)}


def objective(trained: Any) -> "Objective":
    """The paper's, with weaker R1: images are small and their edges sharp. Without augmentation 99 pictures end as one face."""
    from edgegen.models.stylegan2 import Discriminator
    from edgegen.train.adversarial import StyleAdversarial

    return StyleAdversarial(trained, Discriminator(size=64, widths=WIDTHS), gamma=0.5, augmented=True)


RECIPE = Recipe(
    name="stylegan2-emoji",
    family="gan",
    modules=modules,
    source=untrained(__file__),
    inputs={
        "mapping": ("z float32[batch, 128]",),
        "synthesis": (
            "w float32[batch, 10, 128]",
            *(f"noise.{i} float32[batch, 1, {side}, {side}]" for i, side in enumerate(SIDES)),
        ),
    },
    outputs={"mapping": ("w float32[batch, 128]",), "synthesis": ("image float32[batch, 3, 64, 64]",)},
    axes={"batch": (1, 1, 16)},
    licence="CC-BY-4.0",
)
TRAINING = Training(
    data=lambda: emoji(faces=True), objective=objective, steps=9000, batch_size=8, flip=True, save_every=500, sheet_every=500
)
