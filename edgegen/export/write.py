"""Graphs to files: one protobuf for each variant, and weights files that variants share wherever the bytes are the same."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.export.passes import specs
from edgegen.manifest import StatePair, Variant

INLINE_BYTES = 1024  # smaller tensors stay in the protobuf
ALIGNMENT = 4096  # of a tensor in its file: a page, so that a device may map it
CACHE_AXIS = 2


def write_variants(models: Mapping[str, ir.Model], name: str, directory: Path) -> dict[str, Variant]:
    """Write `graphs/<name>[.<variant>].onnx` and their weights below `directory`.

    Tensors that two variants share lie in `<name>.weights`; the others in `<name>.<variant>.weights`.
    """
    graphs = directory / "graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    digests = {variant: {str(v.name): _digest(v) for v in _large(model)} for variant, model in models.items()}
    readers: dict[str, set[str]] = {}
    for variant, found in digests.items():
        for digest in found.values():
            readers.setdefault(digest, set()).add(variant)
    files: dict[str, _WeightsFile] = {}
    variants = {}
    for variant, model in models.items():
        used = _move_out(model, variant, name, digests[variant], readers, files, graphs)
        file = f"{name}.onnx" if variant == "canonical" else f"{name}.{variant}.onnx"
        model.producer_name, model.ir_version = "edgegen", 11
        weights = tuple(f"graphs/{location}" for location in sorted(used))
        inputs, outputs = specs(model.graph.inputs), specs(model.graph.outputs)
        variants[variant] = Variant(f"graphs/{file}", weights, inputs, outputs, _state_pairs(model.graph))
        if variant == "onnxruntime":
            _declare_default_shape(model.graph)
        (graphs / file).write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
    for opened in files.values():
        opened.close()
    return variants


def _declare_default_shape(graph: ir.Graph) -> None:
    """Say in the file that one position's logits come out: onnxruntime-genai allocates them by that, before it runs.

    It is what the default of `logits_to_keep` gives; onnxruntime itself takes other lengths when they come.
    """
    for value in graph.outputs:
        if value.name == "logits" and value.shape is not None:
            value.shape = ir.Shape([1, 1, value.shape[2]])


class _WeightsFile:
    """Appends tensors, each once, at aligned offsets."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._places: dict[str, tuple[int, int]] = {}

    def place(self, digest: str, tensor: ir.TensorProtocol) -> tuple[int, int]:
        if digest not in self._places:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.write(b"\0" * (offset - self._file.tell()))
            data = tensor.tobytes()
            self._file.write(data)
            self._places[digest] = offset, len(data)
        return self._places[digest]

    def close(self) -> None:
        self._file.close()


def _large(model: ir.Model) -> list[ir.Value]:
    values = model.graph.initializers.values()
    return [v for v in values if v.const_value is not None and v.const_value.nbytes > INLINE_BYTES]


def _digest(value: ir.Value) -> str:
    assert value.const_value is not None
    return hashlib.sha256(value.const_value.tobytes()).hexdigest()


def _move_out(
    model: ir.Model,
    variant: str,
    name: str,
    digests: Mapping[str, str],
    readers: Mapping[str, set[str]],
    files: dict[str, _WeightsFile],
    directory: Path,
) -> set[str]:
    used = set()
    for value in _large(model):
        tensor, digest = value.const_value, digests[str(value.name)]
        assert tensor is not None
        location = f"{name}.weights" if len(readers[digest]) > 1 else f"{name}.{variant}.weights"
        if location not in files:
            files[location] = _WeightsFile(directory / location)
        offset, length = files[location].place(digest, tensor)
        used.add(location)
        value.const_value = ir.ExternalTensor(
            location,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=str(value.name),
            base_dir=directory,
        )
    return used


def _state_pairs(graph: ir.Graph) -> tuple[StatePair, ...]:
    past = [str(value.name) for value in graph.inputs if str(value.name).startswith("past_key_values.")]
    present = {str(value.name) for value in graph.outputs}
    pairs = tuple(StatePair(name, name.replace("past_key_values.", "present."), CACHE_AXIS) for name in past)
    if missing := {pair.output for pair in pairs} - present:
        raise ExportError(f"the graph has no outputs {sorted(missing)} for its cache; this is a bug in edgegen")
    return pairs
