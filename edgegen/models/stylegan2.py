"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958) of standard operators: mapping, synthesis with noise inputs, discriminator.

Modulated convolutions scale what goes in by the style and what comes out by the demodulation: equal to scaling the weights, and
the weights stay the same for every image of a batch, so that they become plain convolutions of any batch size.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (128, 128, 96, 64, 32)  # channels at 4x4, 8x8, ..., 64x64: two cores train it in half an hour
_GAIN = math.sqrt(2.0)  # of leaky ReLU: keeps the variance


class EqualLinear(nn.Module):
    """A linear layer whose weights are stored with deviation 1 / `speed` and scaled when used (equalized learning rate)."""

    def __init__(self, before: int, after: int, *, bias: float = 0.0, speed: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before) / speed)
        self.bias = nn.Parameter(torch.full((after,), bias / speed))
        self.scale, self.speed = speed / math.sqrt(before), speed

    def forward(self, x: Tensor) -> Tensor:
        """X [batch, before] -> [batch, after]."""
        return F.linear(x, self.weight * self.scale, self.bias * self.speed)


class EqualConv(nn.Module):
    """A convolution with equalized learning rate, which may halve the image after a blur."""

    def __init__(self, before: int, after: int, kernel: int, *, bias: bool = True, halve: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        self.scale, self.kernel = 1.0 / math.sqrt(before * kernel**2), kernel
        self.blur = Blur(before, 1.0) if halve else None

    def forward(self, x: Tensor) -> Tensor:
        """X [batch, before, height, width] -> [batch, after, ...]."""
        if self.blur is None:
            return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.kernel // 2)
        padding = (self.kernel + 1) // 2  # the blurred side is then even (1x1) or odd (3x3), and the halved one exact
        return F.conv2d(self.blur(x, padding), self.weight * self.scale, self.bias, stride=2)


class Blur(nn.Module):
    """The filter [1, 3, 3, 1] in both directions, for each channel alone; its sum is `gain`."""

    kernel: Tensor

    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = torch.outer(line, line)
        self.channels = channels
        self.register_buffer("kernel", (kernel / kernel.sum() * gain).expand(channels, 1, 4, 4).contiguous(), persistent=False)

    def forward(self, x: Tensor, padding: int) -> Tensor:
        """X [batch, channel, height, width] -> the same with `2 * padding - 3` more rows and columns."""
        return F.conv2d(x, self.kernel, padding=padding, groups=self.channels)


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, and whose outputs, unless `plain`, get variance 1."""

    def __init__(self, before: int, after: int, kernel: int, style: int, *, double: bool = False, plain: bool = False) -> None:
        super().__init__()
        self.affine = EqualLinear(style, before, bias=1.0)
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.scale, self.kernel, self.demodulate = 1.0 / math.sqrt(before * kernel**2), kernel, not plain
        self.blur = Blur(after, 4.0) if double else None  # 4: three of four pixels were zero

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """X [batch, before, height, width], w [batch, style] -> [batch, after, ...], twice as large with `double`."""
        style = self.affine(w)  # [batch, before]
        weight = self.weight * self.scale
        x = x * style[:, :, None, None]
        if self.blur is None:
            x = F.conv2d(x, weight, padding=self.kernel // 2)
        else:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), 1)
        if self.demodulate:
            energy = F.linear(style.square(), weight.square().sum((2, 3)))  # [batch, after]
            x = x * torch.rsqrt(energy + 1e-8)[:, :, None, None]
        return x


class StyledLayer(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, before: int, after: int, style: int, *, double: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv(before, after, 3, style, double=double)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """Noise [batch, 1, height, width], of the size that comes out."""
        x = self.conv(x, w) + noise * self.strength + self.bias[None, :, None, None]
        return F.leaky_relu(x, 0.2) * _GAIN


class Mapping(nn.Module):
    """z float32[batch, latent] (, class_ids int64[batch]) -> w float32[batch, latent]: `layers` linear layers."""

    def __init__(self, *, latent: int = 128, layers: int = 4, classes: int = 0) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.embedding = nn.Embedding(classes, latent) if classes else None
        first = EqualLinear(latent * (2 if classes else 1), latent, speed=0.01)
        self.layers = nn.ModuleList([first, *(EqualLinear(latent, latent, speed=0.01) for _ in range(layers - 1))])

    def forward(self, z: Tensor, class_ids: Tensor | None = None) -> Tensor:
        """With `classes`, `class_ids` must be given."""
        x = _normalized(z)
        if self.embedding is not None:
            x = torch.cat([x, _normalized(self.embedding(class_ids))], dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2) * _GAIN
        return x


class Synthesis(nn.Module):
    """w float32[batch, layers, style], noise.i float32[batch, 1, side, side] -> image float32[batch, channel, size, size].

    From a learned 4x4 constant, one convolution there and two at each doubling, each with its noise; each resolution adds
    to the image (skip architecture). Layer i of `w` styles convolution i; the last one, the last image.

    Args:
        size: of the image: a power of two, at least 8.
        style: length of w.
        widths: channels of each resolution, from 4x4 up.
        channels: of the image.
    """

    def __init__(
        self, *, size: int = 64, style: int = 128, widths: Sequence[int] = (128, 128, 96, 64, 32), channels: int = 3
    ) -> None:
        super().__init__()
        if size != 4 * 2 ** (len(widths) - 1):
            raise ValueError(f"{len(widths)} widths make images of {4 * 2 ** (len(widths) - 1)} pixels, not {size}")
        self.size, self.style, self.channels = size, style, channels
        self.constant = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        convs = [StyledLayer(widths[0], widths[0], style, double=False)]
        for before, after in pairwise(widths):
            convs += [StyledLayer(before, after, style, double=True), StyledLayer(after, after, style, double=False)]
        self.convs = nn.ModuleList(convs)
        self.to_image = nn.ModuleList([ModulatedConv(width, channels, 1, style, plain=True) for width in widths])
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(channels)) for _ in widths])
        self.noise_sides = [4, *(4 * 2 ** ((i + 1) // 2) for i in range(1, len(convs)))]
        self.layers = len(convs) + 1

    def noise(self, count: int, device: torch.device | None = None) -> list[Tensor]:
        """Standard normal noise for `count` images, from torch's generator."""
        return [torch.randn(count, 1, side, side, device=device) for side in self.noise_sides]

    def forward(self, w: Tensor, *noise: Tensor) -> Tensor:
        """Make images, about -1 to 1."""
        x: Tensor = self.convs[0](self.constant.expand(w.shape[0], -1, -1, -1), w[:, 0], noise[0])
        image: Tensor = self.to_image[0](x, w[:, 1]) + self.bias[0][None, :, None, None]
        for level in range(1, len(self.to_image)):
            for i in (2 * level - 1, 2 * level):
                x = self.convs[i](x, w[:, i], noise[i])
            # Bilinear doubling is the filter [1, 3, 3, 1] over zeros between the pixels, but for the border, which it repeats.
            image = F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
            image = image + self.to_image[level](x, w[:, 2 * level + 1]) + self.bias[level][None, :, None, None]
        return image


class Discriminator(nn.Module):
    """image float32[batch, channel, size, size] -> logit float32[batch]: residual blocks, minibatch deviation, linear layers.

    `widths` from 4x4 up to the full resolution. The deviation over groups of `group` images, or fewer where the batch is no
    multiple of it, shows a lack of variety (Karras 2018, arXiv:1710.10196).
    """

    def __init__(self, *, size: int = 64, widths: Sequence[int] = WIDTHS, channels: int = 3, group: int = 4) -> None:
        super().__init__()
        if size != 4 * 2 ** (len(widths) - 1):
            raise ValueError(f"{len(widths)} widths judge images of {4 * 2 ** (len(widths) - 1)} pixels, not {size}")
        self.group = group
        down = list(reversed(widths))
        self.first = EqualConv(channels, down[0], 1)
        self.blocks = nn.ModuleList([_Block(before, after) for before, after in pairwise(down)])
        self.conv = EqualConv(widths[0] + 1, widths[0], 3)
        self.linear = EqualLinear(widths[0] * 16, widths[0])
        self.last = EqualLinear(widths[0], 1)

    def forward(self, image: Tensor) -> Tensor:
        """Judge images: above 0 is real."""
        x = F.leaky_relu(self.first(image), 0.2) * _GAIN
        for block in self.blocks:
            x = block(x)
        x = torch.cat([x, self._deviation(x)], dim=1)
        x = F.leaky_relu(self.conv(x), 0.2) * _GAIN
        x = F.leaky_relu(self.linear(x.flatten(1)), 0.2) * _GAIN
        logit: Tensor = self.last(x)[:, 0]
        return logit

    def _deviation(self, x: Tensor) -> Tensor:
        """[batch, 1, height, width]: the mean deviation over each group, the same number at each place."""
        batch, channels, height, width = x.shape
        group = next(size for size in range(min(self.group, batch), 0, -1) if batch % size == 0)
        grouped = x.view(group, batch // group, channels, height, width)
        spread = torch.sqrt(grouped.var(0, correction=0) + 1e-8).mean((1, 2, 3))  # [batch / group]
        return spread.repeat(group)[:, None, None, None].expand(batch, 1, height, width)


class _Block(nn.Module):
    """Two convolutions and a shortcut, halving the image."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv, self.halving = EqualConv(before, before, 3), EqualConv(before, after, 3, halve=True)
        self.shortcut = EqualConv(before, after, 1, bias=False, halve=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.leaky_relu(self.conv(x), 0.2) * _GAIN
        y = F.leaky_relu(self.halving(y), 0.2) * _GAIN
        total: Tensor = (y + self.shortcut(x)) / _GAIN
        return total


def _normalized(x: Tensor) -> Tensor:
    """Each row scaled to a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
