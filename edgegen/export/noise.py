"""Noise that a module draws in its forward becomes inputs: `noise.0`, `noise.1`, ... in the order of the calls."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edgegen.errors import CaptureError, EdgegenError
from edgegen.export.explain import module_error
from edgegen.export.parts import example, usual_sizes
from edgegen.export.substitutes import reference_operators
from edgegen.tensors import Axis, TensorSpec

Shape = tuple[int, ...]
_NORMAL = frozenset({torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_})
_OTHERS: Mapping[Any, str] = {
    torch.rand: "torch.rand",
    torch.rand_like: "torch.rand_like",
    torch.randint: "torch.randint",
    torch.bernoulli: "torch.bernoulli",
    torch.Tensor.uniform_: "Tensor.uniform_",
    torch.Tensor.bernoulli_: "Tensor.bernoulli_",
    torch.randperm: "torch.randperm",
    torch.multinomial: "torch.multinomial",
}


class _Drawn(TorchFunctionMode):
    """Hands every call that draws standard normal numbers to `give(shape) -> tensor`."""

    def __init__(self, give: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.give = give

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if function in _OTHERS:
            raise CaptureError(
                f"{_OTHERS[function]} draws numbers inside forward; only normal noise is made an input: take them as argument"
            )
        if function not in _NORMAL:
            return function(*args, **options)
        if function is torch.randn:
            size = options.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            return self.give(tuple(size))
        if function is torch.randn_like:
            return self.give(tuple(args[0].shape))
        return self._with_moments(function, args, options)

    def _with_moments(self, function: Any, args: Any, options: dict[str, Any]) -> torch.Tensor:
        """`x.normal_(mean, std)`, `torch.normal(mean, std, size)` or, of tensors, `torch.normal(mean, std)`."""
        own = function is torch.Tensor.normal_
        moments = list(args[1:] if own else args)
        mean = options.get("mean", moments[0] if moments else 0.0)
        std = options.get("std", moments[1] if len(moments) > 1 else 1.0)
        if own:
            target: torch.Tensor = args[0]
            filled: torch.Tensor = target.copy_(self.give(tuple(target.shape)) * std + mean)
            return filled
        size = options.get("size", moments[2] if len(moments) > 2 else None)
        shape = size if size is not None else (torch.as_tensor(mean) + torch.as_tensor(std)).shape
        drawn: torch.Tensor = self.give(tuple(shape)) * std + mean
        return drawn


class NoiseInputs(torch.nn.Module):
    """Runs `module` with its noise given: `forward(*inputs, noise_0, noise_1, ...)`."""

    def __init__(self, module: torch.nn.Module, inputs: int, noises: int) -> None:
        super().__init__()
        self.module, self._inputs, self._noises = module, inputs, noises

    def forward(self, *tensors: torch.Tensor) -> Any:
        """As the module's own, with one more tensor for each time that it draws."""
        left = iter(tensors[self._inputs :])

        def give(shape: Any) -> torch.Tensor:
            noise = next(left, None)
            if noise is None:
                raise CaptureError(f"forward draws noise more than {self._noises} times now; it must not depend on its input")
            if len(noise.shape) != len(shape):
                raise CaptureError(f"forward draws noise of {len(shape)} axes where it drew {len(noise.shape)} before")
            return noise

        with _Drawn(give):
            return self.module(*tensors[: self._inputs])


def with_noise_inputs(
    module: torch.nn.Module, inputs: tuple[TensorSpec, ...], axes: Mapping[str, Axis], graph: str = ""
) -> tuple[torch.nn.Module, tuple[TensorSpec, ...]]:
    """Make inputs of the normal noise that `module` draws in its forward; the reference can then run with given noise.

    Returns:
        The module to capture, and the specs of its noise, in order, to be put behind `inputs`: `noise.0 float32[batch, 1, 4,
        4]`. The module itself and nothing where it draws none.

    Raises:
        CaptureError: it draws other numbers than normal ones, the noise's size cannot be told from the named axes, or it does
            not run on such inputs; `graph` is its name in messages.
    """
    usual = usual_sizes(axes)
    with running(graph, module):
        shapes = _shapes(module, inputs, axes, usual)
    if not shapes:
        return module, ()
    named: list[list[int | str]] = [list(shape) for shape in shapes]
    used = {axis for spec in inputs for axis in spec.axes if isinstance(axis, str)}
    for axis in sorted(used):
        other = other_size(axes[axis], usual[axis])
        if other is None:
            continue
        with running(graph, module):
            changed = _shapes(module, inputs, axes, usual | {axis: other})
        for index, (before, after) in enumerate(zip(shapes, changed, strict=True)):
            for place in (place for place, size in enumerate(before) if size != after[place]):
                if (before[place], after[place]) != (usual[axis], other):
                    raise CaptureError(
                        f"noise.{index} has {before[place]} entries along axis {place} where {axis} is {usual[axis]}, "
                        f"{after[place]} where it is {other}; fix it: --axis {axis}={usual[axis]}"
                    )
                named[index][place] = axis
    specs = tuple(TensorSpec(f"noise.{index}", "float32", tuple(shape)) for index, shape in enumerate(named))
    return NoiseInputs(module, len(inputs), len(specs)), specs


@contextlib.contextmanager
def running(graph: str, module: torch.nn.Module) -> Iterator[None]:
    """One line, naming the module and the user's line, for whatever a module raises on its declared inputs."""
    try:
        yield
    except EdgegenError:
        raise
    except Exception as error:  # it is the user's own code: anything may happen in it
        raise module_error(graph or type(module).__name__, module, error, did="does not run on its declared inputs") from error


def other_size(axis: Axis, usual: int) -> int | None:
    """Another size than the usual one that the axis may take, to see what moves with it; None where it is fixed."""
    if axis.min == axis.max:
        return None
    return axis.max if usual != axis.max else axis.min


def _shapes(
    module: torch.nn.Module, inputs: tuple[TensorSpec, ...], axes: Mapping[str, Axis], sizes: Mapping[str, int]
) -> list[Shape]:
    found: list[Shape] = []

    def give(shape: Any) -> torch.Tensor:
        found.append(tuple(int(size) for size in shape))
        return torch.zeros(found[-1])

    arguments = [example(spec, axes, seed, sizes) for seed, spec in enumerate(inputs)]
    with torch.no_grad(), reference_operators(), _Drawn(give):
        module(*arguments)
    return found
