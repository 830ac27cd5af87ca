"""Weights in blocks of symmetric integers: round to nearest, with the scale of each block chosen by its squared error.

A block of `block_size` consecutive inputs of one output row shares a float16 scale. There is no zero point: it is the one form
that TensorRT and onnxruntime both accept. Searching the scale below the block's maximum (clipping a few weights to gain
resolution for the others) is the usual mean-square criterion, e.g. Banner et al., "Post training 4-bit quantization of
convolutional networks", NeurIPS 2019.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK_SIZE = 32
# Shares of the block's largest weight that the largest code may stand for; 1.0 clips nothing.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
_ROWS = 4096  # rows at a time: bounds the memory of the search


@dataclass(frozen=True)
class Quantized:
    """One matrix: codes int8 [out, in] in -2^(bits-1) .. 2^(bits-1)-1, scales float16 [out, ceil(in / block_size)]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    bits: int
    block_size: int

    def dequantize(self) -> torch.Tensor:
        """The weights that the codes stand for: float32 [out, in]. Exactly what a backend computes with."""
        rows, columns = self.codes.shape
        scales = np.repeat(self.scales.astype(np.float32), self.block_size, axis=1)[:, :columns]
        return torch.from_numpy(np.multiply(self.codes, scales, dtype=np.float32).reshape(rows, columns))


def quantize(weight: torch.Tensor, bits: int, block_size: int = BLOCK_SIZE) -> Quantized:
    """Quantize float32 [out, in]."""
    parts = [_quantize_rows(rows, bits, block_size) for rows in weight.detach().float().split(_ROWS)]
    codes, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Quantized(codes[:, : weight.shape[1]].contiguous().numpy(), scales.numpy(), bits, block_size)


def _quantize_rows(weight: torch.Tensor, bits: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = weight.shape
    blocks = torch.nn.functional.pad(weight, (0, -columns % block_size)).view(rows, -1, block_size)
    top = 2 ** (bits - 1) - 1
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    best_error = torch.full_like(largest, torch.inf)
    best_scale = torch.zeros_like(largest)
    for share in _SHARES if bits < 8 else _SHARES[:1]:  # with 8 bits clipping never pays
        # The scale is stored as float16: search among what can be stored.
        scale = (largest * (share / top)).half().float().clamp_min(torch.finfo(torch.float16).tiny)
        error = (_codes(blocks, scale, top) * scale - blocks).square_().sum(dim=-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    codes = _codes(blocks, best_scale, top).to(torch.int8)
    return codes.view(rows, -1), best_scale.squeeze(-1).half()


def _codes(blocks: torch.Tensor, scale: torch.Tensor, top: int) -> torch.Tensor:
    return (blocks / scale).round_().clamp_(-top - 1, top)
