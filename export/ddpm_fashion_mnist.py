"""DDPM on Fashion-MNIST: a small U-Net that is told the class, with guidance. Trains in minutes on two cores."""

from typing import TYPE_CHECKING, Any

from edgegen.export.recipe import Recipe
from edgegen.train.data import fashion_mnist
from edgegen.train.recipe import Training, untrained

if TYPE_CHECKING:
    from edgegen.train.objective import Objective

# A clipped estimate beside noise that is not would leave the black ground grey, and most of these images is black.
SCHEDULE = {"kind": "cosine", "prediction": "velocity"}


def modules() -> Any:
    """The denoiser."""
    from edgegen.models.unet import ClassUNet

    return {"denoiser": ClassUNet(size=28, patch=2, widths=(48, 96), classes=10)}


def objective(trained: Any) -> "Objective":
    """Predict the velocity; one class in ten is withheld."""
    from edgegen.schedules import Schedule
    from edgegen.train.denoising import Denoising

    return Denoising(trained, Schedule(**SCHEDULE), shape=(1, 28, 28), classes=10)  # type: ignore[arg-type]


RECIPE = Recipe(
    name="ddpm-fashion-mnist",
    family="diffusion",
    modules=modules,
    source=untrained(__file__),
    inputs={"denoiser": ("sample float32[batch, 1, 28, 28]", "timestep float32[batch]", "class_ids int64[batch]")},
    outputs={"denoiser": ("prediction float32[batch, 1, 28, 28]",)},
    axes={"batch": (1, 2, 32)},
    settings={"schedule": SCHEDULE, "classes": 10, "null_class": 10, "guidance": 2.0, "steps": 25},
    licence="MIT",
)
TRAINING = Training(
    data=fashion_mnist, held_out=lambda: fashion_mnist("t10k"), objective=objective, steps=1400, batch_size=64, warmup=100
)
