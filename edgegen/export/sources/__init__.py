"""Where a model comes from: one module for each format, all giving the same `Checkpoint`.

To add a format: a module with `open_checkpoint(path, weights) -> Checkpoint`, a line in SOURCES, and a case in `source_kind`.
"""

import importlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgegen.errors import SourceError
from edgegen.export.sources.base import PICKLES, Checkpoint, read_bounded, refuse_pickle

__all__ = ["SOURCES", "Checkpoint", "class_of_diffusers", "open_source", "source_kind"]

# huggingface_hub reads it once, when it is imported: a source is what lies on this machine, nothing is fetched.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SOURCES: Mapping[str, str] = {  # kind: its opener
    "recipe": "edgegen.export.recipe:open_checkpoint",
    "huggingface": "edgegen.export.sources.huggingface:open_checkpoint",
    "gguf": "edgegen.export.sources.gguf:open_checkpoint",
    "diffusers": "edgegen.export.sources.diffusers:open_checkpoint",
    "diffusers_single": "edgegen.export.sources.diffusers_single:open_checkpoint",
    "onnx": "edgegen.export.sources.onnx:open_checkpoint",
    "function": "edgegen.export.sources.module:open_function",
}
_OF_MODULES = frozenset({"recipe", "function"})  # what may have a state_dict; a recipe's own source is opened again
_SUFFIXES = {".py": "recipe", ".gguf": "gguf", ".onnx": "onnx"}
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def open_source(source: str, checkpoint: Path | None = None) -> Any:
    """Open what `source` names without loading its weights: they come with `Checkpoint.load`.

    Args:
        source: A recipe.py, package.module:function, a Hugging Face directory (safetensors), or a .gguf or .onnx file, all on
            this machine.
        checkpoint: A file whose weights replace the source's own: .safetensors; for modules a state_dict too (.pt, .pth, ...).

    Raises:
        SourceError: Nothing is there, or it is damaged, unknown, or not to be trusted (a pickle).
    """
    kind = source_kind(source)
    if checkpoint is not None:
        if kind not in _OF_MODULES | {"onnx"}:  # which takes none, of whatever kind, and says so itself
            refuse_pickle(checkpoint)
        if not checkpoint.is_file():
            raise SourceError(f"no checkpoint at {checkpoint}; give a .safetensors file, or for modules a .pt, .pth or .bin")
    module, function = SOURCES[kind].split(":")
    return getattr(importlib.import_module(module), function)(Path(source), checkpoint)


def source_kind(source: str) -> str:
    """Tell which line of SOURCES `source` belongs to.

    Raises:
        SourceError: Nothing is there, or nothing that edgegen reads.
    """
    path = Path(source)
    if not path.exists():
        if _FUNCTION.fullmatch(source):
            return "function"
        raise SourceError(_not_there(source))
    suffix = path.suffix.lower()
    if path.is_file() and suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if path.is_dir() and (path / "model_index.json").is_file():
        return "diffusers"
    if path.is_dir() and (path / "config.json").is_file():
        return "diffusers_single" if class_of_diffusers(path) else "huggingface"
    if path.is_file() and suffix in PICKLES:
        refuse_pickle(path)
    there = "a directory without config.json or model_index.json" if path.is_dir() else f"a {suffix or 'nameless'} file"
    raise SourceError(
        f"{source} is {there}; give a recipe.py, package.module:function, a Hugging Face directory with config.json, "
        "a diffusers directory, or a .gguf or .onnx file"
    )


def class_of_diffusers(path: Path) -> str | None:
    """The class that a directory's config.json names, as the diffusers library writes it; None where another wrote it."""
    try:
        config = json.loads(read_bounded(path / "config.json"))
    except (SourceError, ValueError, RecursionError):
        return None  # whoever opens it says what is wrong
    name = config.get("_class_name") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def _not_there(source: str) -> str:
    if ":" in source and "/" not in source:
        return f"{source} is not of the form package.module:function"
    hint = "; edgegen does not download models: fetch it first and give its path" if source.count("/") == 1 else ""
    return f"nothing is at {source}{hint}"
