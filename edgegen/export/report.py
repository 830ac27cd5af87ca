"""What an export tells when it is done, and how it tells where it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgegen.export.target import Decision
from edgegen.proof import decoder_lm, tensors
from edgegen.proof.decoder_lm import Fidelity, Quality, fidelity_dict, quality_dict
from edgegen.proof.tensors import TensorFidelity

Progress = Callable[[str, float], None]  # stage, share of it that is done (0 to 1)


@dataclass(frozen=True)
class ExportReport:
    """A finished bundle: where it is, how large, and its proof."""

    path: Path
    precision: str
    matrices: int
    quantized: int
    size_bytes: int
    fidelity: tuple[Fidelity, ...]
    quality: Quality
    target: Decision | None = None

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.path}: {self.precision}, {self.quantized} of {self.matrices} matrices quantized, "
            f"{self.size_bytes / 1e6:.1f} MB",
            *(line for fidelity in self.fidelity for line in fidelity.lines()),
            *decoder_lm.quality_lines(self.quality),
            *_target_lines(self.target),
        ]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": str(self.path),
            "precision": self.precision,
            "matrices": self.matrices,
            "quantized": self.quantized,
            "size_bytes": self.size_bytes,
            "fidelity": [fidelity_dict(fidelity) for fidelity in self.fidelity],
            "quality": quality_dict(self.quality),
            "target": self.target.as_dict() if self.target else None,
        }


@dataclass(frozen=True)
class TensorExportReport:
    """A finished bundle of a model that is proven tensor by tensor."""

    path: Path
    precision: str
    graphs: tuple[str, ...]
    size_bytes: int
    fidelity: tuple[TensorFidelity, ...]
    quality: Mapping[str, float]
    target: Decision | None = None

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.path}: {self.precision}, {', '.join(self.graphs)}, {self.size_bytes / 1e6:.1f} MB",
            *(line for fidelity in self.fidelity for line in fidelity.lines()),
            *tensors.quality_lines(self.quality),
            *_target_lines(self.target),
        ]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": str(self.path),
            "precision": self.precision,
            "graphs": list(self.graphs),
            "size_bytes": self.size_bytes,
            "fidelity": [fidelity.as_dict() for fidelity in self.fidelity],
            "quality": dict(self.quality),
            "target": self.target.as_dict() if self.target else None,
        }


def _target_lines(target: Decision | None) -> list[str]:
    return target.lines() if target else []
