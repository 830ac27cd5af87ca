"""A conditional VAE on Fashion-MNIST: 16 numbers and a class make clothes of 28x28. Trains in minutes on two cores."""

from typing import TYPE_CHECKING, Any

from edgegen.export.recipe import Recipe
from edgegen.train.data import fashion_mnist
from edgegen.train.recipe import Training, untrained

if TYPE_CHECKING:
    from edgegen.train.objective import Objective


def modules() -> Any:
    """Both halves."""
    from edgegen.models.cvae import Decoder, Encoder

    return {"encoder": Encoder(latent=16, classes=10), "decoder": Decoder(latent=16, classes=10)}


def objective(trained: Any) -> "Objective":
    """The evidence lower bound: a pixel's grey is the probability of white."""
    from edgegen.train.elbo import EvidenceLowerBound

    return EvidenceLowerBound(trained, beta=1.0, likelihood="bernoulli", classes=10)


RECIPE = Recipe(
    name="cvae-fashion-mnist",
    family="vae",
    modules=modules,
    source=untrained(__file__),
    inputs={
        "encoder": ("image float32[batch, 1, 28, 28]", "class_ids int64[batch]"),
        "decoder": ("latent float32[batch, 16]", "class_ids int64[batch]"),
    },
    outputs={
        "encoder": ("mean float32[batch, 16]", "log_variance float32[batch, 16]"),
        "decoder": ("image float32[batch, 1, 28, 28]",),
    },
    axes={"batch": (1, 1, 64)},
    settings={"pixels": {"black": 0.0, "white": 1.0}, "classes": 10},
    licence="MIT",
)
TRAINING = Training(
    data=fashion_mnist, held_out=lambda: fashion_mnist("t10k"), objective=objective, steps=3000, batch_size=128, warmup=100
)
