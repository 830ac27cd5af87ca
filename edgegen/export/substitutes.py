"""Pure PyTorch in place of StyleGAN's CUDA operators, for as long as a module runs or is captured.

The operators are defined by Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), and the parameters
of its two common implementations (`torch_utils.ops`, `op`). Where an original runs on the CPU, its substitute is held to it
before it is used.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F

from edgegen.errors import CaptureError

_OURS = ("torch", "edgegen", "onnx", "onnxscript", "onnxruntime", "transformers", "diffusers")
_SAME = 1e-4  # float32 sums of at most a few hundred products, in another order
_ROOT2 = 2**0.5
_ACTIVATIONS: Mapping[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], float, float]] = {  # name: (f, alpha, gain)
    "linear": (lambda x, _: x, 0.0, 1.0),
    "relu": (lambda x, _: F.relu(x), 0.0, _ROOT2),
    "lrelu": (F.leaky_relu, 0.2, _ROOT2),
    "tanh": (lambda x, _: torch.tanh(x), 0.0, 1.0),
    "sigmoid": (lambda x, _: torch.sigmoid(x), 0.0, 1.0),
    "elu": (lambda x, _: F.elu(x), 0.0, 1.0),
    "selu": (lambda x, _: F.selu(x), 0.0, 1.0),
    "softplus": (lambda x, _: F.softplus(x), 0.0, 1.0),
    "swish": (lambda x, _: torch.sigmoid(x) * x, 0.0, _ROOT2),
}


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "ref",  # noqa: ARG001 (theirs to choose)
) -> torch.Tensor:
    """Put zeros between the pixels of x [batch, channel, height, width], pad or crop, convolve with f, keep every `down`-th.

    `f` is [height, width], or [taps] for both directions in turn; `padding` is (left, right, top, bottom), (x, y) or a number.
    """
    up_x, up_y = _pair(up)
    down_x, down_y = _pair(down)
    left, right, top, bottom = _four(padding)
    channels = x.shape[1]
    if up_x > 1 or up_y > 1:
        height, width = x.shape[2], x.shape[3]
        spread = F.pad(x[:, :, :, None, :, None], (0, up_x - 1, 0, 0, 0, up_y - 1))
        x = spread.reshape(-1, channels, height * up_y, width * up_x)
    x = F.pad(x, (left, right, top, bottom))  # negative numbers crop
    if f is None:
        return x[:, :, ::down_y, ::down_x] * gain
    kernel = f.to(x.dtype) * gain ** (f.ndim / 2)
    kernel = kernel if flip_filter else kernel.flip(list(range(f.ndim)))
    if f.ndim == 1:
        return _filtered(_filtered(x, kernel[None, :], (1, down_x)), kernel[:, None], (down_y, 1))
    return _filtered(x, kernel, (down_y, down_x))


def _filtered(x: torch.Tensor, kernel: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """Convolve each channel of x [batch, channel, height, width] with the kernel [height, width]."""
    channels = x.shape[1]
    if isinstance(channels, torch.SymInt):  # the batch is in it, where a convolution has a kernel for each image
        made = F.conv2d(x.reshape(-1, 1, *x.shape[2:]), kernel[None, None], stride=stride)
        return made.reshape(x.shape[0], channels, *made.shape[2:])
    return F.conv2d(x, kernel[None, None].repeat(channels, 1, 1, 1), stride=stride, groups=channels)


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "ref",  # noqa: ARG001 (theirs to choose)
) -> torch.Tensor:
    """Add a bias along `dim`, apply an activation, scale, and clamp."""
    function, usual_alpha, usual_gain = _ACTIVATIONS[act]
    if b is not None:
        x = x + b.reshape([-1 if axis == dim else 1 for axis in range(x.ndim)])
    x = function(x, usual_alpha if alpha is None else alpha)
    x = x * (usual_gain if gain is None else gain)
    return x.clamp(-clamp, clamp) if clamp is not None and clamp >= 0 else x


def conv2d_resample(
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> torch.Tensor:
    """Upsample with the filter f, convolve with w [out, in, height, width], downsample with f."""
    left, right, top, bottom = _four(padding)
    wide, high = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    if up > 1:
        left, right, top, bottom = _grown(up, wide, high, (left, right, top, bottom))
    if down > 1:
        left, right = left + (wide - down + 1) // 2, right + (wide - down) // 2
        top, bottom = top + (high - down + 1) // 2, bottom + (high - down) // 2
    x = upfirdn2d(x, f if up > 1 else None, up, 1, (left, right, top, bottom), flip_filter, up**2)
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return upfirdn2d(x, f, 1, down, 0, flip_filter) if down > 1 else x


def _grown(up: int, wide: int, high: int, sides: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    left, right, top, bottom = sides
    return left + (wide + up - 1) // 2, right + (wide - up) // 2, top + (high + up - 1) // 2, bottom + (high - up) // 2


def fused_leaky_relu(
    input: torch.Tensor,  # noqa: A002 (the name of the operator that it stands for)
    bias: torch.Tensor | None = None,
    negative_slope: float = 0.2,
    scale: float = _ROOT2,
) -> torch.Tensor:
    """Leaky ReLU of input [batch, channel, ..] with a bias by channel, scaled."""
    return bias_act(input, bias, act="lrelu", alpha=negative_slope, gain=scale)


def _upfirdn2d_op(
    input: torch.Tensor,  # noqa: A002
    kernel: torch.Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    pad: Sequence[int] = (0, 0),
) -> torch.Tensor:
    sides = (*pad, *pad) if len(pad) == 2 else pad
    return upfirdn2d(input, kernel, up, down, sides)


def _fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return a * b + c


# By name: the parameters that tell an implementation, its substitute, and arguments to hold the two to one another with.
_SUBSTITUTES: Mapping[str, Sequence[tuple[frozenset[str], Callable[..., torch.Tensor], Callable[[], tuple[Any, ...]]]]] = {
    "upfirdn2d": (
        (frozenset({"x", "f", "padding"}), upfirdn2d, lambda: (_ramp(1, 2, 5, 6), _ramp(4, 4), 2, 1, [2, 1, 2, 1])),
        (frozenset({"input", "kernel", "pad"}), _upfirdn2d_op, lambda: (_ramp(1, 2, 5, 6), _ramp(4, 4), 2, 1, (2, 1))),
    ),
    "bias_act": ((frozenset({"x", "b", "act"}), bias_act, lambda: (_ramp(1, 2, 3, 3), _ramp(2), 1, "lrelu")),),
    "conv2d_resample": (
        (frozenset({"x", "w", "f", "up"}), conv2d_resample, lambda: (_ramp(1, 2, 5, 6), _ramp(3, 2, 3, 3), _ramp(4, 4), 2)),
    ),
    "fused_leaky_relu": ((frozenset({"input", "bias"}), fused_leaky_relu, lambda: (_ramp(1, 2, 3, 3), _ramp(2))),),
    "fma": ((frozenset({"a", "b", "c"}), _fma, lambda: (_ramp(2, 3), _ramp(2, 3), _ramp(2, 3))),),
}  # fmt: skip
_checked: set[int] = set()


@contextlib.contextmanager
def reference_operators() -> Iterator[None]:
    """Inside the block, every loaded module's own upfirdn2d, bias_act, ... is the one of this file.

    Raises CaptureError where an original that runs on the CPU gives other numbers: it is then another operator of that name.
    """
    changed: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "torch").partition(".")[0] in _OURS:
                continue
            for name in _SUBSTITUTES.keys() & vars(module).keys():
                space = vars(module)
                if (substitute := _substitute(name, space[name])) is not None:
                    changed.append((space, name, space[name]))
                    space[name] = substitute
        yield
    finally:
        for space, name, original in reversed(changed):
            space[name] = original


def _substitute(name: str, original: Any) -> Callable[..., torch.Tensor] | None:
    """What stands for `original`; None where it is no such operator."""
    if not isinstance(original, FunctionType) or original.__module__.partition(".")[0] in _OURS:
        return None
    takes = inspect.signature(original).parameters.keys()
    for parameters, substitute, arguments in _SUBSTITUTES[name]:
        if parameters <= takes:
            if id(original) not in _checked:
                _hold(original, substitute, arguments())
                _checked.add(id(original))
            return substitute
    return None


def _hold(original: FunctionType, substitute: Callable[..., torch.Tensor], arguments: tuple[Any, ...]) -> None:
    try:
        with torch.no_grad():
            wanted = original(*arguments)
    except Exception:  # it needs a GPU, or a compiler: nothing to compare with
        return
    got = substitute(*arguments)
    if got.shape != wanted.shape or not torch.allclose(got, wanted, rtol=_SAME, atol=_SAME):
        raise CaptureError(
            f"{original.__module__}.{original.__name__} gives other numbers than StyleGAN's operator of that name; rename it"
        )


class _NotCompiled:
    """Stands for a CUDA extension that was not compiled."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        raise CaptureError(
            f"the CUDA extension {self._name} was called ({attribute}); edgegen replaces {', '.join(_SUBSTITUTES)} alone: "
            "write the operator with those of torch"
        )


@contextlib.contextmanager
def no_compiler() -> Iterator[None]:
    """Inside the block, packages that compile CUDA code when they are imported get a stand-in for it."""
    try:
        from torch.utils import cpp_extension
    except ImportError:  # it needs setuptools; what is imported in the block says so itself
        yield
        return
    before = cpp_extension.load, cpp_extension.load_inline

    def load(name: str, *_: Any, **__: Any) -> Any:
        return _NotCompiled(name)

    cpp_extension.load = cpp_extension.load_inline = load
    try:
        yield
    finally:
        cpp_extension.load, cpp_extension.load_inline = before


def _ramp(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _four(value: int | Sequence[int]) -> tuple[int, int, int, int]:
    if isinstance(value, int):
        return value, value, value, value
    left, right, top, bottom = value if len(value) == 4 else (value[0], value[0], value[1], value[1])
    return left, right, top, bottom
