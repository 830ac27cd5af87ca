"""Pipelines: one file per family of models, found by name and imported only when used."""

from collections.abc import Mapping

FAMILIES: Mapping[str, str] = {  # the manifest's `family`: the class that runs it
    "decoder_lm": "edgegen.pipelines.decoder_lm:DecoderLM",
    "diffusion": "edgegen.pipelines.diffusion:Diffusion",
    "features": "edgegen.pipelines.features:Features",
    "gan": "edgegen.pipelines.gan:Gan",
    "vae": "edgegen.pipelines.vae:Vae",
}
