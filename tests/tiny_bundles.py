"""A tiny model of every family, of the layers that real ones have; `export_tiny` makes its bundle."""

import importlib
from pathlib import Path

import torch
from tiny_diffusers import PIPELINES, ddpm, saved
from torch import nn

from edgegen.export import export
from edgegen.export.families import FAMILIES
from edgegen.export.parts import Modules, parse_spec
from edgegen.export.request import Request
from edgegen.models import classifier, cvae, dcgan, stylegan2
from edgegen.models.unet import ClassUNet
from edgegen.tensors import Axis

BATCH = {"batch": Axis(1, 1, 4)}
SIDES = {"height": Axis(8, 16, 32), "width": Axis(8, 16, 32)}


class Upscaler(nn.Module):
    """An image-to-image network: convolutions, dense connections, a pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(11, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, image):
        dense = torch.cat([image, nn.functional.leaky_relu(self.first(image), 0.2)], 1)
        return nn.functional.interpolate(image, scale_factor=2) + 0.1 * self.shuffle(self.second(dense))


class CodeEncoder(nn.Module):
    """A convolutional encoder whose places take the nearest entry of a codebook."""

    def __init__(self, codebook):
        super().__init__()
        self.body, self.codebook = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.SiLU(), nn.Conv2d(8, 4, 1)), codebook

    def forward(self, image):
        rows = self.body(image).permute(0, 2, 3, 1)
        squares = rows.square().sum(-1, keepdim=True)
        return (squares - 2 * rows @ self.codebook.weight.T + self.codebook.weight.square().sum(1)).argmin(-1)


class CodeDecoder(nn.Module):
    """The entries of the codes, and transposed convolutions."""

    def __init__(self, codebook):
        super().__init__()
        self.codebook = codebook
        self.body = nn.Sequential(nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh())

    def forward(self, codes):
        return self.body(self.codebook(codes).permute(0, 3, 1, 2))


def _modules(modules, inputs, axes=None, settings=None):
    torch.manual_seed(0)
    made = {name: module.eval() for name, module in modules().items()}
    specs = {graph: tuple(map(parse_spec, listed)) for graph, listed in inputs.items()}
    return Modules("module", "tiny", "0" * 64, "CC0-1.0", made, specs, {}, BATCH | (axes or {}), settings or {})


def _vq():
    codebook = nn.Embedding(8, 4)
    return {"encoder": CodeEncoder(codebook), "decoder": CodeDecoder(codebook)}


def _styles():
    return {
        "mapping": stylegan2.Mapping(latent=8, layers=2),
        "synthesis": stylegan2.Synthesis(size=16, style=8, widths=(8, 8, 4)),
    }


def _vae():
    sizes = {"latent": 4, "size": 8, "width": 4, "classes": 3}
    return {"encoder": cvae.Encoder(**sizes), "decoder": cvae.Decoder(**sizes)}


_SCHEDULE = {"kind": "linear", "prediction": "noise", "clip": 1.0, "beta_start": 0.0001, "beta_end": 0.02}
_STYLES_IN = ["w float32[batch, 6, 8]", *(f"noise.{n} float32[batch, 1, {s}, {s}]" for n, s in enumerate((4, 8, 8, 16, 16)))]

MODULES = {  # name: (family, its source)
    "gan": ("gan", lambda: _modules(
        lambda: {"": dcgan.Generator(latent=8, size=16, width=4, classes=3)},
        {"": ["z float32[batch, 8]", "class_ids int64[batch]"]}, settings={"classes": 3})),
    "stylegan": ("gan", lambda: _modules(_styles, {"mapping": ["z float32[batch, 8]"], "synthesis": _STYLES_IN})),
    "image_to_image": ("gan", lambda: _modules(
        lambda: {"": Upscaler()}, {"": ["image float32[batch, 3, height, width]"]}, SIDES)),
    "vae": ("vae", lambda: _modules(_vae, {
        "encoder": ["image float32[batch, 1, 8, 8]", "class_ids int64[batch]"],
        "decoder": ["latent float32[batch, 4]", "class_ids int64[batch]"]}, settings={"classes": 3})),
    "vq_vae": ("vae", lambda: _modules(_vq, {"encoder": ["image float32[batch, 3, 8, 8]"]}, settings={"codes": 8})),
    "diffusion": ("diffusion", lambda: _modules(
        lambda: {"denoiser": ClassUNet(size=8, widths=(8, 16), groups=4, classes=3)},
        {"denoiser": ["sample float32[batch, 1, 8, 8]", "timestep float32[batch]", "class_ids int64[batch]"]},
        settings={"schedule": _SCHEDULE, "stepper": "ddim", "steps": 2, "classes": 3, "null_class": 3})),
    "features": ("features", lambda: _modules(
        lambda: {"": classifier.Features(widths=(4, 8))}, {"features": ["image float32[batch, 1, 8, 8]"]})),
}  # fmt: skip
DIRECTORIES = {**PIPELINES, "ddpm": lambda _folder: ddpm()}  # of the diffusers library


def export_tiny(name: str, precision: str, folder: Path) -> Path:
    """The bundle of a tiny model, below `folder`."""
    bundle = folder / f"{name}-{precision}.bundle"
    if name in MODULES:
        family, source = MODULES[name]
        module, _, function = FAMILIES[family].partition(":")
        getattr(importlib.import_module(module), function)(Request(source(), bundle, precision, name), lambda *_: None)
    else:
        made = folder / f"{name}-{precision}"
        made.mkdir()
        directory = saved(made / "saved", DIRECTORIES[name](made))
        export(str(directory), bundle, precision=precision)
    return bundle
