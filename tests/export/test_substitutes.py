"""StyleGAN's operators in PyTorch, and where they are swapped."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from own_modules import captured, package_in
from torch.nn import functional as F

from edgegen.errors import CaptureError
from edgegen.export import export, substitutes
from edgegen.export.declare import Declared, declare
from edgegen.export.parts import Part
from edgegen.export.sources import open_source


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with package_in(tmp_path, monkeypatch) as folder:
        yield folder


def slow_upfirdn(x: np.ndarray, kernel: np.ndarray, up: int, down: int, sides: tuple[int, int, int, int]) -> np.ndarray:
    """The definition, pixel by pixel: zeros between, padding, convolution, every `down`-th kept."""
    left, right, top, bottom = sides
    height, width = x.shape
    spread = np.zeros((height * up, width * up))
    spread[::up, ::up] = x
    spread = np.pad(spread, ((top, bottom), (left, right)))
    high, wide = kernel.shape
    rows, columns = spread.shape[0] - high + 1, spread.shape[1] - wide + 1
    out = np.zeros((rows, columns))
    for row, column, i, j in itertools.product(range(rows), range(columns), range(high), range(wide)):
        out[row, column] += spread[row + i, column + j] * kernel[high - 1 - i, wide - 1 - j]
    return out[::down, ::down]


@pytest.mark.parametrize(
    ("up", "down", "sides"), [(1, 1, (1, 2, 0, 1)), (2, 1, (2, 1, 2, 1)), (1, 2, (1, 1, 1, 1)), (3, 2, (0, 2, 1, 0))]
)
def test_upfirdn2d_is_what_it_is_defined_to_be(up: int, down: int, sides: tuple[int, int, int, int]):
    x, kernel = torch.randn(2, 3, 5, 6), torch.randn(4, 3)
    made = substitutes.upfirdn2d(x, kernel, up, down, sides, gain=2.0)
    for image, channel in itertools.product(range(2), range(3)):
        wanted = 2 * slow_upfirdn(x[image, channel].double().numpy(), kernel.double().numpy(), up, down, sides)
        np.testing.assert_allclose(made[image, channel].numpy(), wanted, atol=1e-4)  # float32 sums of 12 products


def test_a_filter_for_both_directions_is_their_product_and_negative_padding_crops():
    x, taps = torch.randn(1, 2, 6, 6), torch.tensor([1.0, 3.0, 2.0])
    both = substitutes.upfirdn2d(x, taps, padding=(1, -1, 1, -1), gain=4)
    assert torch.allclose(both, substitutes.upfirdn2d(x, taps[:, None] * taps, padding=(1, -1, 1, -1), gain=4), atol=1e-4)


def test_conv2d_resample_is_a_plain_convolution_where_nothing_is_resampled():
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    assert torch.allclose(substitutes.conv2d_resample(x, w, padding=1), F.conv2d(x, w, padding=1), atol=1e-5)
    f = torch.ones(4, 4) / 16
    assert substitutes.conv2d_resample(x, w, f, up=2, padding=1).shape == (1, 3, 10, 10)
    assert substitutes.conv2d_resample(x, w, f, down=2, padding=1).shape == (1, 3, 2, 2)
    doubled = substitutes.conv2d_resample(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 1, 1), f, up=2)
    assert torch.allclose(doubled[0, 0, 4:-4, 4:-4], torch.ones(8, 8))  # upsampling keeps the brightness


def test_bias_act_has_gains_and_clamps():
    x, b = torch.randn(2, 3, 4), torch.randn(3)
    made = substitutes.bias_act(x, b, act="lrelu", clamp=0.5)
    assert torch.allclose(made, (F.leaky_relu(x + b[:, None], 0.2) * 2**0.5).clamp(-0.5, 0.5))
    assert torch.allclose(substitutes.fused_leaky_relu(x, b), F.leaky_relu(x + b[:, None], 0.2) * 2**0.5)


CUDA_OPS = """
from torch.utils.cpp_extension import load
plugin = load("upfirdn2d", sources=["upfirdn2d.cu"])

def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    return plugin.upfirdn2d(input, kernel, up, down, *pad)

def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
    return plugin.fused(input, bias, negative_slope, scale)

def other(input):
    return plugin.other(input)
