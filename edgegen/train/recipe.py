"""What a recipe says about training: `TRAINING = Training(...)` beside its `RECIPE`. Loads without torch."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.errors import SourceError
from edgegen.export.recipe import Recipe, load_recipe, module_name

if TYPE_CHECKING:
    import torch

    from edgegen.train.data import Data
    from edgegen.train.objective import Objective


@dataclass(frozen=True)
class Training:
    """How a recipe's modules are trained, unless the command line says otherwise.

    `data` returns the images; `held_out` others of the same kind, which no step learns from: to measure with (`edgegen eval
    --reference RECIPE`, and objectives that look at them). `objective` takes the recipe's modules, by graph name, and returns
    what is to be minimized: see `edgegen.train.objective.Objective`. `batch_size` is over all processes. `warmup` is the number
    of steps over which the learning rate grows to its value. `flip` mirrors half of the images. `save_every` and `sheet_every`
    are in steps.
    """

    data: Callable[[], "Data"]
    objective: Callable[[Mapping[str, "torch.nn.Module"]], "Objective"]
    steps: int
    batch_size: int = 64
    warmup: int = 0
    flip: bool = False
    save_every: int = 1000
    sheet_every: int = 500
    held_out: Callable[[], "Data"] | None = None


def load_training(path: Path) -> tuple[Recipe, Training]:
    """Run the recipe file at `path` and return its RECIPE and its TRAINING.

    Raises:
        SourceError: There is no such file, or it holds no TRAINING, or its RECIPE has no `modules` to train.
    """
    recipe = load_recipe(path)
    training: Any = getattr(sys.modules[module_name(path)], "TRAINING", None)
    if not isinstance(training, Training):
        raise SourceError(f"{path} has no TRAINING = Training(...); it can be exported, not trained")
    if recipe.modules is None:
        raise SourceError(f"{path}: what is trained is the recipe's `modules`, and it has none")
    return recipe, training


def untrained(recipe: str) -> Callable[[], Path]:
    """A recipe's `source` where nobody has trained it yet: an error that says how, instead of random weights."""

    def source() -> Path:
        weights = f"{Path(recipe).stem}.safetensors"
        how = f"`edgegen train {recipe} -o {weights}`, then export with --checkpoint {weights}"
        raise SourceError(f"this recipe brings no weights; train it first: {how}")

    return source
