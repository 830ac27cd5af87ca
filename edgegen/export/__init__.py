"""HOW to export: from a source to a proven bundle. The workstation side: needs the extra `export`."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgegen.bundle import check_place
from edgegen.errors import ExportError, InputError, UnknownNameError

if TYPE_CHECKING:
    from edgegen.export.report import ExportReport

PRECISIONS = ("fp32", "fp16", "int8", "int4")


def export(
    source: str,
    output: Path,
    *,
    family: str | None = None,
    checkpoint: Path | None = None,
    precision: str | None = None,
    force: bool = False,
    limit: float | None = None,
    context_length: int | None = None,
    name: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> "ExportReport":
    """Export `source` to a bundle at `output`; the proof is part of it.

    Args:
        source: a recipe.py, a Hugging Face directory, or a .gguf file.
        output: the bundle's directory; it exists whole or not at all.
        family: the family, where the source does not say it.
        checkpoint: a .safetensors file that replaces the source's weights.
        precision: fp32, fp16, int8 or int4; None: the recipe's, else fp32.
        force: replace a bundle that is already there.
        limit: the largest mean KL of the next token against the original, in nats; None: by precision.
        context_length: tokens of prompt and answer together; None: the model's own, up to 8,192.
        name: the bundle's name; None: the source's.
        progress: called with the stage and the share of it that is done.

    Raises:
        EdgegenError: in one line, what was asked, what is there, what to do. Nothing is left behind.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    if limit is not None and not limit >= 0:
        raise InputError(f"limit is {limit}; it is a mean KL in nats, 0 or more")
    check_place(Path(output).absolute(), force)  # again when it is written; here before anything slow
    try:
        from edgegen.export.families import FAMILIES
        from edgegen.export.recipe import load_recipe
        from edgegen.export.request import Request
        from edgegen.export.sources import open_source, source_kind
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edgegen"):
            raise
        raise ExportError(f'exporting needs {error.name}; install it: pip install "edgegen[export]"') from error
    recipe = load_recipe(Path(source)) if source_kind(source) == "recipe" else None
    wanted = family or (recipe.family if recipe else "decoder_lm")
    if wanted not in FAMILIES:
        raise UnknownNameError("family", wanted, FAMILIES)
    opened = open_source(source, checkpoint)
    chosen = precision or (recipe.precision if recipe else "fp32")
    length = context_length or (recipe.context_length if recipe else None)
    request = Request(opened, output, chosen, name or opened.name, length, limit, force)  # type: ignore[arg-type]
    module, function = FAMILIES[wanted].split(":")
    report: ExportReport = getattr(importlib.import_module(module), function)(
        request, progress or (lambda _stage, _share: None)
    )
    return report
