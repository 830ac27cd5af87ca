"""Checkpoints: the weights to export, and beside them the state to go on from. Both are written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from edgegen.errors import InputError, TrainingError
from edgegen.train.objective import Objective

_FORMAT = "edgegen.training"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a training's state says of itself: `steps` are done; `data` is the shape of the images."""

    recipe: str
    steps: int
    seed: int
    batch_size: int
    data: tuple[int, ...]


def state_path(output: Path) -> Path:
    """Where the state of the checkpoint `output` lies: model.safetensors has model.state.safetensors beside it."""
    return output.with_name(f"{output.stem}.state{output.suffix}")


def check_output(output: Path, *, resume: bool, force: bool) -> None:
    """Refuse a place before long work is done for it.

    Raises:
        InputError: not a .safetensors file, in no folder, or taken; or with `resume`, nothing is there.
    """
    if output.suffix != ".safetensors" or output.stem.endswith(".state"):
        raise InputError(f"the checkpoint is {output}; give a name that ends in .safetensors (and not in .state.safetensors)")
    if not output.parent.is_dir():
        raise InputError(f"cannot write {output}: the folder {output.parent} does not exist")
    state = state_path(output)
    if resume and not state.is_file():
        raise InputError(f"there is no {state} to go on from; train without --resume")
    if not resume and not force and (output.exists() or state.exists()):
        raise InputError(
            f"{output if output.exists() else state} is there; go on from it with --resume, or replace it with --force"
        )


def save(objective: Objective, state: State, output: Path) -> None:
    """Write the checkpoint and its state; both are written before either takes the place of the last one.

    Raises:
        TrainingError: weights are not finite, or the disk is full; what was there stays as it was.
    """
    tensors = _tensors(objective)
    if bad := [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise TrainingError(f"after step {state.steps} {bad[0]} is not finite")
    description = {_FORMAT: json.dumps(msgspec.to_builtins(state))}
    files = {state_path(output): (tensors, description), output: (_exported(objective.exported()), {"format": "pt"})}
    partials = {path: path.with_name(f".{path.name}.partial") for path in files}
    try:
        for path, (content, metadata) in files.items():
            _write(content, metadata, partials[path])
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def read_state(output: Path) -> State:
    """Read what the state beside `output` says of itself. TrainingError where it is damaged or foreign."""
    from safetensors import SafetensorError, safe_open

    path = state_path(output)
    try:
        with safe_open(path, framework="pt") as file:
            described = (file.metadata() or {}).get(_FORMAT)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read {path}: {error}") from error
    if described is None:
        raise TrainingError(f"{path} is not the state of a training")
    try:
        return msgspec.json.decode(described, type=State)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise TrainingError(f"{path} is damaged, or of another version: {error}") from error


def restore(objective: Objective, output: Path) -> None:
    """Load the state beside `output` into `objective`.

    Raises:
        TrainingError: it is damaged, or of other modules.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = state_path(output)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read {path}: {error}") from error
    weights = {name.removeprefix("modules."): tensor for name, tensor in tensors.items() if name.startswith("modules.")}
    try:
        objective.load_state_dict(weights)
        for name, optimizer in objective.optimizers.items():
            optimizer.load_state_dict(
                {"state": _of_optimizer(tensors, name), "param_groups": optimizer.state_dict()["param_groups"]}
            )
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(f"{path} does not fit the recipe: {' '.join(str(error).split())[:300]}") from error


def _tensors(objective: Objective) -> dict[str, Tensor]:
    """Everything that training changes: `modules.<name>` and `optimizers.<name>.<parameter>.<what>`."""
    found = {f"modules.{name}": tensor for name, tensor in objective.state_dict().items()}
    for name, optimizer in objective.optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            found |= {f"optimizers.{name}.{index}.{what}": torch.as_tensor(value) for what, value in values.items()}
    return found


def _of_optimizer(tensors: Mapping[str, Tensor], name: str) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parts = key.split(".")
        if parts[0] == "optimizers" and parts[1] == name:
            state.setdefault(int(parts[2]), {})[parts[3]] = tensor
    return state


def _exported(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """As `edgegen export --checkpoint` reads them: with the graph's name in front where there are several."""
    if len(modules) == 1:
        return dict(next(iter(modules.values())).state_dict())
    return {f"{graph}.{name}": tensor for graph, module in modules.items() for name, tensor in module.state_dict().items()}


def _write(tensors: Mapping[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    apart: dict[str, Any] = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(apart, path, metadata=metadata)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write {path}: {error}") from error
