"""Why a model could not be captured: which module, which operator, and what to do."""

import re
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from edgegen.errors import CaptureError

_DATA_DEPENDENT = "an `if` or a size depends on the values of a tensor; write it with torch.where, or fix the size"
_NOT_THEIRS = (  # where the user's own code is not
    str(Path(torch.__file__).parent),
    str(Path(torch.__file__).parent.parent / "onnx"),  # onnxscript and onnxruntime too
    str(Path(__file__).parent),
    sysconfig.get_paths()["stdlib"] + "/contextlib",
)
# What the exporter says, in a few words that recur, and what a person can do about it.
_CURES: Mapping[str, str] = {
    "No ONNX function found": "replace the operator by those of torch.nn.functional, or open an issue with the model's name",
    "data-dependent": _DATA_DEPENDENT,
    "GuardOnDataDependentSymNode": _DATA_DEPENDENT,
    "AssertionError": "it refuses these sizes; give others (--axis), in multiples that suit it",
    "must match the size": "sizes do not fit one another; check the declared inputs and axes (--input, --axis)",
    "past_key_values": "its cache is not transformers' Cache; only decoders with keys and values in every layer work",
    "unexpected keyword argument": "its forward does not take what transformers' causal language models take",
}


_USUAL_CURES: Mapping[str, str] = {
    "cannot be captured": "rewrite that line with operators of torch on tensors alone",
    "does not run on its declared inputs": "give the inputs that its forward takes, in their order (--input, --axis)",
}


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
        f"{graph} {did}: in {where or type(model).__name__}{f' ({line})' if line else ''}"
        f"{f', operator {operator}' if operator else ''}: {(lines or [type(error).__name__])[0][:200]}"
        f"; {cure or _USUAL_CURES[did]}"
    )


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
    names = {id(module): name for name, module in model.named_modules() if name}
    found: str | None = None
    for error in chain:
        trace: Any = error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            if id(owner) in names:
                found = f"{names[id(owner)]} ({type(owner).__name__})"
            trace = trace.tb_next
    return found
