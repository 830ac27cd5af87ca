"""What an export tells when it is done, and how it tells where it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgegen.proof import Fidelity, Quality, fidelity_dict, quality_dict, quality_lines

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

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.path}: {self.precision}, {self.quantized} of {self.matrices} matrices quantized, "
            f"{self.size_bytes / 1e6:.1f} MB",
            *(line for fidelity in self.fidelity for line in fidelity.lines()),
            *quality_lines(self.quality),
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
        }
