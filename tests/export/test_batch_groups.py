"""Convolutions with a kernel for each image, as StyleGAN2 writes them: captured for any batch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from own_modules import captured, declared
from torch import nn
from torch.nn import functional as F

from edgegen.errors import CaptureError
from edgegen.export import substitutes


class Modulated(nn.Module):
    """Weights times styles, all images in one convolution of `batch` groups."""

    def __init__(self, transposed: bool = False, **options) -> None:
        super().__init__()
        self.transposed, self.options = transposed, options
        shape = (1, 3, 5, 4, 4) if transposed else (1, 5, 3, 3, 2)
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def forward(self, x, style):
        batch, channels, height, width = x.shape
        if self.transposed:
            kernels = (self.weight * style[:, :, None, None, None]).reshape(batch * channels, 5, 4, 4)
            convolve = F.conv_transpose2d
        else:
            kernels = (self.weight * style[:, None, :, None, None]).reshape(batch * 5, channels, 3, 2)
            convolve = F.conv2d
        made = convolve(x.reshape(1, batch * channels, height, width), kernels, groups=batch, **self.options)
        return made.reshape(batch, 5, *made.shape[2:])


class Resampled(nn.Module):
    """As NVIDIA's code doubles the size: upsampling and a filter on all images at once."""

    def forward(self, x, style):
        kernels = style[:, None, :, None, None].expand(-1, 5, -1, 3, 3).reshape(-1, 3, 3, 3)
        whole = x.reshape(1, -1, *x.shape[2:])
        made = substitutes.conv2d_resample(whole, kernels, torch.ones(4, 4) / 16, up=2, padding=1, groups=x.shape[0])
        return made.reshape(x.shape[0], 5, *made.shape[2:])


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Modulated(padding=1), "8, 7"),
        (Modulated(stride=(2, 1), padding=(0, 1)), "3, 7"),
        (Modulated(transposed=True, stride=2), "18, 14"),
        (Modulated(transposed=True, stride=2, padding=1, output_padding=1), "17, 13"),
        (Resampled(), "16, 12"),
    ],
    ids=["plain", "strided", "transposed", "transposed and cropped", "resampled"],
)
def test_a_kernel_for_each_image_is_captured_for_any_batch(module: nn.Module, shape: str):
    run = captured(
        declared(module.eval(), ["x float32[batch, 3, 8, 6]", "style float32[batch, 3]"], [f"y float32[batch, 5, {shape}]"])
    )
    for batch in (1, 3):
        x, style = torch.randn(batch, 3, 8, 6), torch.randn(batch, 3)
        with torch.no_grad():
            np.testing.assert_allclose(run(x, style)[0], module(x, style).numpy(), atol=1e-4)  # sums of 48 in another order


def test_other_groups_that_follow_an_axis_are_named_with_the_cure():
    module = Modulated(padding=2, dilation=2).eval()
    part_of = ["x float32[batch, 3, 8, 6]", "style float32[batch, 3]"]
    with pytest.raises(CaptureError, match="follows a size that varies; fix that size: --axis batch=1"):
        captured(declared(module, part_of, ["y float32[batch, 5, 8, 8]"]))
