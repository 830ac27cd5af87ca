"""What a family's export half makes of a source: modules with named inputs, settings, and PyTorch's own answers."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
import onnx_ir as ir
import torch

from edgegen.errors import ExportError, InputError
from edgegen.tensors import Axis, Tensors, TensorSpec

_SPEC = re.compile(r"([\w.]+) (float32|int64|int32|bool|uint8)\[([\w, ]*)\]")
_BOUNDS = re.compile(r"(\w+)=(\d+)(?:\.\.(\d+))?(?:\.\.(\d+))?")

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Part:
    """One graph to be: a module, and what its `forward` takes and gives, in order. A named axis stays dynamic.

    `steps` names the axes of which the module takes multiples alone, as far as that is known.
    """

    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Graphed(Protocol):
    """A module that has its graph already (of an ONNX file): it runs in a family's `reference`, and is not captured again.

    `round_weights` rounds its weights to float16, in what it runs and in `graph` alike.
    """

    def graph(self) -> ir.Model:
        """A copy of the graph, in the canonical opset, named as the source says."""

    def round_weights(self) -> None:
        """Round every weight to float16, kept as float32."""

    def rename(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Take names and axes from the user's specs, in order. SourceError where they do not fit."""


@dataclass(frozen=True)
class Modules:
    """A source that is a user's own modules: by graph name, with their weights, in eval mode, on the CPU, in float32.

    `inputs` and `outputs` by graph, `axes` and `settings` as the user gave them; a family fills in what is missing.
    The name "" stands for the only graph of a family. `steps` are those of `Part`.
    """

    kind: str
    name: str
    sha256: str
    licence: str
    modules: Mapping[str, torch.nn.Module]
    inputs: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)
    outputs: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)


AnyModules = TypeVar("AnyModules", bound=Modules)


@dataclass(frozen=True)
class Model:
    """A model of a family, ready to be captured.

    `reference` runs PyTorch and returns (recorded inputs, recorded outputs), named and ordered as the pipeline's `replay` takes
    and gives them; it is called again after the weights were rounded. `files` are further files of the bundle, by path.
    """

    family: str
    parts: Mapping[str, Part]
    axes: Mapping[str, Axis]
    settings: msgspec.Struct
    reference: Callable[[], tuple[Tensors, Tensors]]
    files: Mapping[str, bytes] = field(default_factory=dict)


