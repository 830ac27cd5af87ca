"""What StyleGAN-like models need beside their graphs: mean latent, stored noise, and PyTorch's answers for each case."""

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import torch

from edgegen.errors import ExportError
from edgegen.export.families.gan_parts import Given
from edgegen.export.parts import Model, Part, example
from edgegen.pipelines.gan import NOISE_FILE
from edgegen.pipelines.gan_options import GanSettings
from edgegen.pipelines.images import normal
from edgegen.pipelines.latents import Floats
from edgegen.tensors import Axis, Tensor, Tensors, TensorSpec

MEAN_COUNT = 10_000  # z of which the mean latent is taken, as in StyleGAN
_BLOCK = 500
_PSI = 0.7
_STORED = re.compile(
    r"(^|\.)(noise_const|noise_\d+)$"
)  # what the buffers of fixed noise are called in the common StyleGAN2 codes


def build_styled(given: Given) -> Model:
    """The model of a mapping and a synthesis."""
    mapping, synthesis = given.parts["mapping"], given.parts["synthesis"]
    layers, width = synthesis.inputs[0].axes[1:]
    found = mapping.outputs[0].axes[1:]
    if found not in ((width,), (layers, width)):
        raise ExportError(f"mapping gives {mapping.outputs[0]}; synthesis takes {synthesis.inputs[0]}: they must agree in w")
    stored = stored_noise(synthesis)
    settings = given.settings
    if not settings.mean_w:
        mean = mean_latent(mapping, settings.classes)
        settings = msgspec.structs.replace(settings, mean_w=tuple(map(float, mean)), mean_count=MEAN_COUNT)
    settings = msgspec.structs.replace(settings, stored_noise=bool(stored))
    reference = _reference(given.parts, given.axes, settings, stored)
    return Model("gan", given.parts, given.axes, settings, reference, noise_file(stored))


def mean_latent(mapping: Part, classes: int) -> Floats:
    """The mean w [W] of MEAN_COUNT z, drawn as a pipeline draws them; the classes in turn, where there are any."""
    shape = [int(axis) for axis in mapping.inputs[0].axes[1:]]
    total = np.zeros(int(mapping.outputs[0].axes[-1]))
    for start in range(0, MEAN_COUNT, _BLOCK):
        z = torch.from_numpy(normal(range(start, start + _BLOCK), shape))
        ids = (torch.arange(start, start + _BLOCK) % classes,) if classes else ()
        with torch.no_grad():
            w: torch.Tensor = mapping.module(z, *ids)
        total += (w if w.ndim == 2 else w.mean(dim=1)).double().sum(dim=0).numpy()
    return np.asarray(total / MEAN_COUNT, np.float32)


def stored_noise(part: Part) -> list[Floats]:
    """The fixed noise of each layer, [1, height, width], from the module's buffers; none where it keeps none.

    ExportError where it keeps some, but not one for each input noise.N.
    """
    found = [value for name, value in part.module.named_buffers() if _STORED.search(name)]
    wanted = [tuple(int(axis) for axis in spec.axes[1:]) for spec in noise_inputs(part)]
    if not found or not wanted:
        return []
    shapes = [tuple(buffer.shape[-2:]) for buffer in found]
    if shapes != [shape[1:] for shape in wanted]:
        raise ExportError(
            f"the model takes noise of {wanted}, and keeps fixed noise of {shapes}: it must be one for each, in order"
        )
    return [buffer.detach().float().numpy().reshape(shape).copy() for buffer, shape in zip(found, wanted, strict=True)]


def noise_inputs(part: Part) -> tuple[TensorSpec, ...]:
    """The inputs noise.0, noise.1, ... of a graph."""
    return tuple(spec for spec in part.inputs if spec.name.startswith("noise."))


def noise_file(stored: Sequence[Floats]) -> dict[str, bytes]:
    """The bundle's file of fixed noise, where there is any."""
    return {NOISE_FILE: b"".join(noise.astype("<f4").tobytes() for noise in stored)} if stored else {}


def with_constant_noise(
    paint: Callable[[tuple[torch.Tensor, ...]], torch.Tensor], noise: tuple[torch.Tensor, ...], stored: Sequence[Floats]
) -> dict[str, torch.Tensor]:
    """Images of the noise that is the same for each of them: zero, and what the model stores."""
    images = {"image.zero_noise": paint(tuple(map(torch.zeros_like, noise)))} if noise else {}
    if stored:
        images["image.fixed_noise"] = paint(tuple(torch.from_numpy(s).expand_as(n) for s, n in zip(stored, noise, strict=True)))
    return images


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Tensor]:
    """As numpy has them."""
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def _reference(
    parts: Mapping[str, Part], axes: Mapping[str, Axis], settings: GanSettings, stored: list[Floats]
) -> Callable[[], tuple[Tensors, Tensors]]:
    """PyTorch's w, and its images as they are, truncated, mixed, and with each noise that is the same for all images."""
    mapping, synthesis = parts["mapping"], parts["synthesis"]
    layers = int(synthesis.inputs[0].axes[1])
    half = max(1, layers // 2)
    z, other = example(mapping.inputs[0], axes, 0), example(mapping.inputs[0], axes, 1)
    ids = (torch.arange(len(z)) % settings.classes,) if settings.classes else ()
    noise = tuple(example(spec, axes, seed) for seed, spec in enumerate(noise_inputs(synthesis), 2))
    mean = torch.tensor(settings.mean_w)

    def reference() -> tuple[Tensors, Tensors]:
        w, w_other = mapping.module(z, *ids), mapping.module(other, *ids)
        styles, others = (a if a.ndim == 3 else a[:, None].expand(-1, layers, -1) for a in (w, w_other))
        is_pulled = (torch.arange(layers) < half)[:, None]
        images = {
            "image": synthesis.module(styles, *noise),
            "image.truncated": synthesis.module(torch.where(is_pulled, torch.lerp(mean, styles, _PSI), styles), *noise),
            "image.mixed": synthesis.module(torch.where(is_pulled, styles, others), *noise),
        }
        images |= with_constant_noise(lambda given: synthesis.module(styles, *given), noise, stored)
        given = {"z": z, "other": other} | dict(zip(("class_ids",), ids, strict=False))
        given |= {f"noise.{layer}": tensor for layer, tensor in enumerate(noise)}
        numbers = {"psi": np.array(_PSI), "cutoff": np.array(half), "layer": np.array(half)}
        made = {"w": w, "w.other": w_other, **images}
        return arrays(given) | numbers, arrays(made)

    def without_gradients() -> tuple[Tensors, Tensors]:
        with torch.no_grad():
            return reference()

    return without_gradients
