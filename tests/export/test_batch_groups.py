"""Convolutions with a kernel for each image, as StyleGAN2 writes them: captured for any batch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from own_modules import captured, declared
from torch import nn
from torch.nn import functional as F

from edgegen.errors import CaptureError
from edgegen.export import batch_groups, substitutes

OPTIONS = [{"padding": 1}, {"stride": (2, 1), "padding": (0, 1)}, {"stride": 2}]
TRANSPOSED = [{"stride": 2}, {"stride": 2, "padding": 1, "output_padding": 1}, {"stride": (1, 3), "padding": (2, 0)}]


@pytest.mark.parametrize("options", OPTIONS)
def test_without_groups_a_convolution_gives_the_same(options: dict):
    x, weight = torch.randn(1, 3 * 4, 8, 7), torch.randn(3 * 5, 4, 3, 2)
    made = batch_groups.convolved({"input": x, "weight": weight, **options}, 3)
    assert torch.allclose(made, F.conv2d(x, weight, groups=3, **options), atol=1e-4)  # sums of 24 in another order


@pytest.mark.parametrize("options", TRANSPOSED)
def test_without_groups_a_transposed_convolution_gives_the_same(options: dict):
    x, weight = torch.randn(1, 3 * 4, 8, 7), torch.randn(3 * 4, 5, 4, 3)
    made = batch_groups.transposed({"input": x, "weight": weight, **options}, 3)
    assert torch.allclose(made, F.conv_transpose2d(x, weight, groups=3, **options), atol=1e-4)  # as above


class Modulated(nn.Module):
    """StyleGAN2's way: weights times styles, all images in one convolution of `batch` groups; then as NVIDIA doubles sizes."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(torch.randn(1, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, x, style):
        batch, channels, height, width = x.shape
        plain = (self.weight * style[:, None, :, None, None]).reshape(batch * 3, channels, 2, 2)
        whole = F.conv2d(x.reshape(1, -1, height, width), plain, groups=batch, **self.options)
        turned = (self.weight * style[:, :, None, None, None]).reshape(batch * channels, 3, 2, 2)
        whole = F.conv_transpose2d(whole, turned, stride=2, padding=1, groups=batch)
        whole = substitutes.conv2d_resample(whole, plain, torch.ones(4, 4) / 16, up=2, padding=1, groups=batch)
        return whole.reshape(batch, 3, *whole.shape[2:])


def test_a_kernel_for_each_image_is_captured_for_any_batch():
    module = Modulated(padding=(1, 2)).eval()
    takes = ["x float32[batch, 3, 8, 6]", "style float32[batch, 3]"]
    run = captured(declared(module, takes, ["y float32[batch, 3, 33, 33]"]))
    for batch in (1, 3):
        x, style = torch.randn(batch, 3, 8, 6), torch.randn(batch, 3)
        with torch.no_grad():
            wanted = module(x, style).numpy()
        np.testing.assert_allclose(run(x, style)[0], wanted, atol=1e-5 * np.abs(wanted).max())  # three sums in another order


def test_other_groups_that_follow_an_axis_are_named_with_the_cure():
    class Dilated(nn.Module):
        def forward(self, x):
            kernels = torch.ones(3, 1, 1, 1).repeat(x.shape[0], 1, 1, 1)
            made = F.conv2d(x.reshape(1, -1, 2, 2), kernels, groups=x.shape[0] * 3, dilation=2)
            return made.reshape(x.shape)

    with pytest.raises(CaptureError, match="follows a size that varies; fix that size: --axis batch=1"):
        captured(declared(Dilated(), ["x float32[batch, 3, 2, 2]"], ["y float32[batch, 3, 2, 2]"]))