"""
FAKE_GAN = """
import torch
from torch import nn
from fake_ops import fused_leaky_relu, other, upfirdn2d

class Styled(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(2))
        self.register_buffer("kernel", torch.ones(4, 4) / 4)

    def forward(self, x):
        return upfirdn2d(fused_leaky_relu(x, self.bias), self.kernel, 2, 1, (2, 1))

class Mapping(nn.Module):
    def forward(self, z):
        return fused_leaky_relu(z[:, :, None], torch.zeros(2))[:, :, 0]

class Synthesis(Styled):
    def forward(self, w):
        x = super().forward(w[:, :, :, None].expand(-1, -1, -1, 4))
        return (x + torch.randn(w.shape[0], 1, *x.shape[2:]))[:, :1], None  # as StyleGAN2 gives it: image and no latents

def styles():
    return {"mapping": Mapping(), "synthesis": Synthesis()}

class Other(nn.Module):
    def forward(self, x):
        return other(x)
"""


@pytest.fixture
def stylegan(package: Path):
    (package / "fake_ops.py").write_text(CUDA_OPS)
    (package / "fake_gan.py").write_text(FAKE_GAN)
    return package


def test_cuda_operators_of_stylegan_are_swapped_wherever_they_were_imported(stylegan: Path):
    opened = open_source("fake_gan:Styled")
    declare_it = Declared(["x float32[batch, 2, 4, 4]"], ["image float32[batch, 2, 8, 8]"], ["batch=1..2..4"])
    opened = declare(opened, declare_it, "gan")
    part = Part(opened.modules[""], opened.inputs[""], opened.outputs[""])
    x = torch.randn(3, 2, 4, 4)
    wanted = substitutes.upfirdn2d(F.leaky_relu(x + 1, 0.2) * 2**0.5, torch.ones(4, 4) / 4, 2, 1, (2, 1, 2, 1))
    np.testing.assert_allclose(captured(part)(x)[0], wanted.numpy(), atol=1e-5)  # sums of 16 products
    original = sys.modules["fake_gan"].upfirdn2d
    with substitutes.reference_operators():
        assert sys.modules["fake_gan"].upfirdn2d is not original
    assert sys.modules["fake_gan"].upfirdn2d is original


def test_a_mapping_and_a_synthesis_of_cuda_operators_become_a_bundle(stylegan: Path):
    inputs = ["mapping: z float32[batch, 2]", "synthesis: w float32[batch, 2, 2]"]
    outputs = ["synthesis: image float32[batch, 1, 4, 8]"]
    made = export("fake_gan:styles", stylegan / "s.bundle", family="gan", inputs=inputs, outputs=outputs)
    assert made.fidelity[0].failure is None


def test_another_cuda_operator_is_named_with_its_cure(stylegan: Path):
    with pytest.raises(
        CaptureError, match=r"CUDA extension upfirdn2d was called \(other\); edgegen replaces upfirdn2d, .*torch"
    ):
        declare(open_source("fake_gan:Other"), Declared(["x float32[batch, 2]"], ["y float32[batch, 2]"]), "gan")


def test_a_function_that_only_shares_the_name_is_not_swapped_silently(package: Path):
    (package / "fake_ops.py").write_text("def bias_act(x, b=None, dim=1, act='linear'):\n    return x * 7\n")
    sys.path.insert(0, str(package))
    import fake_ops  # noqa: F401

    with (
        pytest.raises(CaptureError, match=r"fake_ops\.bias_act gives other numbers than StyleGAN's operator"),
        substitutes.reference_operators(),
    ):
        pass


def test_an_original_that_runs_on_the_cpu_is_held_to_its_substitute_and_swapped(package: Path):
    def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
        planes = [[slow_upfirdn(plane, f.numpy(), up, down, tuple(padding)) for plane in image] for image in x.double().numpy()]
        return torch.from_numpy(np.array(planes)).float()

    (package / "fake_ops.py").write_text("")
    sys.path.insert(0, str(package))
    import fake_ops

    upfirdn2d.__module__ = "fake_ops"
    fake_ops.upfirdn2d = upfirdn2d
    with substitutes.reference_operators():
        assert fake_ops.upfirdn2d is substitutes.upfirdn2d
