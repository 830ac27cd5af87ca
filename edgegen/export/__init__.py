"""HOW to export: from a source to a proven bundle. The workstation side: needs the extra `export`."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.bundle import check_place
from edgegen.devices.precisions import EXPORTED
from edgegen.errors import ExportError, InputError, UnknownNameError
from edgegen.export.request import VARIANTS, Request
from edgegen.export.target import decide, read_target

if TYPE_CHECKING:
    from edgegen.export.report import ExportReport

PRECISIONS = EXPORTED


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
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    axes: Sequence[str] = (),
    settings: Sequence[str] = (),
    target: str | None = None,
    variants: Sequence[str] = (),
    progress: Callable[[str, float], None] | None = None,
) -> "ExportReport":
    """Export `source` to a bundle at `output`; the proof is part of it.

    Args:
        source: a recipe.py, `package.module:function` that returns modules, a Hugging Face or diffusers directory, or a
            .gguf or .onnx file.
        output: the bundle's directory; it exists whole or not at all.
        family: the family, where the source does not say it.
        checkpoint: a .safetensors file that replaces the source's weights; for modules also a state_dict of torch.save.
        precision: fp32, fp16, int8 or int4; None: the target's, else the recipe's, else fp32.
        force: replace a bundle that is already there.
        limit: the largest mean KL of the next token against the original, in nats; None: by precision.
        context_length: tokens of prompt and answer together; None: the model's own, up to 8,192.
        name: the bundle's name; None: the source's.
        inputs: what a module of one's own takes, in the order of its forward: "z float32[batch, 128]"; with several graphs
            "mapping: z float32[batch, 512]".
        outputs: what it gives, in the same way: "image float32[batch, 3, 64, 64]".
        axes: bounds of named axes: "batch=1..4..16" (least, usual, most); of a diffusers directory batch, and height and width
            in pixels: without them its images have the one size that it names.
        settings: what the family's pipeline wants to know, NAME=JSON.
        target: DEVICE or DEVICE@JETPACK: chooses the precision, unless one is asked for, and adds the variants that it needs.
        variants: what the bundle's graphs are also shipped as: "tensorrt-legacy" for TensorRT 10.3 and 10.13.
        progress: called with the stage and the share of it that is done.

    Raises:
        EdgegenError: in one line, what was asked, what is there, what to do. Nothing is left behind.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    for variant in variants:
        if variant not in VARIANTS:
            raise UnknownNameError("variant", variant, VARIANTS)
    if limit is not None and not limit >= 0:
        raise InputError(f"limit is {limit}; it is a mean KL in nats, 0 or more")
    aim = read_target(target) if target is not None else None
    check_place(Path(output).absolute(), force)  # again when it is written; here before anything slow
    try:
        from edgegen.export.families import FAMILIES
        from edgegen.export.recipe import Recipe, declared_by, load_recipe
        from edgegen.export.sources import open_source, source_kind
        from edgegen.export.substitutes import reference_operators
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edgegen"):
            raise
        raise ExportError(f'exporting needs {error.name}; install it: pip install "edgegen[export]"') from error
    kind = source_kind(source)
    recipe = load_recipe(Path(source)) if kind == "recipe" else None
    wanted = family or (recipe.family if recipe else None) or _usual_family(source, kind, FAMILIES)
    if wanted not in FAMILIES:
        raise UnknownNameError("family", wanted, FAMILIES)
    decision = decide(aim[0], wanted, precision, aim[1]) if aim else None
    if wanted != "decoder_lm" and (limit is not None or context_length is not None):
        option = "limit (--limit)" if limit is not None else "context_length (--context-length)"
        raise InputError(f"{option} is for language models; {source} is to be of the family {wanted}, which takes none")
    said = declared_by(recipe if recipe and not recipe.modules else Recipe("", wanted))
    options = inputs or said["inputs"], outputs or said["outputs"], (*said["axes"], *axes), (*said["settings"], *settings)
    opened = _declared(open_source(source, checkpoint), wanted, *options)
    chosen = decision.precision if decision else precision or (recipe.precision if recipe else "fp32")
    length = context_length or (recipe.context_length if recipe else None)
    extra = tuple(dict.fromkeys((*variants, *(decision.variants if decision else ()))))
    request = Request(opened, output, chosen, name or opened.name, length, limit, force, extra)  # type: ignore[arg-type]
    module, function = FAMILIES[wanted].split(":")
    run = getattr(importlib.import_module(module), function)
    with reference_operators():  # a family runs the modules to find their outputs, before it captures them
        report: ExportReport = run(request, progress or (lambda _stage, _share: None))
    return dataclasses.replace(report, target=decision)


def _usual_family(source: str, kind: str, families: Mapping[str, str]) -> str:
    if kind in {"function", "onnx"}:
        raise InputError(f"{source} does not say what kind of model it is; give --family, one of {', '.join(sorted(families))}")
    if kind == "diffusers_single":
        from edgegen.export.sources import class_of_diffusers
        from edgegen.export.sources.diffusers_single import FAMILIES as BY_CLASS

        return BY_CLASS.get(str(class_of_diffusers(Path(source))), "diffusion")
    return "diffusion" if kind == "diffusers" else "decoder_lm"


def _declared(opened: Any, family: str, *options: Sequence[str]) -> Any:
    """The source with what was declared of it: modules have tensors to declare, a diffusers directory bounds of axes."""
    from edgegen.export.declare import Declared, declare
    from edgegen.export.parts import Modules

    declared = Declared(*options)
    reads = _reader_of(opened)
    if reads is not None and family != reads:
        kind = "a diffusers directory" if opened.kind == "diffusers" else "a language model's checkpoint"
        alone = "; to export its VAE alone, give its folder vae" if hasattr(opened, "declare") and family == "vae" else ""
        raise InputError(f"{opened.name} is {kind}, which the family {reads} reads, not {family}{alone}")
    if isinstance(opened, Modules):
        if family == "decoder_lm":
            raise InputError(f"{opened.name} is a module, and the family decoder_lm reads language models' checkpoints alone")
        return declare(opened, declared, family)
    if declared and hasattr(opened, "declare"):
        return opened.declare(declared)
    if declared:
        names = "inputs, outputs, axes and settings (--input, --returns, --axis, --setting)"
        raise InputError(f"{names} are for modules and ONNX files; {opened.name} is neither")
    return opened


def _reader_of(opened: Any) -> str | None:
    """The only family that reads such a source; None where others may."""
    if hasattr(opened, "modules"):
        single = "diffusion" if "denoiser" in opened.modules else "vae"
        return single if opened.kind == "diffusers" else None
    return "diffusion" if opened.kind == "diffusers" else "decoder_lm"
