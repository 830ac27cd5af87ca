"""What the user says of modules of their own, put to what a source already knows: named inputs, outputs, axes, settings.

Here noise becomes inputs, and what a module returns becomes plain tensors: families see nothing of it.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgegen.errors import CaptureError, InputError
from edgegen.export.noise import running, with_noise_inputs
from edgegen.export.parts import Graphed, Modules, Specs, bounds_for, example, parse_axis, parse_named
from edgegen.export.substitutes import reference_operators
from edgegen.tensors import Axis, TensorSpec


@dataclasses.dataclass(frozen=True)
class Declared:
    """The options --input, --returns, --axis and --setting, as they were written."""

    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    axes: Sequence[str] = ()
    settings: Sequence[str] = ()

    def __bool__(self) -> bool:
        return any((self.inputs, self.outputs, self.axes, self.settings))


def declare(source: Modules, declared: Declared, family: str) -> Modules:
    """The source with what was declared, which goes before what it says itself; its modules take and give plain tensors.

    Raises:
        InputError: an option cannot be read, or names a graph or an axis that is not there.
        CaptureError: a module returns something else than was declared, or draws numbers that cannot be made inputs.
    """
    given_inputs, given_outputs = parse_named(tuple(declared.inputs)), parse_named(tuple(declared.outputs))
    if any(isinstance(module, Graphed) for module in source.modules.values()):
        source = _name_file(source, family, given_inputs, given_outputs)
    else:
        source = dataclasses.replace(
            source, inputs={**source.inputs, **given_inputs}, outputs={**source.outputs, **given_outputs}
        )
    named = source.inputs.keys() | source.outputs.keys()
    if len(source.modules) > 1 and (strange := sorted(named - source.modules.keys())):
        raise InputError(f"there is no graph {strange[0]!r}; this source has {', '.join(sorted(source.modules))}")
    axes = bounds_for(source.inputs, source.outputs, source.axes, dict(map(parse_axis, declared.axes)))
    settings = {**source.settings, **dict(map(_setting, declared.settings))}
    return _with_plain_modules(dataclasses.replace(source, axes=axes, settings=settings))


def _name_file(source: Modules, family: str, inputs: Mapping[str, Specs], outputs: Mapping[str, Specs]) -> Modules:
    """An ONNX file is one graph: the user's names for its tensors, else the family's usual ones."""
    from edgegen.export.sources.onnx import named_for

    named = named_for(source, family)
    ((graph, file),) = named.modules.items()
    if strange := sorted((inputs.keys() | outputs.keys()) - {"", graph}):
        raise InputError(f"there is no graph {strange[0]!r}; an ONNX file of a {family} model is its {graph or 'graph'}")
    takes = next(iter(inputs.values()), named.inputs[graph])
    gives = next(iter(outputs.values()), named.outputs[graph])
    assert isinstance(file, Graphed)
    file.rename(takes, gives)
    if not outputs and graph and _has_unknown_sides(takes, gives):
        return dataclasses.replace(named, inputs={graph: takes}, outputs={})  # the family runs it to see
    return dataclasses.replace(named, inputs={graph: takes}, outputs={graph: gives})


def _has_unknown_sides(takes: Specs, gives: Specs) -> bool:
    """Whether outputs have axes that no input has: converters invent names where they cannot tell a size."""
    known = {axis for spec in takes for axis in spec.axes}
    return any(isinstance(axis, str) and axis not in known for spec in gives for axis in spec.axes)


def _with_plain_modules(source: Modules) -> Modules:
    """Modules whose inputs are known take their noise as inputs, and give the declared outputs as plain tensors.

    A module with `encode` and `decode` is two graphs in one, which its family takes apart: it is left as it is.
    """
    modules, inputs = dict(source.modules), dict(source.inputs)
    for graph, listed in source.inputs.items():
        key = graph if graph in modules or len(modules) > 1 else next(iter(modules))
        module = modules[key]
        if isinstance(module, Graphed) or (hasattr(module, "encode") and hasattr(module, "decode")):
            continue
        modules[key], noise = _plain(graph or key, module, listed, source.outputs.get(graph, ()), source.axes)
        inputs[graph] = (*listed, *noise)
    return dataclasses.replace(source, modules=modules, inputs=inputs)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        if not equals or not key.isidentifier():
            raise ValueError
        return key, json.loads(value)
    except ValueError:
        raise InputError(f'setting {text!r} is not NAME=JSON, such as pixels=\'{{"black": 0, "white": 1}}\'') from None


def _plain(
    graph: str,
    module: torch.nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    axes: Mapping[str, Axis],
) -> tuple[torch.nn.Module, tuple[TensorSpec, ...]]:
    """The module as a function of tensors to tensors, and the noise that it takes besides."""
    drawing, noise = with_noise_inputs(module, inputs, axes, graph)
    if not outputs:
        return drawing, noise
    wanted = tuple(spec.name for spec in outputs)
    with torch.no_grad(), reference_operators(), running(graph, module):
        given = drawing(*(example(spec, axes, seed) for seed, spec in enumerate((*inputs, *noise))))
    found = flattened(graph, given, wanted)
    for spec, tensor in zip(outputs, found, strict=True):
        if len(spec.axes) != tensor.dim():
            raise CaptureError(f"{graph or 'the module'} gives {spec.name} with the shape {list(tensor.shape)}, not {spec}")
    plain = isinstance(given, torch.Tensor) or (isinstance(given, tuple) and type(given) is tuple and len(given) == len(found))
    return (drawing if plain else Plain(graph, drawing, wanted)), noise


class Plain(torch.nn.Module):
    """Gives the named tensors of whatever `module` returns, in the order of `names`; a single one bare."""

    def __init__(self, graph: str, module: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self._graph, self._names = module, graph, names

    def forward(self, *tensors: torch.Tensor) -> Any:
        """As the module's own."""
        found = flattened(self._graph, self.module(*tensors), self._names)
        return found[0] if len(found) == 1 else found


def flattened(graph: str, given: Any, names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """The tensors `names` of what a forward returned: by name of a dict or dataclass, else in order.

    Raises CaptureError where they are not there, or not tensors.
    """
    named = _named(given)
    if named is not None and (all(name in named for name in names) or len(named) != len(names)):
        if missing := [name for name in names if name not in named]:
            raise CaptureError(f"{graph or 'the module'} returns no {missing[0]}; it returns {', '.join(map(str, named))}")
        listed = [named[name] for name in names]
    elif named is not None:
        listed = list(named.values())
    else:
        # As in a dict, None is what was not asked for: StyleGAN2 returns (image, None).
        listed = [tensor for tensor in given if tensor is not None] if isinstance(given, (tuple, list)) else [given]
    if len(listed) != len(names) or not all(isinstance(tensor, torch.Tensor) for tensor in listed):
        said = ", ".join(type(item).__name__ for item in listed)
        raise CaptureError(
            f"{graph or 'the module'} returns {said}; declared {'is' if len(names) == 1 else 'are'} {', '.join(names)}: "
            "give one --returns for each tensor, in order"
        )
    return tuple(listed)


def _named(given: Any) -> dict[str, Any] | None:
    if isinstance(given, Mapping):
        return {str(key): value for key, value in given.items() if value is not None}
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return {f.name: getattr(given, f.name) for f in dataclasses.fields(given) if getattr(given, f.name) is not None}
    if isinstance(given, tuple) and hasattr(given, "_fields"):
        return dict(zip(given._fields, given, strict=True))
    return None
