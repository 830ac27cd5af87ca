"""Why a model could not be captured: which module, which operator, and what to do."""

import re
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgegen.errors import CaptureError
from edgegen.tensors import Axis

_DATA_DEPENDENT = "an `if` or a size depends on the values of a tensor; write it with torch.where, or fix the size"
_ON_CPU = "take .cuda() and device='cuda' out of forward: what is captured runs on the CPU"
_NOT_THEIRS = (  # where the user's own code is not
    str(Path(torch.__file__).parent),
    str(Path(torch.__file__).parent.parent / "onnx"),  # onnxscript and onnxruntime too
    str(Path(__file__).parent),
    sysconfig.get_paths()["stdlib"] + "/contextlib",
)
# What the exporter says, in a few words that recur, and what a person can do about it.
_CURES: Mapping[str, str] = {
    "No ONNX function found": "replace the operator by those of torch.nn.functional, or open an issue with the model's name",
    "Unsupported attribute type": "a number there (groups, a stride) follows a size that varies; fix that size: --axis batch=1",
    "data-dependent": _DATA_DEPENDENT,
    "GuardOnDataDependentSymNode": _DATA_DEPENDENT,
    "Expected more than 1 value": "it takes the statistics of a batch (batch_norm with training=True): use running ones",
    "required positional argument": "give --input for each that its forward takes, in their order; where one is to be None "
    "(StyleGAN's c without classes), wrap the module in one that passes it",
    "not compiled with CUDA": _ON_CPU,
    "NVIDIA driver": _ON_CPU,
    "AssertionError": "it refuses these sizes; give others (--axis), in multiples that suit it",
    "must match the size": "sizes do not fit one another; check the declared inputs and axes (--input, --axis)",
    "past_key_values": "its cache is not transformers' Cache; only decoders with keys and values in every layer work",
    "unexpected keyword argument": "its forward does not take what transformers' causal language models take",
}


_USUAL_CURES: Mapping[str, str] = {
    "cannot be captured": "rewrite that line with operators of torch on tensors alone",
    "does not run on its declared inputs": "give the inputs that its forward takes, in their order (--input, --axis)",
}


@dataclass(frozen=True)
class Limits:
    """What the exporter found of named axes: those of one size alone, of multiples alone, with other bounds, or equal.

    `unclear` are those that it rejects without a word of what would do.
    """

    fixed: dict[str, int] = field(default_factory=dict)
    multiples: dict[str, int] = field(default_factory=dict)
    bounds: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()


def limits_of(said: str, factors: Mapping[str, int]) -> Limits:
    """Read the fixes that torch.export suggests at the end of its error `said`.

    `factors` has every named axis with the number it was declared a multiple of. For those above 1, and in what it suggests
    itself, the exporter speaks of `_axis`, the multiple's other factor.
    """
    violated = re.search(r"Constraints violated \(([\w, ]+)\)", said)
    named = [name.removeprefix("_") for name in violated[1].split(", ")] if violated else []
    found = Limits(unclear=tuple(name for name in named if name in factors))
    fixes = [line.strip().partition(" = ") for line in said.partition("Suggested fixes:")[2].splitlines()]
    for name, _, value in fixes:
        if (axis := name.removeprefix("_")) not in factors:
            continue
        unit = factors[axis] if name != axis else 1
        if value.isdigit():
            found.fixed[axis] = int(value) * unit
        elif match := re.fullmatch(r"(\d+)\*_\w+", value):
            found.multiples[axis] = int(match[1]) * unit
        elif (other := value.removeprefix("_")) in factors:
            found.equal[axis] = other
        elif match := re.fullmatch(r"Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)", value):
            least, most = (int(number) * unit if number else None for number in match.groups())
            found.bounds[axis] = least, most
    return found


def limits_error(graph: str, limits: Limits, axes: Mapping[str, Axis]) -> CaptureError | None:
    """The axis, what the module allows of it, and the option that says so; None where the exporter found no limit."""
    for axis, size in limits.fixed.items():
        return CaptureError(
            f"{graph}: its axis {axis} cannot vary, the module computes with {size} alone; "
            f"give {_option(axis, Axis(size, size, size))}, or write x.shape[0] where forward has len(x) or int(x.shape[0])"
        )
    for axis, other in limits.equal.items():
        return CaptureError(
            f"{graph}: its axes {axis} and {other} must always be equal; give both one name (--input; `inputs` in a recipe)"
        )
    for axis, (low, high) in limits.bounds.items():
        given = axes[axis]
        least, most = max(low or 1, given.min), min(high or given.max, given.max)
        if least <= most and (least, most) != (given.min, given.max):
            better = Axis(least, min(max(given.opt, least), most), most)
            return CaptureError(
                f"{graph}: its axis {axis} can be {least} to {most} in one graph, not {given.min} to {given.max}: beyond, the "
                f"module computes otherwise; give {_option(axis, better)}"
            )
    for axis in limits.unclear:
        size = axes[axis].opt
        return CaptureError(
            f"{graph}: the exporter cannot tell which sizes of its axis {axis} the module takes; "
            f"give it one size, {_option(axis, Axis(size, size, size))}"
        )
    return None


