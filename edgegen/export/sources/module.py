"""Modules of the user's own: a function that returns them, and a checkpoint that holds their weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgegen.errors import SourceError
from edgegen.export.parts import Modules, parse_spec
from edgegen.export.recipe import Recipe
from edgegen.export.sources.base import file_sha256, refuse_pickle
from edgegen.tensors import Axis


def open_recipe(recipe: Recipe, weights: Path | None) -> Modules:
    """What a recipe with `modules` names, with the weights of its `source`, or of `weights` where they are given.

    Raises:
        SourceError: `modules` returns something else, or the checkpoint does not fit it.
    """
    assert recipe.modules is not None
    made = recipe.modules()
    modules: Mapping[str, torch.nn.Module] = made if isinstance(made, Mapping) else {"": made}
    if not modules or not all(isinstance(module, torch.nn.Module) for module in modules.values()):
        raise SourceError(f"{recipe.name}: `modules` must return a torch.nn.Module, or one for each graph by name")
    checkpoint = weights or (recipe.source() if recipe.source else None)
    if checkpoint is not None:
        load_weights(modules, checkpoint)
    return Modules(
        kind="module",
        name=recipe.name,
        sha256=file_sha256(checkpoint) if checkpoint is not None else state_sha256(modules),
        licence=recipe.licence or "unknown",
        modules={name: module.eval().float().cpu() for name, module in modules.items()},
        inputs={graph: tuple(map(parse_spec, specs)) for graph, specs in recipe.inputs.items()},
        outputs={graph: tuple(map(parse_spec, specs)) for graph, specs in recipe.outputs.items()},
        axes={name: Axis(*sizes) for name, sizes in recipe.axes.items()},
        settings=recipe.settings,
    )


def load_weights(modules: Mapping[str, torch.nn.Module], path: Path) -> None:
    """Load a safetensors file: names begin with the graph's, `generator.layer.weight`, where there are several modules.

    Raises SourceError where a tensor is missing, unexpected, or has another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_pickle(path)
    try:
        state: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    whole = next(iter(modules.values())) if len(modules) == 1 else torch.nn.ModuleDict(dict(modules))
    try:
        whole.load_state_dict(state)
    except RuntimeError as error:
        raise SourceError(f"{path} does not fit: {' '.join(str(error).split())[:300]}") from error


def state_sha256(modules: Mapping[str, torch.nn.Module]) -> str:
    """Digest the weights themselves, by name, where no file holds them."""
    digest = hashlib.sha256()
    for name, module in modules.items():
        for key, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}.{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
