"""A small StyleGAN2 on the faces among Twitter's emoji (64x64, CC-BY-4.0). Half an hour on two cores shows faces."""

from typing import TYPE_CHECKING, Any

from edgegen.export.recipe import Recipe
from edgegen.train.data import emoji
from edgegen.train.recipe import Training, untrained

if TYPE_CHECKING:
    from edgegen.train.objective import Objective

SIDES = (4, 8, 8, 16, 16, 32, 32, 64, 64)


def modules() -> Any:
    """Both graphs."""
    from edgegen.models.stylegan2 import Mapping, Synthesis

    return {"mapping": Mapping(latent=128), "synthesis": Synthesis(size=64, style=128)}


def objective(trained: Any) -> "Objective":
    """The paper's, with weaker R1: images are small and their edges sharp."""
    from edgegen.models.stylegan2 import Discriminator
    from edgegen.train.adversarial import StyleAdversarial

    return StyleAdversarial(trained, Discriminator(size=64), gamma=1.0)


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
    data=lambda: emoji(faces=True), objective=objective, steps=1400, batch_size=16, save_every=200, sheet_every=200
)
