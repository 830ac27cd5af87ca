"""What the diffusers library keeps in a folder: JSON, the weights of one module, and how both are read with care."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.errors import SourceError
from edgegen.export.sources.base import PICKLES, check_loading, quiet, reading, refuse_pickle
from edgegen.export.sources.huggingface import _licence, check_safetensors

if TYPE_CHECKING:
    import torch


def licence(path: Path) -> str:
    """What the model card says, or that of the pipeline whose component `path` is."""
    found = _licence(path)
    return _licence(path.resolve().parent) if found == "unknown" and (path / ".." / "model_index.json").is_file() else found


def check_weights(folder: Path) -> list[Path]:
    """The safetensors in `folder`, whole. SourceError where there are none, or only pickles."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        check_safetensors(file)
    if not files:
        for pickle in (file for file in sorted(folder.iterdir()) if file.suffix in PICKLES):
            refuse_pickle(pickle)
        raise SourceError(f"{folder} has no safetensors; edgegen reads weights in safetensors only")
    return files


def load_module(folder: Path, library: str, kind: str) -> "torch.nn.Module":
    """The module that `folder` holds, of a class of diffusers or transformers: float32, in eval mode, all weights its own.

    Raises:
        SourceError: there is no such class, the folder is damaged, or it lacks weights.
    """
    import torch

    found = getattr(importlib.import_module(library), kind, None)
    if not hasattr(found, "from_pretrained"):
        raise SourceError(f"{folder} is a {kind}, which the installed {library} does not know")
    files = check_weights(folder)
    options: dict[str, Any] = {"variant": "fp16"} if all(".fp16." in file.name for file in files) else {}
    options["dtype" if library == "transformers" else "torch_dtype"] = torch.float32
    with reading(folder), quiet_diffusers():
        module, info = found.from_pretrained(  # type: ignore[union-attr]
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    # What is there beside (position ids of older versions) does not matter; what is missing would be drawn at random.
    check_loading(folder, {key: value for key, value in info.items() if key != "unexpected_keys"})
    made: torch.nn.Module = module.eval().requires_grad_(False)
    return made


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