def _option(axis: str, sizes: Axis) -> str:
    listed = str(sizes.min) if sizes.min == sizes.max else f"{sizes.min}..{sizes.opt}..{sizes.max}"
    return f'--axis {axis}={listed} (in a recipe: axes={{"{axis}": ({sizes.min}, {sizes.opt}, {sizes.max})}})'


def capture_error(model: torch.nn.Module, error: BaseException) -> CaptureError:
    """One line from whatever the exporter raised."""
    chain = list(_causes(error))
    said = next((line.strip() for cause in reversed(chain) for line in str(cause).splitlines() if line.strip()), "")
    text = " ".join(str(cause) for cause in chain)
    operator = next(iter(re.findall(r"(?:aten|prims|onnx|custom)[.:]{1,2}[\w.]+", text)), None)
    cure = next((cure for words, cure in _CURES.items() if words in text), "open an issue with the model's name and this line")
    module = _module_in(model, chain)
    return CaptureError(
        f"{type(model).__name__} cannot be captured: in {module or 'the model'}"
        f"{f', operator {operator}' if operator else ''}: {said[:200]}; {cure}"
    )


def module_error(
    graph: str,
    model: torch.nn.Module,
    error: BaseException,
    place: tuple[str, str] = ("", ""),
    did: str = "cannot be captured",
) -> CaptureError:
    """As `capture_error`, for a module of the user's own: names the line of their code as well.

    `place`: the module's path and the stack, as text, where the exporter knows them better than the traceback.
    `did`: what went wrong, a key of _USUAL_CURES.
    """
    chain = list(_causes(error))
    text = " ".join([place[1], type(error).__name__, *(str(cause) for cause in chain)])
    lines = [line.strip() for cause in reversed(chain) for line in str(cause).splitlines() if line.strip()]
    operator = next(iter(re.findall(r"(?:aten|prims)[.:]{1,2}\w+", text)), None)
    cure = next((cure for words, cure in _CURES.items() if words in text), None)
    where = place[0] or _module_in(model, chain)
    line = _line_in(chain, text)
    return CaptureError(
        f"{graph} {did}: in {where or type(users_module(model)[1]).__name__}{f' ({line})' if line else ''}"
        f"{f', operator {operator}' if operator else ''}: {(lines or [type(error).__name__])[0][:200]}"
        f"; {cure or _USUAL_CURES[did]}"
    )


def users_module(model: torch.nn.Module) -> tuple[str, torch.nn.Module]:
    """The module inside edgegen's own wrappers, of which each has one child, and the path to it: "module.whole."."""
    path = ""
    while type(model).__module__.startswith("edgegen.export.") and len(children := list(model.named_children())) == 1:
        path, model = f"{path}{children[0][0]}.", children[0][1]
    return path, model


def _line_in(chain: Iterable[BaseException], text: str) -> str | None:
    """The line of the user's code: what the exporter quotes, or the deepest frame that is not PyTorch's or edgegen's."""
    pattern = r'File:? "?([^"\n]+?)"?[:,](?: line)? ?(\d+)'
    quoted = [match for match in re.findall(pattern, text) if not match[0].startswith((*_NOT_THEIRS, "<"))]
    if quoted:
        return f"{Path(quoted[-1][0]).name}, line {quoted[-1][1]}"
    found = None
    for error in chain:
        for frame in traceback.extract_tb(error.__traceback__):
            if not frame.filename.startswith((*_NOT_THEIRS, "<")):
                found = f"{Path(frame.filename).name}, line {frame.lineno}"
    return found


def not_attended(model: torch.nn.Module, attended: Iterable[str]) -> CaptureError:
    """Layers that keep state, but not as keys and values behind transformers' attention interface."""
    seen = set(attended)
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if re.search(r"(attn|attention|mixer|ssm|rwkv|timemix)", type(module).__name__, re.IGNORECASE)
        and not any(name.startswith(other) for other in seen)
    ]
    name, module = layers[0] if layers else ("", model)
    return CaptureError(
        f"{type(model).__name__} cannot be captured: {name or 'a layer'} ({type(module).__name__}) does not call transformers' "
        f"attention interface ({len(seen)} of {model.config.num_hidden_layers} layers do); "  # type: ignore[union-attr]
        "only decoders whose every layer keeps keys and values can be exported"
    )


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _module_in(model: torch.nn.Module, chain: Iterable[BaseException]) -> str | None:
    """The deepest module of the model whose forward is on the stack of one of the errors."""
    _, own = users_module(model)
    names = {id(module): name for name, module in own.named_modules() if name}
    found: str | None = None
    for error in chain:
        trace: Any = error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            if id(owner) in names:
                found = f"{names[id(owner)]} ({type(owner).__name__})"
            trace = trace.tb_next
    return found
