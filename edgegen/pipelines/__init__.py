"""Pipelines: one file per family of models, found by name and imported only when used."""

import importlib
from collections.abc import Mapping
from typing import Any

from edgegen.errors import UnknownNameError

FAMILIES: Mapping[str, str] = {  # the manifest's `family`: the class that runs it
    "decoder_lm": "edgegen.pipelines.decoder_lm:DecoderLM",
    "diffusion": "edgegen.pipelines.diffusion:Diffusion",
    "features": "edgegen.pipelines.features:Features",
    "gan": "edgegen.pipelines.gan:Gan",
    "vae": "edgegen.pipelines.vae:Vae",
}


def pipeline_class(family: str) -> Any:
    """The pipeline class of a family; UnknownNameError where this version has none."""
    if family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    module, _, name = FAMILIES[family].partition(":")
    return getattr(importlib.import_module(module), name)
