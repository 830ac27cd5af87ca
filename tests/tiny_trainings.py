"""Recipes with every training objective, on synthetic shapes of 16x16, small enough for a test."""

from pathlib import Path


def recipe(family: str, modules: str, objective: str, black: float = -1.0, channels: int = 1) -> str:
    return f"""
from edgegen.export.recipe import Recipe
from edgegen.train.data import shapes
from edgegen.train.recipe import Training


def modules():
    {modules}


def objective(trained):
    {objective}


RECIPE = Recipe(name="tiny", family="{family}", modules=modules, settings={{"pixels": {{"black": {black}, "white": 1.0}}}})
TRAINING = Training(
    data=lambda: shapes(50, 16, {channels}), objective=objective, steps=6, batch_size=8, warmup=4, flip=True, save_every=100
)
"""


def gan(penalty: str) -> str:
    return recipe(
        "gan",
        """from edgegen.models.dcgan import Generator
    return {"generator": Generator(latent=8, size=16, width=4, classes=3)}""",
        f"""from edgegen.models.dcgan import Discriminator
    from edgegen.train.adversarial import Adversarial
    return Adversarial(trained, Discriminator(size=16, width=4, classes=3), penalty={penalty!r}, every=2, classes=3)""",
    )


def vae(likelihood: str) -> str:
    return recipe(
        "vae",
        """from edgegen.models.cvae import Decoder, Encoder
    options = {"latent": 4, "size": 16, "width": 4, "classes": 3}
    return {"encoder": Encoder(**options), "decoder": Decoder(**options)}""",
        f"""from edgegen.train.elbo import EvidenceLowerBound
    return EvidenceLowerBound(trained, beta=0.5, likelihood={likelihood!r}, classes=3, rate=3e-3)""",
        black=0.0,
    )


def diffusion(kind: str, prediction: str, min_snr: float | None = None) -> str:
    return recipe(
        "diffusion",
        """from edgegen.models.unet import ClassUNet
    return {"denoiser": ClassUNet(size=16, patch=2, widths=(8, 16), groups=4, classes=3)}""",
        f"""from edgegen.schedules import Schedule
    from edgegen.train.denoising import Denoising
    schedule = Schedule(kind={kind!r}, prediction={prediction!r})
    return Denoising(trained, schedule, shape=(1, 16, 16), min_snr={min_snr}, classes=3, sheet_steps=4)""",
    )


STYLE = recipe(
    "gan",
    """from edgegen.models.stylegan2 import Mapping, Synthesis
    return {"mapping": Mapping(latent=8, layers=2), "synthesis": Synthesis(size=16, style=8, widths=(8, 8, 4))}""",
    """from edgegen.models.stylegan2 import Discriminator
    from edgegen.train.adversarial import StyleAdversarial
    return StyleAdversarial(trained, Discriminator(size=16, widths=(8, 8, 4)), every=2, path_every=3)""",
    channels=3,
)
CLASSIFIER = recipe(
    "features",
    """from edgegen.models.classifier import Features
    return {"features": Features(widths=(4, 8))}""",
    """from edgegen.train.classification import Classification
    return Classification(trained, classes=3)""",
).replace("steps=6,", "steps=6, held_out=lambda: shapes(30, 16, 1),")
RECIPES = {
    "gan-r1": gan("r1"),
    "gan-gradient-penalty": gan("gradient"),
    "elbo-bernoulli": vae("bernoulli"),
    "elbo-gaussian": vae("gaussian"),
    "noise": diffusion("linear", "noise"),
    "velocity-min-snr": diffusion("cosine", "velocity", 5.0),
    "flow": diffusion("flow", "flow"),
    "stylegan2": STYLE,
    "classification": CLASSIFIER,
}


def write_recipe(folder: Path, kind: str, *changes: tuple[str, str]) -> Path:
    """Write tiny.py; `changes` are (what stands there, what shall)."""
    text = RECIPES[kind]
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = folder / "tiny.py"
    path.write_text(text)
    return path
