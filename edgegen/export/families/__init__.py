"""The export half of each family, by the name of its pipeline half."""

from collections.abc import Mapping

FAMILIES: Mapping[str, str] = {  # name: "module:function"
    "decoder_lm": "edgegen.export.families.decoder_lm:export",
}
