"""Directories of the diffusers library: `model_index.json` and a folder for each component, weights in safetensors."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgegen.errors import SourceError
from edgegen.export.sources.base import PICKLES, file_sha256, quiet, read_bounded, reading, refuse_pickle
from edgegen.export.sources.huggingface import _licence

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline")
# The last but one holds the safety checker, which is left out.
_LIBRARIES = {"diffusers", "transformers", "stable_diffusion", None}
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True)
class DiffusersDirectory:
    """A pipeline as its publisher saved it, its weights not yet in memory; `load` gives it in float32 on the CPU.

    `pipeline` is the name of its class; `sha256` is over the sha256sum listing of the weight files, by path.
    """

    kind: str
    name: str
    pipeline: str
    sha256: str
    licence: str
    load: Callable[[], Any] = field(repr=False)


def open_checkpoint(path: Path, weights: Path | None) -> DiffusersDirectory:
    """Open the directory at `path`. SourceError where it is damaged, of another kind, or not to be trusted."""
    if weights is not None:
        raise SourceError(f"{path} is a diffusers directory with weights for each component; --checkpoint does not go with it")
    index = _index(path / "model_index.json")
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise SourceError(f"{path} holds a {pipeline}; edgegen exports {', '.join(PIPELINES)}")
    foreign = [
        name for name, entry in index.items() if isinstance(entry, list) and (len(entry) != 2 or entry[0] not in _LIBRARIES)
    ]
    if foreign:
        raise SourceError(f"{path}: {foreign[0]} brings code of its own ({index[foreign[0]]}), which edgegen does not run")
    absent = [name for name, entry in index.items() if entry == [None, None]]
    files = sorted(path.glob("*/*.safetensors"))
    if not files:
        for pickle in (file for file in sorted(path.glob("*/*")) if file.suffix in PICKLES):
            refuse_pickle(pickle)
        raise SourceError(f"{path} has no safetensors; edgegen reads weights in safetensors only")
    return DiffusersDirectory(
        "diffusers", path.resolve().name, pipeline, _sha256(path, files), _licence(path), lambda: _load(path, pipeline, absent)
    )


def _index(file: Path) -> dict[str, Any]:
    try:
        index = json.loads(read_bounded(file))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} is not JSON: {error}") from error
    if not isinstance(index, dict):
        raise SourceError(f"{file} is not a JSON object")
    return index


def _sha256(path: Path, files: list[Path]) -> str:
    listing = "".join(f"{file_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _load(path: Path, pipeline: str, absent: list[str]) -> Any:
    import diffusers
    import torch

    options: dict[str, Any] = dict.fromkeys(absent)  # else the library takes them for missing
    if pipeline == "StableDiffusionPipeline":
        options |= dict.fromkeys(_LEFT_OUT) | {"requires_safety_checker": False}
    with reading(path), quiet_diffusers():
        loaded = getattr(diffusers, pipeline).from_pretrained(
            path, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, **options
        )
    for component in loaded.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Run diffusers without its bars, hints and deprecations: what matters is told by edgegen."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
