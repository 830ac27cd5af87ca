"""Directories of the diffusers library: `model_index.json` and a folder for each component, weights in safetensors."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.errors import InputError, SourceError
from edgegen.export.parts import Modules, parse_axis
from edgegen.export.sources.base import file_sha256, read_json, reading
from edgegen.export.sources.diffusers_files import check_weights, licence, load_module, quiet_diffusers
from edgegen.export.sources.diffusers_single import UNCONDITIONAL, open_unconditional
from edgegen.tensors import Axis

if TYPE_CHECKING:
    from edgegen.export.declare import Declared

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline")
# Further classes of the same components: a bundle goes from noise, from an image and within a mask alike.
_ALIKE = {
    **{f"StableDiffusion{kind}Pipeline": "StableDiffusionPipeline" for kind in ("Img2Img", "Inpaint")},
    **{f"StableDiffusionXL{kind}Pipeline": "StableDiffusionXLPipeline" for kind in ("Img2Img", "Inpaint")},
    **{f"StableDiffusion3{kind}Pipeline": "StableDiffusion3Pipeline" for kind in ("Img2Img", "Inpaint")},
    **{f"Flux{kind}Pipeline": "FluxPipeline" for kind in ("Img2Img", "Inpaint")},
}
# The last but one holds the safety checker, which is left out.
_LIBRARIES = {"diffusers", "transformers", "stable_diffusion", None}
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True)
class DiffusersDirectory:
    """A pipeline as its publisher saved it, its weights not yet in memory; `load` gives it in float32 on the CPU.

    `pipeline` is the name of its class; `sha256` is over the sha256sum listing of the weight files, by path. `axes` are bounds
    that the user gave: of the batch, and of the images' height and width in pixels, which else have one size.
    """

    kind: str
    name: str
    pipeline: str
    sha256: str
    licence: str
    load: Callable[[], Any] = field(repr=False)
    axes: Mapping[str, Axis] = field(default_factory=dict)

    def declare(self, declared: "Declared") -> "DiffusersDirectory":
        """The same with the options --axis. InputError where there are others, or axes that its images do not have."""
        if declared.inputs or declared.outputs or declared.settings:
            raise InputError(f"{self.name} is a diffusers directory, which says its tensors itself: it takes --axis alone")
        axes = dict(map(parse_axis, declared.axes))
        if unknown := sorted(axes.keys() - {"batch", "height", "width"}):
            raise InputError(f"no tensor has an axis named {unknown[0]}; there are batch, height, width (in pixels)")
        return replace(self, axes={**self.axes, **axes})


def open_checkpoint(path: Path, weights: Path | None) -> DiffusersDirectory | Modules:
    """Open the directory at `path`. SourceError where it is damaged, of another kind, or not to be trusted."""
    if weights is not None:
        raise SourceError(f"{path} is a diffusers directory with weights for each component; --checkpoint does not go with it")
    index = read_json(path / "model_index.json")
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise SourceError(f"{path} is a pipeline with code of its own ({pipeline}), which edgegen does not run")
    pipeline = _ALIKE.get(pipeline, pipeline)
    if pipeline not in (*PIPELINES, *UNCONDITIONAL):
        raise SourceError(f"{path} holds a {pipeline}; edgegen exports {', '.join((*PIPELINES, *UNCONDITIONAL))}")
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    foreign = [name for name, entry in entries.items() if len(entry) != 2 or entry[0] not in _LIBRARIES]
    if foreign:
        raise SourceError(f"{path}: {foreign[0]} brings code of its own ({index[foreign[0]]}), which edgegen does not run")
    if pipeline in UNCONDITIONAL:
        return open_unconditional(path, pipeline)
    files = _weights(path, entries)
    return DiffusersDirectory(
        "diffusers", path.resolve().name, pipeline, _sha256(path, files), licence(path), lambda: _load(path, pipeline, entries)
    )


def _weights(path: Path, entries: Mapping[str, list[Any]]) -> list[Path]:
    """All safetensors, checked. SourceError where a component is missing or has none."""
    for name, (library, kind) in entries.items():
        folder = path / name
        if library is None or name in _LEFT_OUT:
            continue
        if not folder.is_dir():
            raise SourceError(f"{path} has no folder {name} with the {kind} that its model_index.json names; fetch it whole")
        if (folder / "config.json").is_file():
            check_weights(folder)
    files = sorted(path.glob("*/*.safetensors"))
    if not files:
        for folder in sorted(folder for folder in path.iterdir() if folder.is_dir()):
            check_weights(folder)
        raise SourceError(f"{path} has no safetensors; edgegen reads weights in safetensors only")
    return files


def _sha256(path: Path, files: list[Path]) -> str:
    listing = "".join(f"{file_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _load(path: Path, pipeline: str, entries: Mapping[str, list[Any]]) -> Any:
    import diffusers
    import torch

    # None for what is absent, else the library takes it for missing; modules one by one, else it fills in what they lack.
    options: dict[str, Any] = dict.fromkeys(name for name, entry in entries.items() if entry == [None, None])
    if pipeline == "StableDiffusionPipeline":
        options |= dict.fromkeys(_LEFT_OUT) | {"requires_safety_checker": False}
    for name, (library, kind) in entries.items():
        if name not in options and (path / name / "config.json").is_file():
            options[name] = load_module(path / name, library, kind)
    with reading(path), quiet_diffusers():
        loaded = getattr(diffusers, pipeline).from_pretrained(
            path, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, **options
        )
    loaded.set_progress_bar_config(disable=True)
    return loaded
