"""What is measured: models as PyTorch modules, with random weights (speed does not depend on them), and what they are fed.

Runs in the torch workers and where the bundles are made; nothing is imported before it is used.
"""

from dataclasses import dataclass
from typing import Any

SEED = 0


@dataclass(frozen=True)
class Subject:
    """A module, the family and graph that edgegen makes of it, and its inputs at a batch.

    `modules`: what the recipe returns, by graph; `graph`: the one that is measured; `specs`: its inputs and outputs as text.
    """

    family: str
    graph: str
    modules: dict
    inputs: dict
    outputs: dict
    axes: dict
    settings: dict

    @property
    def module(self) -> Any:
        return self.modules[self.graph]


def feeds(subject, batch):
    """Inputs of the measured graph by name: torch tensors, the same each time."""
    import torch
    from edgegen.export.parts import parse_spec

    generator, found = torch.Generator().manual_seed(SEED), {}
    for spec in map(parse_spec, subject.inputs[subject.graph]):
        sizes = [batch if axis == "batch" else axis for axis in spec.axes]
        if spec.dtype == "float32":
            found[spec.name] = torch.randn(sizes, generator=generator)
        else:
            found[spec.name] = torch.zeros(sizes, dtype=getattr(torch, spec.dtype))
    return found
