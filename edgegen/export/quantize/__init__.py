"""One file per method; `METHODS` names them."""

from collections.abc import Mapping

METHODS: Mapping[str, str] = {  # name: "module:function"
    "weight_only": "edgegen.export.quantize.weight_only:quantize",
}
