"""DCGAN on Fashion-MNIST: clothes of 28x28 out of 64 normal numbers. Trains in minutes on two cores."""

from typing import TYPE_CHECKING, Any

from edgegen.export.recipe import Recipe
from edgegen.train.data import fashion_mnist
from edgegen.train.recipe import Training, untrained

if TYPE_CHECKING:
    from edgegen.train.objective import Objective


def modules() -> Any:
    """The generator."""
    from edgegen.models.dcgan import Generator

    return {"generator": Generator(latent=64, size=28, width=32)}


def objective(trained: Any) -> "Objective":
    """Non-saturating, with R1: the discriminator is left here."""
    from edgegen.models.dcgan import Discriminator
    from edgegen.train.adversarial import Adversarial

    return Adversarial(trained, Discriminator(size=28, width=32), penalty="r1", gamma=1.0, every=4, rates=(5e-4, 5e-4))


RECIPE = Recipe(
    name="dcgan-fashion-mnist",
    family="gan",
    modules=modules,
    source=untrained(__file__),
    inputs={"generator": ("z float32[batch, 64]",)},
    outputs={"generator": ("image float32[batch, 1, 28, 28]",)},
    axes={"batch": (1, 1, 64)},
    licence="MIT",
)
TRAINING = Training(
    data=fashion_mnist, held_out=lambda: fashion_mnist("t10k"), objective=objective, steps=4000, batch_size=64, warmup=100
)
