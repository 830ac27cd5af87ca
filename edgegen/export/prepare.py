"""What a module of the user's own needs before it is captured: norms of weights folded, batch statistics fixed."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgegen.errors import CaptureError

_log = logging.getLogger("edgegen")


def settle(graph: str, module: torch.nn.Module) -> torch.nn.Module:
    """Put `module` in eval mode, on the CPU, in float32, with plain weights, in place; `graph` is its name in messages.

    Weight norm and spectral norm (hooks or parametrizations) become the weights that they compute.

    Raises:
        CaptureError: a batch norm keeps no statistics, so an image would depend on the others of its batch.
    """
    training = [name for name, child in module.named_modules() if isinstance(child, _BatchNorm) and child.training]
    module.eval().float().cpu()
    for name, child in module.named_modules():
        if isinstance(child, _BatchNorm) and child.running_mean is None:
            raise CaptureError(
                f"{graph or type(module).__name__}: {name or 'the module'} ({type(child).__name__}) has no running statistics: "
                "each image would depend on the others of its batch; train it with track_running_stats=True"
            )
    if training:
        _log.info("%s: %s put in eval mode: it computes with its running statistics", graph or "module", training[0])
    with torch.no_grad():
        for child in module.modules():
            _fold_norms(child)
    return module


def _fold_norms(module: torch.nn.Module) -> None:
    if parametrize.is_parametrized(module):
        for name in list(vars(module)["_modules"]["parametrizations"]):
            parametrize.remove_parametrizations(module, str(name), leave_parametrized=True)
    for hook in list(module._forward_pre_hooks.values()):
        kind, name = type(hook).__name__, getattr(hook, "name", None)
        if kind == "WeightNorm" and isinstance(name, str):
            torch.nn.utils.remove_weight_norm(module, name)
        elif kind == "SpectralNorm" and isinstance(name, str):
            torch.nn.utils.remove_spectral_norm(module, name)


def fold_batch_norms(module: torch.nn.Module) -> Callable[[], None] | None:
    """Put each batch norm that follows a convolution or a linear layer in an nn.Sequential into that layer, in place.

    Right where the layers are called in their order alone; a module may also take one of them out, so compare what it gives.
    Returns what takes all of it back; None where there was nothing to fold.
    """
    times = Counter(id(child) for _, child in module.named_modules(remove_duplicate=False))
    before: list[tuple[torch.nn.Module, str, torch.nn.Module | None]] = []
    for parent in [child for child in module.modules() if isinstance(child, torch.nn.Sequential)]:
        for (name, layer), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if not isinstance(norm, _BatchNorm) or times[id(layer)] > 1 or times[id(norm)] > 1:
                continue
            if (folded := _folded(layer, norm)) is not None:
                before += [(parent, name, layer), (parent, norm_name, norm)]
                parent._modules[name], parent._modules[norm_name] = folded, torch.nn.Identity()

    def undo() -> None:
        for parent, name, child in before:
            parent._modules[name] = child

    return undo if before else None


def _folded(layer: torch.nn.Module, norm: Any) -> torch.nn.Module | None:
    """`layer` with `norm` after it; None where it is no layer of that kind, or does more than its kind does."""
    if layer._forward_hooks or layer._forward_pre_hooks or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    if type(layer) is torch.nn.Linear and isinstance(norm, torch.nn.BatchNorm1d):
        return fuse_linear_bn_eval(layer, norm)
    if type(layer) in (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d):
        return fuse_conv_bn_eval(layer, norm)  # type: ignore[type-var]
    if type(layer) in (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d) and layer.groups == 1:
        return fuse_conv_bn_eval(layer, norm, transpose=True)  # type: ignore[type-var]
    return None


def round_weights(module: torch.nn.Module) -> None:
    """Round every parameter to float16, in place, kept as float32. Tables and statistics (buffers) keep their numbers.

    Batch norms that are left become `x * scale + shift`, so that the exporter does not fold a scale into rounded weights.
    """
    rounding: Callable[[], None] | None = getattr(module, "round_weights", None)
    if callable(rounding):
        rounding()
        return
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, _BatchNorm):
                child.forward = _affine(child)  # type: ignore[method-assign, assignment]
        for parameter in module.parameters():
            parameter.copy_(parameter.half())


def _affine(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    deviation = torch.rsqrt(norm.running_var + norm.eps)
    scale = deviation if norm.weight is None else deviation * norm.weight
    shift = -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale

    def forward(x: torch.Tensor) -> torch.Tensor:
        shape = [1, -1, *[1] * (x.dim() - 2)]
        moved: torch.Tensor = x * scale.view(shape) + shift.view(shape)
        return moved

    return forward
