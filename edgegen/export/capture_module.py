"""Any PyTorch module becomes one standard ONNX graph (opset 23) with named inputs, outputs and axes."""

import re
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from edgegen.errors import CaptureError
from edgegen.export import passes
from edgegen.export.batch_groups import BatchGroups
from edgegen.export.explain import Limits, limits_error, limits_of, module_error, users_module
from edgegen.export.parts import Graphed, Part, example, usual_sizes
from edgegen.export.quiet import quiet_exporter
from edgegen.export.substitutes import reference_operators
from edgegen.tensors import Axis, TensorSpec

STEPS = "steps"
OPSET = 23  # without a cache nothing of 24 is needed, and onnxruntime 1.23, the last one for Python 3.10, knows no 24
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"})


def capture_part(name: str, part: Part, axes: Mapping[str, Axis]) -> ir.Model:
    """Capture `part` as the graph `name`; float32 inside and out.

    An axis whose module takes multiples of a number alone (of 8, say) is captured so; its bounds must be such multiples.
    `Part.steps` says them beforehand: the exporter then has far less to find out. `meta[STEPS]` of the result are those
    that it has, by axis.

    Raises:
        CaptureError: it cannot be captured; says which module, operator and line, and what to do.
    """
    given = part.module if isinstance(part.module, Graphed) else None
    steps: dict[str, int] = {}
    if given:
        model = given.graph()
    else:
        program, steps = _exported(name, part, axes)
        model = _onnx(name, part, program)
    passes.remove_dead(model.graph)
    passes.strip_metadata(model)
    _name(model.graph, name, part)
    random = next((node.op_type for node in model.graph.all_nodes() if node.op_type in _RANDOM), None)
    if random is not None:
        raise CaptureError(
            f"{name} draws numbers inside the graph ({random}), so no answer could be repeated; take them as an input, "
            "or let edgegen.export.noise.with_noise_inputs make inputs of them"
        )
    model.opset_imports.clear()
    model.opset_imports.update({"": OPSET})
    model.meta[STEPS] = steps
    return model


def _exported(name: str, part: Part, axes: Mapping[str, Axis]) -> tuple[torch.export.ExportedProgram, dict[str, int]]:
    """The program, and of which number the sizes of each dynamic axis must be multiples."""
    used = {axis for spec in part.inputs for axis in spec.axes if isinstance(axis, str)}
    factors = {axis: part.steps.get(axis, 1) for axis in sorted(used) if axes[axis].min != axes[axis].max}
    while True:
        dims = {axis: _dim(name, axis, factor, axes[axis]) for axis, factor in factors.items()}
        sizes = usual_sizes(axes)
        for axis, factor in factors.items():
            if factor > 1:  # once the factor would be taken for a fixed size
                sizes[axis] = max(sizes[axis], min(2 * factor, axes[axis].max))
        arguments = tuple(example(spec, axes, seed, sizes) for seed, spec in enumerate(part.inputs))
        try:
            program = _export(part, arguments, dims)
            break
        except Exception as error:  # the exporter has no error class of its own for what a module may contain
            limits = limits_of(str(error), factors)
            larger = {axis: factor for axis, factor in limits.multiples.items() if factor > factors[axis]}
            if limits.fixed or not larger:
                raise limits_error(name, limits, axes) or module_error(name, part.module, error) from error
        factors |= larger
    if narrowed := limits_error(name, Limits(bounds=_narrowed(program, part, factors)), axes):
        raise narrowed
    return program, {axis: factor for axis, factor in factors.items() if factor > 1}


def _narrowed(
    program: torch.export.ExportedProgram, part: Part, factors: Mapping[str, int]
) -> dict[str, tuple[int | None, int | None]]:
    """Bounds of the multiples: of those the exporter says nothing where the module computes otherwise beyond them."""
    found: dict[str, tuple[int | None, int | None]] = {}
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name, spec in zip(program.graph_signature.user_inputs, part.inputs, strict=True):
        for axis, size in zip(spec.axes, values[str(name)].shape, strict=True):
            factor = factors.get(str(axis), 1)
            if factor > 1 and not isinstance(size, int):
                (symbol,) = size.node.expr.free_symbols
                known = program.range_constraints[symbol]
                low = int(known.lower) * factor if known.lower > 2 else None  # 2 is where every size begins there
                found[str(axis)] = low, int(known.upper) * factor
    return found


