"""A recipe: a short Python file whose `RECIPE` says where a model's weights come from, and how to export it.

A recipe is the user's own code and is run, like a Makefile: only checkpoints are treated as untrusted.
"""

import contextlib
import importlib.util
import json
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.errors import EdgegenError, SourceError

if TYPE_CHECKING:
    from edgegen.export.parts import Modules
    from edgegen.export.sources.base import Checkpoint


@dataclass(frozen=True)
class Recipe:
    """What to export and how, unless the command line says otherwise.

    `source` returns the path of the checkpoint on this machine, fetching it where it must (`edgegen.export.fetch`).
    `name` is the bundle's; `precision` is fp32, fp16, int8 or int4; `context_length` is in tokens, None for the model's own.
    `licence` replaces what the checkpoint says of itself, which is often nothing.

    A model of one's own has `modules` instead of a checkpoint's format: it returns the module, or one for each graph of the
    family by name; `source` then gives their weights (safetensors), or is None where `modules` sets them itself.
    `inputs` and `outputs` are tensors such as "z float32[batch, 128]", by graph; `axes` the (least, usual, most) of each named
    axis; `settings` what the family's pipeline wants to know. All four only where the family's own, or what an ONNX file or a
    diffusers directory says, do not fit.
    """

    name: str
    family: str
    source: Callable[[], Path] | None = None
    precision: str = "fp32"
    context_length: int | None = None
    licence: str | None = None
    modules: Callable[[], Any] | None = None
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    axes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def declared_by(recipe: Recipe) -> dict[str, list[str]]:
    """What a recipe without `modules` says of its source, written as the command line's options are."""
    listed = {
        name: [f"{graph}: {spec}" if graph else spec for graph, specs in tensors.items() for spec in specs]
        for name, tensors in (("inputs", recipe.inputs), ("outputs", recipe.outputs))
    }
    axes = [f"{axis}={least}..{usual}..{most}" for axis, (least, usual, most) in recipe.axes.items()]
    return listed | {"axes": axes, "settings": [f"{key}={json.dumps(value)}" for key, value in recipe.settings.items()]}


@contextlib.contextmanager
def own_code(what: str) -> Iterator[None]:
    """One line, with the line of the user's code, for whatever that raises inside the block: SourceError.

    What neither comes from there nor is what libraries raise of wrong tensors and imports is a bug of ours, and stays as it is.
    """
    try:
        yield
    except EdgegenError:
        raise
    except (Exception, SystemExit) as error:  # anything may happen in it
        place = _place(error)
        if not place and not isinstance(error, (RuntimeError, ValueError, ImportError, SyntaxError, SystemExit)):
            raise
        said = next(iter(str(error).splitlines()), "")
        raise SourceError(f"{what} failed{place}: {type(error).__name__}: {said}") from error


def _place(error: BaseException) -> str:
    """The deepest line that is not a library's, Python's or edgegen's: " (model.py, line 3)"."""
    others = (sysconfig.get_paths()["stdlib"], str(Path(__file__).parents[1]), "<")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(others) and not {"site-packages", "dist-packages"} & {*Path(frame.filename).parts}
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def module_name(path: Path) -> str:
    """What the recipe at `path` is called in sys.modules: a recipe called json.py or torch.py hides no module of that name."""
    return "edgegen_recipe_" + re.sub(r"\W", "_", path.stem)


def load_recipe(path: Path) -> Recipe:
    """Run the recipe file at `path` and return its RECIPE. It may import what lies beside it, as a script may.

    Raises:
        SourceError: There is no such file, it fails, or it holds no `RECIPE = Recipe(...)`.
    """
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SourceError(f"no recipe at {path}; a recipe is a .py file with RECIPE = Recipe(...)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # it stays, for what its functions import when they are called; last, so that it hides nothing
    try:
        with own_code(str(path)):
            spec.loader.exec_module(module)
    except SourceError as error:
        cause = error.__cause__
        if isinstance(cause, SyntaxError):
            raise SourceError(f"{Path(cause.filename or path)}, line {cause.lineno}: {cause.msg}") from cause
        raise
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise SourceError(f"{path} has no RECIPE = Recipe(...)")
    return recipe


def open_checkpoint(path: Path, weights: Path | None) -> "Checkpoint | Modules":
    """Open what the recipe at `path` names (the `recipe` line of edgegen.export.sources.SOURCES)."""
    from edgegen.export.sources import open_source, source_kind

    recipe = load_recipe(path)
    if recipe.modules is not None:
        from edgegen.export.sources.module import open_recipe

        return open_recipe(recipe, weights)
    if recipe.source is None:
        raise SourceError(f"{path}: a recipe needs `source`, the path of a checkpoint, or `modules`")
    place = str(recipe.source())
    if source_kind(place) == "recipe":
        raise SourceError(f"{path}: the source of a recipe is a checkpoint, not another recipe ({place})")
    opened: Checkpoint | Modules = open_source(place, weights)
    return replace(opened, name=recipe.name, licence=recipe.licence or opened.licence)
