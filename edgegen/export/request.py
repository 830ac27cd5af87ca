"""What was asked of an export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgegen.manifest import Precision

LEGACY = "tensorrt-legacy"
CUDA = "onnxruntime-cuda"
VARIANTS = (LEGACY, CUDA)  # what a bundle may hold beside the variants that each has


@dataclass(frozen=True)
class Request:
    """What was asked for.

    `source` is what `open_source` gave: a Checkpoint, Modules, or what another format has. `context_length` None: the model's
    own, up to 8,192; `limit` None: by precision. `variants`: names of `VARIANTS` to add.
    """

    source: Any
    output: Path
    precision: Precision
    name: str
    context_length: int | None = None
    limit: float | None = None
    force: bool = False
    variants: tuple[str, ...] = ()