def specs_for(source: Modules, graph: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of `graph`, as the user gave them.

    Raises:
        ExportError: they are not given; says how, and what the module's `forward` takes.
    """
    key = graph if graph in source.modules else ""
    inputs = source.inputs.get(graph) or source.inputs.get(key, ())
    outputs = source.outputs.get(graph) or source.outputs.get(key, ())
    missing = "--input" if not inputs else "--returns" if not outputs else None
    if missing is not None:
        takes = signature(source.modules[key]) if key in source.modules else "unknown"
        prefix = f"{graph}: " if len(source.modules) > 1 else ""
        shape = "z float32[batch, 128]" if missing == "--input" else "image float32[batch, 3, 64, 64]"
        raise ExportError(
            f"nothing says what the graph {graph} {'takes' if missing == '--input' else 'gives'}; its forward is {takes}; "
            f'give {missing} "{prefix}{shape}", in the order of forward'
        )
    return inputs, outputs


def signature(module: torch.nn.Module) -> str:
    """What a module's `forward` takes, as Python writes it."""
    import inspect

    listed = [str(parameter) for parameter in inspect.signature(module.forward).parameters.values()]
    return f"forward({', '.join(listed)})"


def parse_spec(text: str) -> TensorSpec:
    """Read "z float32[batch, 128]", as `edgegen inspect` writes it: a named axis is dynamic, a number is fixed.

    Raises InputError where it is not of that form.
    """
    match = _SPEC.fullmatch(text.strip())
    if not match:
        raise InputError(f'{text!r} is not a tensor; write it as "name float32[batch, 128]"')
    name, dtype, listed = match.groups()
    axes = tuple(int(axis) if axis.isdigit() else axis for axis in map(str.strip, listed.split(",")) if axis)
    return TensorSpec(name, dtype, axes)  # type: ignore[arg-type]


def parse_named(texts: tuple[str, ...]) -> dict[str, tuple[TensorSpec, ...]]:
    """Read "mapping: z float32[batch, 512]" of the command line: tensors by graph, in their order; "" where none is named."""
    found: dict[str, tuple[TensorSpec, ...]] = {}
    for text in texts:
        graph, colon, rest = text.partition(":")
        name, spec = (graph.strip(), rest) if colon else ("", text)
        found[name] = (*found.get(name, ()), parse_spec(spec))
    return found


def parse_axis(text: str) -> tuple[str, Axis]:
    """Read "batch=1..4..16" (least, usual, most), "batch=1..16" (the usual is the least), or "batch=4" (that alone).

    Raises InputError where it is not of that form, or out of order.
    """
    match = _BOUNDS.fullmatch(text.strip())
    if not match:
        raise InputError(f"{text!r} is not an axis; write it as batch=1..4..16 (least, usual, most)")
    name, first, second, third = match.groups()
    least = int(first)
    most = int(third or second or first)
    usual = int(second) if third else least
    if not 1 <= least <= usual <= most:
        raise InputError(f"axis {text!r} is out of order; write it as {name}=LEAST..USUAL..MOST, from 1")
    return name, Axis(least, usual, most)


def bounds_for(
    inputs: Mapping[str, Specs], outputs: Mapping[str, Specs], own: Mapping[str, Axis], given: Mapping[str, Axis]
) -> dict[str, Axis]:
    """The bounds of every named axis of the inputs: those given, else the source's own; 1 to 16 for a batch.

    Raises InputError where an axis has none, or one is given that no tensor has.
    """
    needed, others = _axes_in(inputs), _axes_in(outputs)
    axes = ({"batch": Axis(1, 1, 16)} if "batch" in needed else {}) | dict(own) | dict(given)
    if inputs and outputs and (unknown := sorted(given.keys() - needed - others)):
        raise InputError(f"no tensor has an axis named {unknown[0]}; there are {', '.join(sorted(needed | others)) or 'none'}")
    if missing := sorted(needed - axes.keys()):
        raise InputError(f"nothing says how large the axis {missing[0]} may be; give --axis {missing[0]}=LEAST..USUAL..MOST")
    return axes


def check_steps(axes: Mapping[str, Axis], steps: Mapping[str, int], least: int = 1) -> None:
    """Raise InputError where the bounds of an axis are no multiples of its step; of `least`, where it has one size alone."""
    for name, usual in steps.items():
        sizes = axes.get(name)
        if sizes is None:
            continue
        step = usual if sizes.min != sizes.max else least
        if any(size % step for size in (sizes.min, sizes.opt, sizes.max)):
            raise InputError(
                f"the axis {name} takes multiples of {step} alone, not {sizes.min}..{sizes.opt}..{sizes.max}; give "
                f"--axis {name}=LEAST..USUAL..MOST in multiples of {step}"
            )


def with_numbers(source: AnyModules, names: Sequence[str]) -> AnyModules:
    """The source with the axes `names` as numbers, where they have one size alone."""
    sizes = {name: axis.opt for name, axis in source.axes.items() if name in names and axis.min == axis.max}

    def put(specs: Specs) -> Specs:
        return tuple(
            msgspec.structs.replace(spec, axes=tuple(sizes.get(str(axis), axis) for axis in spec.axes)) for spec in specs
        )

    return replace(
        source,
        inputs={graph: put(specs) for graph, specs in source.inputs.items()},
        outputs={graph: put(specs) for graph, specs in source.outputs.items()},
        axes={name: axis for name, axis in source.axes.items() if name not in sizes},
    )


def _axes_in(specs: Mapping[str, Specs]) -> set[str]:
    return {axis for listed in specs.values() for spec in listed for axis in spec.axes if isinstance(axis, str)}


def example(spec: TensorSpec, axes: Mapping[str, Axis], seed: int = 0, sizes: Mapping[str, int] | None = None) -> torch.Tensor:
    """A tensor of the `opt` sizes to capture with: standard normal, or zeros where integers are asked for.

    `sizes` are those of single axes that are to be others.
    """
    known = usual_sizes(axes) | dict(sizes or {})
    shape = [axis if isinstance(axis, int) else known[axis] for axis in spec.axes]
    if spec.dtype == "float32":
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def check_last_id(graph: str, part: Part, axes: Mapping[str, Axis], name: str, count: int, setting: str) -> None:
    """Run the module with the last of `count` ids as its input `name`: an embedding may be smaller than the settings say.

    Raises ExportError, naming `setting`, where it takes none so large. A part without that input is left alone.
    """
    if not any(spec.name == name for spec in part.inputs):
        return
    tensors = {spec.name: example(spec, axes, seed) for seed, spec in enumerate(part.inputs)}
    tensors[name].fill_(count - 1)
    try:
        with torch.no_grad():
            part.module(*tensors.values())
    except Exception as error:  # of a table, a one-hot vector, ONNX Runtime: each has its own
        said = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ExportError(
            f"{graph} does not take {count - 1} in {name}, and by the setting {setting} it must ({said}); correct it: "
            f"--setting {setting}=N"
        ) from error


def usual_sizes(axes: Mapping[str, Axis]) -> dict[str, int]:
    """The size of each axis in an example: `opt`, but 2 rather than 1, which the exporter would take for a fixed size."""
    return {name: max(axis.opt, min(2, axis.max)) for name, axis in axes.items()}
