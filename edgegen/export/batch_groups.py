"""Convolutions with a kernel for each image, written as one with `groups=batch`, where the batch varies.

StyleGAN2's modulated convolutions are usually written so. In a graph the number of groups is a fixed attribute; here each of
the kernel's taps becomes one matrix product for the whole batch instead, which needs no copy of the patches.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PARAMETERS = {
    torch.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    torch.conv_transpose2d: ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
}


class BatchGroups(TorchFunctionMode):
    """Computes convolutions whose number of groups is symbolic, so follows an axis, without groups."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if function not in _PARAMETERS:
            return function(*args, **options)
        given = dict(zip(_PARAMETERS[function], args, strict=False)) | options
        groups = given.pop("groups", 1)
        if (
            not isinstance(groups, torch.SymInt)
            or isinstance(given.get("padding"), str)
            or _pair(given, "dilation", 1) != (1, 1)
        ):
            return function(*args, **options)
        made = (convolved if function is torch.conv2d else transposed)(given, groups)
        bias = given.get("bias")
        return made if bias is None else made + bias.reshape(1, -1, 1, 1)


def convolved(given: dict[str, Any], groups: torch.SymInt) -> torch.Tensor:
    """As torch.conv2d: input [1, groups * channels, height, width], weight [groups * made, channels, taps, taps]."""
    x, weight = given["input"], given["weight"]
    (down, across), (pad_y, pad_x) = _pair(given, "stride", 1), _pair(given, "padding", 0)
    made, (channels, rows, columns) = weight.shape[0] // groups, weight.shape[1:]
    x = F.pad(x.reshape(groups, channels, *x.shape[2:]), (pad_x, pad_x, pad_y, pad_y))
    height, width = (x.shape[2] - rows) // down + 1, (x.shape[3] - columns) // across + 1
    kernels = weight.reshape(groups, made, channels, rows, columns)
    total: Any = 0
    for row, column in itertools.product(range(rows), range(columns)):
        seen = x[:, :, row : row + (height - 1) * down + 1 : down, column : column + (width - 1) * across + 1 : across]
        total = total + torch.matmul(kernels[..., row, column], seen.reshape(groups, channels, height * width))
    result: torch.Tensor = total.reshape(1, groups * made, height, width)
    return result


def transposed(given: dict[str, Any], groups: torch.SymInt) -> torch.Tensor:
    """As torch.conv_transpose2d: input [1, groups * channels, height, width], weight [groups * channels, made, taps, taps]."""
    x, weight = given["input"], given["weight"]
    (up, along), (pad_y, pad_x) = _pair(given, "stride", 1), _pair(given, "padding", 0)
    more_y, more_x = _pair(given, "output_padding", 0)
    channels, (made, rows, columns) = weight.shape[0] // groups, weight.shape[1:]
    height, width = x.shape[2:]
    full_y, full_x = (height - 1) * up + rows + more_y, (width - 1) * along + columns + more_x
    pixels, kernels = x.reshape(groups, channels, height * width), weight.reshape(groups, channels, made, rows, columns)
    total: Any = 0
    for row, column in itertools.product(range(rows), range(columns)):
        part = torch.matmul(kernels[..., row, column].transpose(1, 2), pixels).reshape(groups, made, height, 1, width, 1)
        spread = F.pad(part, (0, along - 1, 0, 0, 0, up - 1)).reshape(groups, made, height * up, width * along)
        ends = full_x - width * along - column, full_y - height * up - row  # below zero they crop what is empty
        total = total + F.pad(spread, (column, ends[0], row, ends[1]))
    result: torch.Tensor = total[:, :, pad_y : full_y - pad_y, pad_x : full_x - pad_x]
    return result.reshape(1, groups * made, *result.shape[2:])


def _pair(given: dict[str, Any], name: str, usual: int) -> tuple[int, int]:
    value: int | Sequence[int] = given.get(name, usual)
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
