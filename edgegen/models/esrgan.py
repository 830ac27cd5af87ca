"""Convolutional networks of TensorFlow.js, layers format (`model.json` and one shard of weights), as PyTorch modules.

What ESRGAN-slim is published as. The format: https://www.tensorflow.org/js/guide/save_load and Keras' functional models; only
the layers that image-to-image networks are made of are known, anything else is refused by name.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from edgegen.errors import SourceError

_MAX_BYTES = 1 << 30
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class _Layer(msgspec.Struct):
    class_name: str
    config: dict[str, Any]
    inbound_nodes: list[list[tuple[str, int, int, dict[str, Any]]]]

    @property
    def name(self) -> str:
        return str(self.config["name"])


class _Config(msgspec.Struct):
    layers: list[_Layer]
    input_layers: list[tuple[str, int, int]]
    output_layers: list[tuple[str, int, int]]


class _Weight(msgspec.Struct):
    name: str
    shape: list[int]
    dtype: str


class LayersModel(nn.Module):
    """A graph of layers: image float32 [batch, channel, height, width] -> float32 [batch, channel, height', width'].

    Args:
        steps: (layer's name, names of what it takes), in an order in which they can be computed.
        layers: by name.
        given: the name that the image goes by.
    """

    def __init__(self, steps: Sequence[tuple[str, tuple[str, ...]]], layers: Mapping[str, nn.Module], given: str) -> None:
        super().__init__()
        self.steps, self.given = list(steps), given
        self.layers = nn.ModuleDict(layers)

    def forward(self, image: Tensor) -> Tensor:
        """Compute layer after layer; the last one's result is the answer."""
        known = {self.given: image}
        result = image
        for name, sources in self.steps:
            result = self.layers[name](*(known[source] for source in sources))
            known[name] = result
        return result


class Concatenate(nn.Module):
    """Joins along the channels."""

    def forward(self, *parts: Tensor) -> Tensor:
        """[batch, channel, height, width] each."""
        return torch.cat(parts, dim=1)


class Add(nn.Module):
    """Sums."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """All of one shape."""
        for other in others:
            first = first + other
        return first


def load_layers_model(model: Path, shard: Path) -> LayersModel:
    """Build the network of a `model.json`, with its weights.

    Args:
        model: the JSON; one image in, one image out.
        shard: the only file of weights: little-endian float32, in the order of the JSON's manifest, kernels as height, width,
            channel in, channel out.

    Raises:
        SourceError: it cannot be read, has other layers than are known here, or other weights than its layers need.
    """
    config, weights = _read(model, shard)
    if len(config.input_layers) != 1 or len(config.output_layers) != 1:
        raise SourceError(
            f"{model}: {len(config.input_layers)} inputs and {len(config.output_layers)} outputs; one each is read"
        )
    given = config.input_layers[0][0]
    layers = {layer.name: _module(layer, weights, model) for layer in config.layers if layer.name != given}
    steps = [(layer.name, _sources(layer, model)) for layer in config.layers if layer.name != given]
    known = {given}
    for name, sources in steps:
        if not sources or not known.issuperset(sources):
            raise SourceError(f"{model}: {name} takes {', '.join(sources) or 'nothing'}, which no layer before it gives")
        known.add(name)
    if steps[-1][0] != config.output_layers[0][0]:
        raise SourceError(f"{model}: the output {config.output_layers[0][0]} is not the last layer")
    if weights:
        raise SourceError(f"{model}: no layer has the weights {', '.join(sorted(weights)[:4])}")
    return LayersModel(steps, layers, given).eval()


def _read(model: Path, shard: Path) -> tuple[_Config, dict[str, np.ndarray[Any, Any]]]:
    """The graph, and the weights by name."""
    try:
        if max(model.stat().st_size, shard.stat().st_size) > _MAX_BYTES:
            raise SourceError(f"{model}: larger than {_MAX_BYTES} bytes")
        whole = msgspec.json.decode(model.read_bytes())
        config = msgspec.convert(whole["modelTopology"]["model_config"]["config"], _Config)
        listed = msgspec.convert([entry for group in whole["weightsManifest"] for entry in group["weights"]], list[_Weight])
        data = shard.read_bytes()
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise SourceError(f"{model} is no layers model of TensorFlow.js: {str(error)[:200]}") from error
    sizes = [math.prod(weight.shape) for weight in listed]
    if {weight.dtype for weight in listed} != {"float32"} or 4 * sum(sizes) != len(data):
        raise SourceError(f"{shard} has {len(data)} bytes; {model.name} lists {sum(sizes)} numbers, float32 is read")
    numbers = np.split(np.frombuffer(data, "<f4"), np.cumsum(sizes)[:-1])
    return config, {weight.name: part.reshape(weight.shape) for weight, part in zip(listed, numbers, strict=True)}


def _sources(layer: _Layer, model: Path) -> tuple[str, ...]:
    if len(layer.inbound_nodes) != 1:
        raise SourceError(f"{model}: {layer.name} is used {len(layer.inbound_nodes)} times; once is read")
    return tuple(name for name, _, _, _ in layer.inbound_nodes[0])


def _module(layer: _Layer, weights: dict[str, np.ndarray[Any, Any]], model: Path) -> nn.Module:
    """One layer; its weights are taken out of `weights`."""
    config = layer.config
    try:
        if config.get("data_format", "channels_last") != "channels_last":
            raise ValueError(f"data_format {config['data_format']}")
        if layer.class_name == "Conv2D":
            return _convolution(layer, weights)
        if layer.class_name == "Activation":
            return _ACTIVATIONS[config["activation"]]()
        if layer.class_name == "Concatenate" and config["axis"] in (3, -1):
            return Concatenate()
        if layer.class_name == "Add":
            return Add()
        if layer.class_name == "UpSampling2D" and config["interpolation"] == "nearest":
            return nn.Upsample(scale_factor=tuple(map(float, config["size"])), mode="nearest")
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{model}: the {layer.class_name} {layer.name} cannot be read: {error}") from error
    raise SourceError(f"{model}: {layer.name} is a {layer.class_name} {config}, which is not known here"[:300])


def _convolution(layer: _Layer, weights: dict[str, np.ndarray[Any, Any]]) -> nn.Module:
    """A convolution and its activation."""
    config = layer.config
    kernel = torch.from_numpy(weights.pop(f"{layer.name}/kernel").transpose(3, 2, 0, 1).copy())  # HWIO -> OIHW
    if kernel.shape[0] != config["filters"] or list(kernel.shape[2:]) != config["kernel_size"]:
        raise ValueError(f"its kernel is {list(kernel.shape)}")
    # TensorFlow pads an even kernel, and any stride, on one side only: PyTorch cannot say so.
    if config["padding"] == "same" and (config["strides"] != [1, 1] or not all(size % 2 for size in config["kernel_size"])):
        raise ValueError(f"padding 'same' with the strides {config['strides']} and the kernel {config['kernel_size']}")
    groups = config.get("groups", 1)
    stride, dilation, size = (_pair(config[name]) for name in ("strides", "dilation_rate", "kernel_size"))
    made = nn.Conv2d(
        kernel.shape[1] * groups,
        kernel.shape[0],
        size,
        stride,
        {"same": "same", "valid": "valid"}[config["padding"]],
        dilation,
        groups,
        bias=config["use_bias"],
    )
    with torch.no_grad():
        made.weight.copy_(kernel)
        if made.bias is not None:
            made.bias.copy_(torch.from_numpy(weights.pop(f"{layer.name}/bias").copy()))
    if config["activation"] == "linear":
        return made
    return nn.Sequential(made, _ACTIVATIONS[config["activation"]]())


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    height, width = sizes
    return height, width
