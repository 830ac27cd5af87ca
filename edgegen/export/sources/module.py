"""Modules of the user's own: a function that returns them, and a checkpoint that holds their weights."""

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from edgegen.errors import EdgegenError, SourceError
from edgegen.export.parts import Modules, parse_spec
from edgegen.export.prepare import settle
from edgegen.export.recipe import Recipe
from edgegen.export.sources.base import file_sha256
from edgegen.export.sources.state import load_weights
from edgegen.export.substitutes import no_compiler
from edgegen.tensors import Axis


def open_recipe(recipe: Recipe, weights: Path | None) -> Modules:
    """What a recipe with `modules` names, with the weights of its `source`, or of `weights` where they are given.

    Raises:
        SourceError: `modules` returns something else, or the checkpoint does not fit it.
    """
    assert recipe.modules is not None
    made = _call(recipe.name, recipe.modules)
    opened = _opened(recipe.name, made, weights or (recipe.source() if recipe.source else None))
    return replace(
        opened,
        licence=recipe.licence or opened.licence,
        inputs={graph: tuple(map(parse_spec, specs)) for graph, specs in recipe.inputs.items()} or opened.inputs,
        outputs={graph: tuple(map(parse_spec, specs)) for graph, specs in recipe.outputs.items()} or opened.outputs,
        axes={**opened.axes, **{name: Axis(*sizes) for name, sizes in recipe.axes.items()}},
        settings={**opened.settings, **recipe.settings},
    )


def open_function(source: Path, weights: Path | None) -> Modules:
    """Import `package.module:function`, also from the current directory, and call it without arguments.

    It returns a torch.nn.Module, one for each graph of the family by name, or an edgegen.export.parts.Modules.

    Raises:
        SourceError: there is no such module or function, it fails, or the checkpoint does not fit what it returns.
    """
    text = str(source)
    return _opened(text.partition(":")[2].rpartition(".")[2], _call(text, _imported(text)), weights)


def _imported(text: str) -> Callable[[], Any]:
    name, _, path = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; it stays, for what the function imports when it is called
    try:
        with no_compiler():
            found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        there = f"no module named {missing} is installed, or in {here}"
        raise SourceError(f"cannot import {name}: {there}") from error
    except EdgegenError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's own code: anything may happen in it
        raise SourceError(f"importing {name} failed: {type(error).__name__}: {error}") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            listed = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")][:8]
            raise SourceError(f"{name} has no {attribute}; it has {', '.join(listed) or 'no functions'}")
        found = getattr(found, attribute)
    if not callable(found):
        raise SourceError(f"{text} is a {type(found).__name__}; give a function that returns a torch.nn.Module")
    made: Callable[[], Any] = found
    return made


def _call(name: str, function: Callable[[], Any]) -> Any:
    try:
        with no_compiler():
            return function()
    except EdgegenError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's own code: anything may happen in it
        said = next(iter(str(error).splitlines()), "")
        raise SourceError(f"{name} failed: {type(error).__name__}: {said}; it is called without arguments") from error


def _opened(name: str, made: Any, weights: Path | None) -> Modules:
    given = made if isinstance(made, Modules) else Modules("module", name, "", "unknown", _by_graph(name, made))
    if weights is not None:
        load_weights(given.modules, weights)
    digest = file_sha256(weights) if weights is not None else given.sha256 or state_sha256(given.modules)
    return replace(given, sha256=digest, modules={graph: settle(graph, module) for graph, module in given.modules.items()})


def _by_graph(name: str, made: Any) -> Mapping[str, torch.nn.Module]:
    modules: Mapping[str, torch.nn.Module] = made if isinstance(made, Mapping) else {"": made}
    if not modules or not all(isinstance(module, torch.nn.Module) for module in modules.values()):
        what = type(made).__name__
        raise SourceError(f"{name} returned a {what}; it must return a torch.nn.Module, or one for each graph by name")
    for module in modules.values():
        _check_form(name, module)
    return modules


def _check_form(name: str, module: torch.nn.Module) -> None:
    """Raise SourceError where there is no Python code to capture, or weights that hold no numbers yet."""
    if isinstance(module, torch.jit.ScriptModule):
        raise SourceError(f"{name} returned a TorchScript module; return the Python module that it was made of")
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise SourceError(f"{name}: {key} has no size yet; give lazy layers their sizes, or run the module once")
        if tensor.is_meta:
            raise SourceError(f"{name}: {key} is on the device meta and holds no numbers; build the module on the CPU")


def state_sha256(modules: Mapping[str, torch.nn.Module]) -> str:
    """Digest the weights themselves, by name, where no file holds them."""
    digest = hashlib.sha256()
    for name, module in modules.items():
        for key, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}.{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
