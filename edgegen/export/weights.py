"""The matrices of a model, by the names of its parameters, in the precision in which they are shipped.

One table serves every variant of the graph and the PyTorch reference: that is what makes "the same weights" true.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from edgegen.errors import ExportError
from edgegen.export.calibrate import importance
from edgegen.export.quantize.weight_only import Quantized, quantize
from edgegen.manifest import Precision

Dense = NDArray[Any]  # float32 or float16
BITS: Mapping[str, int] = {"int8": 8, "int4": 4}


@dataclass
class WeightTable:
    """Matrices as [out, in] (or [vocab, hidden]), dense or quantized, by parameter name."""

    precision: Precision
    matrices: dict[str, Dense | Quantized] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)  # every name of a tied parameter -> the one in `matrices`

    def names(self, parameter: str) -> list[str]:
        """The matrices that a graph's initializer stands for: one, or several joined by `|`. Empty if it is not a matrix."""
        names = [self.aliases.get(part, part) for part in parameter.split("|")]
        return names if all(name in self.matrices for name in names) else []

    @property
    def quantized(self) -> set[str]:
        """The names that are quantized."""
        return {name for name, matrix in self.matrices.items() if isinstance(matrix, Quantized)}


def matrix_names(model: torch.nn.Module) -> dict[str, bool]:
    """The parameters that are matrices of linear layers or embeddings of tokens: name -> stored as [in, out].

    A tied pair has one name, the first in the order of `named_parameters`.
    """
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    owners = {id(m.weight): isinstance(m, Conv1D) for m in model.modules() if isinstance(m, kinds)}
    return {name: owners[id(p)] for name, p in model.named_parameters() if id(p) in owners}


def convert(model: torch.nn.Module, precision: Precision, progress: Callable[[float], None] | None = None) -> WeightTable:
    """Bring the matrices to `precision` and give the *model* the very same values, in float32.

    int4 rounds with regard to the inputs that each weight meets (`edgegen.export.calibrate`). Position tables (learned ones,
    as in GPT-2) and vectors stay float32, except with fp16.
    """
    table = WeightTable(precision, aliases=_aliases(model))
    parameters = dict(model.named_parameters())
    positions = _position_tables(model)
    names = matrix_names(model)
    care = importance(model) if precision == "int4" else {}
    for index, (name, transposed) in enumerate(names.items()):
        parameter = parameters[name]
        weight = parameter.detach().T if transposed else parameter.detach()
        matrix = _matrix(weight, "fp32" if name in positions and precision != "fp16" else precision, care.get(name))
        table.matrices[name] = matrix
        if precision != "fp32":
            same = matrix.dequantize() if isinstance(matrix, Quantized) else torch.from_numpy(matrix).float()
            with torch.no_grad():
                parameter.copy_(same.T if transposed else same)
        if progress is not None:
            progress((index + 1) / len(names))
    if precision == "fp16":
        _round_vectors(model, names)
    return table


def _aliases(model: torch.nn.Module) -> dict[str, str]:
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def _matrix(weight: torch.Tensor, precision: Precision, care: torch.Tensor | None = None) -> Dense | Quantized:
    if not torch.isfinite(weight).all():
        raise ExportError("the checkpoint holds weights that are not finite; export a healthy checkpoint")
    if precision in BITS:
        return quantize(weight, BITS[precision], importance=care)
    if precision == "fp16":
        limit = torch.finfo(torch.float16).max
        if weight.abs().max() > limit:
            raise ExportError(
                f"a weight of {weight.abs().max():.3g} does not fit in fp16 (largest: {limit:.0f}); use fp32 or int8"
            )
        return weight.half().contiguous().numpy()
    return np.ascontiguousarray(weight.numpy())


def _position_tables(model: torch.nn.Module) -> set[str]:
    """Embeddings that are not the token embedding: indexed by position, small, and read row by row."""
    tokens = model.get_input_embeddings().weight  # type: ignore[operator]
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.weight is not tokens}
    return {name for name, p in model.named_parameters() if id(p) in tables}


def _round_vectors(model: torch.nn.Module, names: Mapping[str, bool]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in names:
                parameter.copy_(parameter.half().float())
