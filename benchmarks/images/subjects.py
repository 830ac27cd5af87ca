"""What is measured: models as PyTorch modules with random weights (speed does not depend on them), and what they are fed.

Runs in every worker of PyTorch and where the bundles are made; nothing is imported before it is used.
"""

import itertools
from dataclasses import dataclass, field

SEED = 0


@dataclass(frozen=True)
class Subject:
    """Modules by graph as a recipe gives them, and the graph that is measured, with its inputs as text.

    Attributes:
        steps: 0 where runs of the graph are measured; else whole images of so many steps are.
        bundle: the name of its bundle; subjects of one model share it.
        fp16: whether its bundle in float16 is measured, too.
        most_plain: the largest batch that onnxruntime on its own is given; it keeps all scores of attention in memory.
    """

    name: str
    family: str
    graph: str
    modules: dict
    inputs: dict
    outputs: dict
    axes: dict
    settings: dict = field(default_factory=dict)
    batches: tuple = (1, 8)
    steps: int = 0
    bundle: str = ""
    fp16: bool = False
    most_plain: int = 8

    @property
    def module(self):
        return self.modules[self.graph].eval()

    @property
    def bundle_name(self):
        return self.bundle or self.name


def make(name):
    """The subject of that name, the same weights each time."""
    import torch

    torch.manual_seed(SEED)
    return SUBJECTS[name](name)


def feeds(subject, batch):
    """Inputs of the measured graph by name: torch tensors, the same each time."""
    import torch

    from edgegen.export.parts import parse_spec

    generator, found = torch.Generator().manual_seed(SEED), {}
    opt = {axis: sizes[1] for axis, sizes in subject.axes.items()} | {"batch": batch}
    for spec in map(parse_spec, subject.inputs[subject.graph]):
        sizes = [opt[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        is_float = spec.dtype == "float32"
        found[spec.name] = (
            torch.randn(sizes, generator=generator) if is_float else torch.zeros(sizes, dtype=getattr(torch, spec.dtype))
        )
    return found


def _gan(name, generator, *, fp16=False):
    return Subject(
        name, "gan", "generator", {"generator": generator},
        {"generator": ("z float32[batch, 100]",)}, {"generator": ("image float32[batch, 3, 64, 64]",)}, {"batch": (1, 1, 16)},
        fp16=fp16,
    )  # fmt: skip


def _dcgan(name):
    """The generator of Radford et al. 2016 (arXiv:1511.06434) in the size that PyTorch's tutorial made the usual one."""
    import torch

    class Generator(torch.nn.Sequential):
        def __init__(self, widths=(100, 512, 256, 128, 64, 3)):
            layers = []
            for place, (before, after) in enumerate(itertools.pairwise(widths)):
                stride, padding = (2, 1) if place else (1, 0)  # 1x1 becomes 4x4, which is then doubled
                layers.append(torch.nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False))
                is_last = place == len(widths) - 2
                layers += [torch.nn.Tanh()] if is_last else [torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
            super().__init__(*layers)

        def forward(self, z):
            return super().forward(z[:, :, None, None])

    return _gan(name, Generator(), fp16=True)


def _wide_dcgan(name):
    """The generator of edgegen's own recipes: twice as wide, and a 3x3 convolution at its end."""
    from edgegen.models.dcgan import Generator

    return _gan(name, Generator(latent=100, size=64, channels=3, width=64))


def _of_recipe(file, graph):
    def build(name):
        from pathlib import Path

        from edgegen.export.recipe import load_recipe

        recipe = load_recipe(Path(__file__).parents[2] / "export" / file)
        modules = recipe.modules()
        modules = modules if isinstance(modules, dict) else {graph: modules}
        outputs = recipe.outputs or {graph: ("image_out float32[batch, 3, height_out, width_out]",)}
        return Subject(name, "gan", graph, modules, recipe.inputs, outputs, recipe.axes, recipe.settings)

    return build


def _vae(size, batches, *, fp16=False):
    def build(name):
        import torch
        from diffusers import AutoencoderKL

        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(32, 64, 64), latent_channels=4, norm_num_groups=16,
        )  # fmt: skip

        class Decoder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.post, self.decoder = model.post_quant_conv, model.decoder

            def forward(self, latent):
                return self.decoder(self.post(latent))

        class Encoder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.quant = model.encoder, model.quant_conv

            def forward(self, image):
                return self.quant(self.encoder(image)).chunk(2, dim=1)

        small = size // 4
        latent = f"float32[batch, 4, {small}, {small}]"
        return Subject(
            name, "vae", "decoder", {"encoder": Encoder(), "decoder": Decoder()},
            {"encoder": (f"image float32[batch, 3, {size}, {size}]",), "decoder": (f"latent {latent}",)},
            {"encoder": (f"mean {latent}", f"log_variance {latent}"), "decoder": (f"image float32[batch, 3, {size}, {size}]",)},
            {"batch": (1, 1, 8)}, batches=batches, fp16=fp16, most_plain=8 if size < 512 else 1,
        )  # fmt: skip

    return build


def unet():
    """A small U-Net: 32 x 32, attention at the lower half."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(32, 64, 128), layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), norm_num_groups=16,
    )  # fmt: skip


def _unet(steps):
    def build(name):
        import torch

        class Denoiser(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.unet = unet()

            def forward(self, sample, timestep):
                return self.unet(sample, timestep).sample

        return Subject(
            name, "diffusion", "denoiser", {"denoiser": Denoiser()},
            {"denoiser": ("sample float32[batch, 3, 32, 32]", "timestep float32[batch]")},
            {"denoiser": ("prediction float32[batch, 3, 32, 32]",)}, {"batch": (1, 1, 16)}, steps=steps, bundle="unet",
        )  # fmt: skip

    return build


SUBJECTS = {
    "dcgan": _dcgan,
    "dcgan-wide": _wide_dcgan,
    "stylegan2-synthesis": _of_recipe("stylegan2_emoji.py", "synthesis"),
    "esrgan-slim": _of_recipe("esrgan_slim_x2.py", "translator"),
    "vae-128": _vae(128, (1, 8), fp16=True),
    "vae-512": _vae(512, (1, 8)),
    "unet-step": _unet(0),
    "ddim-20": _unet(20),
}