def _export(part: Part, arguments: tuple[torch.Tensor, ...], dims: Mapping[str, Any]) -> torch.export.ExportedProgram:
    shapes = tuple({i: dims[str(axis)] for i, axis in enumerate(spec.axes) if axis in dims} for spec in part.inputs)
    # *args of a wrapper are one argument to the exporter.
    wrapped = _Positional(part.module)
    with torch.no_grad(), quiet_exporter(), reference_operators():
        return torch.export.export(wrapped, arguments, dynamic_shapes=(shapes,), strict=False)


class _Positional(torch.nn.Module):
    """Calls a module by position, whatever its signature; its groups may follow the batch."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> Any:
        with BatchGroups():
            return self.module(*tensors)


def _dim(name: str, axis: str, factor: int, bounds: Axis) -> Any:
    if factor == 1:
        return torch.export.Dim(axis, min=bounds.min, max=bounds.max)
    if any(size % factor for size in (bounds.min, bounds.opt, bounds.max)):
        raise CaptureError(
            f"{name}: its axis {axis} takes multiples of {factor} alone, not {bounds.min}..{bounds.opt}..{bounds.max}; "
            f"give --axis {axis}=MIN..USUAL..MAX in multiples of {factor}"
        )
    return factor * torch.export.Dim(f"_{axis}", min=bounds.min // factor, max=bounds.max // factor)


def _onnx(name: str, part: Part, program: torch.export.ExportedProgram) -> ir.Model:
    try:
        with torch.no_grad(), quiet_exporter():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in part.inputs],
                output_names=[spec.name for spec in part.outputs],
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise module_error(name, part.module, error, _place_in(program, part, error)) from error
    assert made is not None
    taken = {spec.name for spec in (*part.inputs, *part.outputs)}
    for value in list(made.model.graph.initializers.values()):  # the wrapper is nobody's business
        own = str(value.name).removeprefix("module.")
        if own not in taken:  # a parameter may be called as an input is
            value.name = own
    return made.model


def _place_in(program: torch.export.ExportedProgram, part: Part, error: BaseException) -> tuple[str, str]:
    """The module path and the user's line of the node that could not be translated; "" where the error names none."""
    named = re.search(r"Error when translating node %(\w+)", f"{error} {error.__cause__}")
    word = named[1].strip("_0123456789") if named is not None else None  # decomposed: a part of the operator's own name
    node = next((node for node in program.graph.nodes if word and word in node.name), None)
    if node is None:
        return "", ""
    wrappers = f"module.{users_module(part.module)[0]}"
    owners = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path.startswith(wrappers)]
    return owners[-1].removeprefix(wrappers) if owners else "", str(node.meta.get("stack_trace") or "")


def _name(graph: ir.Graph, name: str, part: Part) -> None:
    """Give inputs and outputs the names and axes that were asked for; CaptureError where there are other numbers of them."""
    for kind, values, specs in (("inputs", graph.inputs, part.inputs), ("outputs", graph.outputs, part.outputs)):
        if [value.name for value in values] != [spec.name for spec in specs]:
            raise CaptureError(f"{name} has the {kind} {[v.name for v in values]}; asked for were {[s.name for s in specs]}")
        for value, spec in zip(values, specs, strict=True):
            _check_shape(name, value, spec)
            value.shape = ir.Shape(spec.axes)


def _check_shape(name: str, value: ir.Value, spec: TensorSpec) -> None:
    """CaptureError where the graph knows another shape or dtype than was asked for."""
    if value.shape is None or value.dtype is None:
        return
    known = [size if isinstance(size, int) else None for size in value.shape]
    wrong = len(known) != len(spec.axes) or any(
        a is not None and isinstance(b, int) and a != b for a, b in zip(known, spec.axes, strict=True)
    )
    dtype = passes.DTYPES.get(value.dtype, str(value.dtype))
    if wrong or dtype != spec.dtype:
        shape = ", ".join(str(size) for size in value.shape)
        raise CaptureError(f"{name}: {spec.name} is {dtype}[{shape}] in the graph; asked for was {spec}")
