"""The export half of each family, by the name of its pipeline half.

A language model's half exports by itself; the others make a `Model` of their source, which `edgegen.export.assemble` exports.
"""

from collections.abc import Mapping

FAMILIES: Mapping[str, str] = {  # name: "module:function", `export(request, progress) -> report`
    "decoder_lm": "edgegen.export.families.decoder_lm:export",
    "diffusion": "edgegen.export.families.diffusion:export",
    "features": "edgegen.export.families.features:export",
    "gan": "edgegen.export.families.gan:export",
    "vae": "edgegen.export.families.vae:export",
}
