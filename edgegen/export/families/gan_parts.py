"""The graphs of a GAN as a source gives them: inputs asked for, outputs and axes filled in by running the modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import msgspec
import torch

from edgegen.errors import ExportError
from edgegen.export.parts import Modules, Part, check_last_id, example
from edgegen.pipelines.gan_options import GanSettings
from edgegen.tensors import Axis, TensorSpec

BATCH = Axis(1, 1, 16)
OUTPUTS = {"generator": "image", "mapping": "w", "synthesis": "image", "translator": "image_out"}
_INPUTS = {  # graph: what it must take, how many axes that has, an example of how to say so
    "generator": ("z", None, "z float32[batch, 128]"),
    "mapping": ("z", None, "z float32[batch, 128]"),
    "synthesis": ("w", 3, "w float32[batch, 10, 128]"),
    "translator": ("image", 4, "image float32[batch, 3, height, width]"),
}
PAINTERS = ("generator", "synthesis")  # the graphs that give images of latents
_BESIDE = {
    "generator": "class_ids and noise.0, noise.1, ...",
    "mapping": "class_ids",
    "synthesis": "noise.0, noise.1, ...",
    "translator": "nothing",
}


@dataclass(frozen=True)
class Given:
    """A source: its graphs, its axes, and the settings that came with it."""

    parts: Mapping[str, Part]
    axes: Mapping[str, Axis]
    settings: GanSettings

    @classmethod
    def of(cls, source: Modules) -> "Given":
        """Read a source. ExportError where its inputs are not those of a GAN."""
        try:
            settings = msgspec.convert(source.settings, GanSettings)
        except msgspec.ValidationError as error:
            raise ExportError(f"the settings are not those of a GAN: {error}") from None
        axes: dict[str, Axis] = {"batch": BATCH} | dict(source.axes)
        named = {name or _only_graph(source): module for name, module in source.modules.items()}
        if set(named) not in ({"generator"}, {"mapping", "synthesis"}, {"translator"}):
            raise ExportError(f"a GAN has generator, or mapping and synthesis, or translator; this source has {sorted(named)}")
        parts = {}
        for name in sorted(named):
            inputs = source.inputs.get(name) or source.inputs.get("", ())
            _check_inputs(name, inputs, axes)
            outputs = source.outputs.get(name) or source.outputs.get("", ()) or (_output(name, named[name], inputs, axes),)
            if [spec.name for spec in outputs] != [OUTPUTS[name]]:
                raise ExportError(f"{name} must give {OUTPUTS[name]}; it gives {', '.join(map(str, outputs))}")
            _bound(outputs[0], inputs[0], axes, scale_of(named[name], inputs, axes) if name == "translator" else Fraction(1))
            parts[name] = Part(named[name], inputs, outputs)
        _check_classes(parts, axes, settings)
        return cls(parts, axes, settings)


def examples(inputs: tuple[TensorSpec, ...], axes: Mapping[str, Axis]) -> tuple[torch.Tensor, ...]:
    """Tensors to run a graph with."""
    return tuple(example(spec, axes, seed) for seed, spec in enumerate(inputs))


def scale_of(module: torch.nn.Module, inputs: tuple[TensorSpec, ...], axes: Mapping[str, Axis]) -> Fraction:
    """Output pixels for each input pixel. ExportError where height and width differ in it."""
    image = examples(inputs, axes)[0]
    made = run_module(module, (image,))
    found = {Fraction(after, before) for after, before in zip(made.shape[2:], image.shape[2:], strict=True)}
    if len(found) != 1:
        raise ExportError(f"the translator makes {list(made.shape)} of {list(image.shape)}; both sides must grow alike")
    return found.pop()


def _only_graph(source: Modules) -> str:
    """What a single module without a name is: it tells by its input, which may have another name than it should."""
    specs = [spec for listed in source.inputs.values() for spec in listed]
    names = {spec.name for spec in specs}
    is_picture = len(specs) == 1 and len(specs[0].axes) == 4 and 1 not in specs[0].axes[2:]  # z may be [batch, 100, 1, 1]
    return "translator" if "image" in names or ("z" not in names and is_picture) else "generator"


def _check_inputs(graph: str, inputs: tuple[TensorSpec, ...], axes: Mapping[str, Axis]) -> None:
    first, rank, how = _INPUTS[graph]
    if not inputs or inputs[0].name != first or (rank and len(inputs[0].axes) != rank):
        there = ", ".join(map(str, inputs)) or "nothing"
        raise ExportError(f'{graph} takes {there}; say what it takes, {first} first: --input "{graph}: {how}"')
    noise = [spec for spec in inputs[1:] if spec.name.startswith("noise.")]
    others = [spec.name for spec in inputs[1:] if spec not in noise]
    may_be = {"class_ids"} if graph in ("generator", "mapping") else set()
    if [spec.name for spec in noise] != [f"noise.{layer}" for layer in range(len(noise))] or set(others) - may_be or others[1:]:
        raise ExportError(
            f"{graph} takes {', '.join(spec.name for spec in inputs)}; beside {first} there can be {_BESIDE[graph]}"
        )
    if noise and graph not in PAINTERS:
        raise ExportError(f"{graph} draws noise; only {' and '.join(PAINTERS)} may: take it out of this one")
    if constant := [spec for spec in noise if spec.axes[:1] != inputs[0].axes[:1]]:
        raise ExportError(f"{graph}: {constant[0]} is the same for all images; it must begin with the axis {inputs[0].axes[0]}")
    for spec in inputs:
        free = [axis for axis in spec.axes if isinstance(axis, str)]
        if strange := [axis for axis in free if axis not in axes]:
            raise ExportError(
                f"{graph}: nothing bounds the axis {strange[0]} of {spec}; give --axis {strange[0]}=LEAST..USUAL..MOST"
            )
        if graph != "translator" and free[1:]:
            raise ExportError(f"{graph}: {spec} may vary in its first axis only, the batch")


def run_module(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The one tensor that a module gives. ExportError where it does not take the inputs, or gives something else."""
    try:
        with torch.no_grad():
            made = module(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        sizes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise ExportError(f"{type(module).__name__} does not take {sizes}: {str(error).splitlines()[0][:200]}") from error
    if not isinstance(made, torch.Tensor):
        raise ExportError(f"{type(module).__name__} gives a {type(made).__name__}; it must give one tensor")
    return made


def _output(graph: str, module: torch.nn.Module, inputs: tuple[TensorSpec, ...], axes: Mapping[str, Axis]) -> TensorSpec:
    """What a graph gives, found by running it: free where its input is."""
    made = run_module(module, examples(inputs, axes))
    sizes: list[int | str] = list(made.shape)
    first = inputs[0].axes
    sizes[0] = first[0]
    if graph == "translator":
        sizes[2:] = [f"{axis}_out" if isinstance(axis, str) else size for axis, size in zip(first[2:], sizes[2:], strict=True)]
    return TensorSpec(OUTPUTS[graph], "float32", tuple(sizes))


def _bound(output: TensorSpec, given: TensorSpec, axes: dict[str, Axis], scale: Fraction) -> None:
    """Bounds of the axes that only an output has: those of the input's axis in the same place, scaled."""
    for place, axis in enumerate(output.axes):
        if isinstance(axis, str) and axis not in axes:
            before = given.axes[place] if place < len(given.axes) else None
            if not isinstance(before, str):
                raise ExportError(f"nothing bounds the axis {axis} of {output}; give --axis {axis}=LEAST..USUAL..MOST")
            sizes = (axes[before].min, axes[before].opt, axes[before].max)
            axes[axis] = Axis(*(-(-size * scale.numerator // scale.denominator) for size in sizes))


def _check_classes(parts: Mapping[str, Part], axes: Mapping[str, Axis], settings: GanSettings) -> None:
    conditional = any(spec.name == "class_ids" for part in parts.values() for spec in part.inputs)
    if conditional != (settings.classes > 0):
        there = "takes class_ids" if conditional else "takes no class_ids"
        raise ExportError(f"the model {there}, and settings say {settings.classes} classes; give --setting classes=10, or none")
    for graph, part in parts.items():
        check_last_id(graph, part, axes, "class_ids", settings.classes, "classes")
