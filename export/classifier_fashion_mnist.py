"""What a small classifier of Fashion-MNIST sees: 128 numbers of an image of 28x28, to compare sets of images by.

Not Inception: distances in these features compare only with others in the same. Trains in minutes on two cores.
"""

from typing import TYPE_CHECKING, Any

from edgegen.export.recipe import Recipe
from edgegen.train.data import fashion_mnist
from edgegen.train.recipe import Training, untrained

if TYPE_CHECKING:
    from edgegen.train.objective import Objective


def modules() -> Any:
    """The classifier without its last layer."""
    from edgegen.models.classifier import Features

    return {"features": Features(channels=1, widths=(32, 64, 128))}


def objective(trained: Any) -> "Objective":
    """Tell the ten kinds of clothes apart: the last layer is left here."""
    from edgegen.train.classification import Classification

    return Classification(trained, classes=10, decay=0.998)


RECIPE = Recipe(
    name="classifier-fashion-mnist",
    family="features",
    modules=modules,
    source=untrained(__file__),
    inputs={"features": ("image float32[batch, 1, 28, 28]",)},
    outputs={"features": ("features float32[batch, 128]",)},
    axes={"batch": (1, 64, 256)},
    settings={"pixels": {"black": -1.0, "white": 1.0}},
    licence="MIT",
)
TRAINING = Training(
    data=fashion_mnist,
    held_out=lambda: fashion_mnist("t10k"),
    objective=objective,
    steps=2400,
    batch_size=128,
    warmup=100,
    save_every=400,
    flip=True,
)
