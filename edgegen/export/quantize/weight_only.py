"""Weights in blocks of symmetric integers: round to nearest, with the scale of each block chosen by its weighted squared error.

A block of `block_size` consecutive inputs of one output row shares a float16 scale. There is no zero point: it is the one form
that TensorRT and onnxruntime both accept. Searching the scale below the block's maximum (clipping a few weights to gain
resolution for the others) is the usual mean-square criterion, e.g. Banner et al., "Post training 4-bit quantization of
convolutional networks", NeurIPS 2019; weighting the errors by the size of the inputs that they meet is the observation of
Lin et al., "AWQ: Activation-aware Weight Quantization", MLSys 2024.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK_SIZE = 32
# Shares of the block's largest weight that the largest code may stand for; 1.0 clips nothing.
_SHARES = (1.0, 0.95, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7)
_SMALLEST = torch.finfo(torch.float16).tiny
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


def quantize(
    weight: torch.Tensor, bits: int, block_size: int = BLOCK_SIZE, importance: torch.Tensor | None = None
) -> Quantized:
    """Quantize float32 [out, in]. `importance`: float32 [in], how much an error at each input counts; all the same if None."""
    columns = weight.shape[1]
    counts = torch.ones(columns) if importance is None else importance
    care = _blocks(counts[None], block_size)  # [1, block, block_size]
    parts = [_quantize_rows(_blocks(rows, block_size), care, bits) for rows in torch.split(weight.detach().float(), _ROWS)]
    codes, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Quantized(codes[:, :columns].contiguous().numpy(), scales.numpy(), bits, block_size)


def _blocks(rows: torch.Tensor, block_size: int) -> torch.Tensor:
    """[row, in] -> [row, block, block_size], padded with zeros."""
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % block_size))
    return padded.view(len(rows), -1, block_size)


def _quantize_rows(blocks: torch.Tensor, care: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = _best_scales(blocks, care, bits)
    return _round(blocks, scale, bits).to(torch.int8).flatten(1), scale.squeeze(-1).half()


def _best_scales(blocks: torch.Tensor, care: torch.Tensor, bits: int) -> torch.Tensor:
    """For each block the scale [row, block, 1] of the least error: each share of the maximum, and its least-squares refit."""
    top = 2 ** (bits - 1) - 1
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    best_error = torch.full_like(largest, torch.inf)
    best = torch.full_like(largest, _SMALLEST)
    for share in _SHARES if bits < 8 else _SHARES[:1]:  # with 8 bits clipping never pays
        scale = _storable(largest * (share / top))
        for _ in range(1 + (bits < 8)):
            codes = _round(blocks, scale, bits)
            error = ((codes * scale - blocks).square_() * care).sum(dim=-1, keepdim=True)
            better = error < best_error
            best_error, best = torch.where(better, error, best_error), torch.where(better, scale, best)
            weighted = codes * care
            scale = _storable(
                (weighted * blocks).sum(-1, keepdim=True) / (weighted * codes).sum(-1, keepdim=True).clamp_min(1e-20)
            )
    return best


def _storable(scale: torch.Tensor) -> torch.Tensor:
    """The scale as float16 will hold it; never zero, never negative."""
    return scale.half().float().clamp_min(_SMALLEST)


def _round(blocks: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest codes, still as float32."""
    top = 2 ** (bits - 1) - 1
    return (blocks / scale).round_().clamp_(-top - 1, top)
