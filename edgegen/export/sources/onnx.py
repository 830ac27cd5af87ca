"""An ONNX file as a source: a TensorFlow user's way in. What it answers in onnxruntime, as it is, is the reference."""

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from onnx.inliner import inline_local_functions

from edgegen.errors import CaptureError, SourceError
from edgegen.export.capture_module import OPSET
from edgegen.export.parts import Modules
from edgegen.export.passes import insert_before
from edgegen.export.sources.base import weights_sha256
from edgegen.tensors import Axis, TensorSpec

KIND = "onnx"
_MAX_BYTES = (2 << 30) - (1 << 20)  # what protobuf can hold in one message
_DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
}
_CHANNELS = (1, 3, 4)  # of an image: what tells [height, width, channel] from [channel, height, width]
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_WEIGHTS_OF = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"})
_log = logging.getLogger("edgegen")


class OnnxModule(torch.nn.Module):
    """An ONNX file that runs like a module, in onnxruntime; `graph` is the same in the canonical opset.

    `inputs` and `outputs` are as a family wants them: images are channels-first, whatever the file says.
    """

    def __init__(self, original: Any, label: str) -> None:
        super().__init__()
        self.label = label
        self._original, self._session = original, _session(original, label)
        self.inputs, self._last_inputs = _specs(_inputs(original.graph), label)
        self.outputs, self._last_outputs = _specs(original.graph.output, label)

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Run the original file. CaptureError while a module around it is being captured: it has no PyTorch code."""
        if any(type(tensor) is not torch.Tensor for tensor in tensors):
            raise CaptureError(f"{self.label} is an ONNX file; it cannot be part of a PyTorch module that is captured")
        pairs = zip(_inputs(self._original.graph), tensors, self._last_inputs, strict=True)
        feed = {value.name: (t.permute(_TO_LAST) if last else t).contiguous().numpy() for value, t, last in pairs}
        answers = self._session.run(None, feed)
        found = [
            torch.from_numpy(np.ascontiguousarray(answer.transpose(_TO_FIRST) if last else answer))
            for answer, last in zip(answers, self._last_outputs, strict=True)
        ]
        return found[0] if len(found) == 1 else tuple(found)

    def graph(self) -> ir.Model:
        """The file in the canonical opset, with the names and layout of `inputs` and `outputs`."""
        model = ir.serde.deserialize_model(_canonical(self._original, self.label))
        graph = model.graph
        for value in [value for value in graph.inputs if value.name in graph.initializers]:
            graph.inputs.remove(value)  # before IR version 4 every weight was an input as well
        for value, spec, last in zip(graph.inputs, self.inputs, self._last_inputs, strict=True):
            value.name = spec.name
            if last:
                _first_to_last(graph, value)
        for place, (value, spec, last) in enumerate(zip(list(graph.outputs), self.outputs, self._last_outputs, strict=True)):
            if last:
                _last_to_first(graph, place, value)
            _rename_output(graph, place, spec.name)
        return model

    def round_weights(self) -> None:
        """Round what matrix products and lookups read to float16, in the file as it is held in memory, and run that."""
        read = {name for node in self._original.graph.node if node.op_type in _WEIGHTS_OF for name in node.input}
        for tensor in self._original.graph.initializer:
            if tensor.name in read and tensor.data_type == onnx.TensorProto.FLOAT:
                rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        self._session = _session(self._original, self.label)

    def rename(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Take names and axes from the user's specs, in the order of the file. SourceError where they do not fit it."""
        self.inputs = _fitting(self.label, "inputs", self.inputs, inputs)
        self.outputs = _fitting(self.label, "outputs", self.outputs, outputs)


def open_checkpoint(path: Path, weights: Path | None) -> Modules:
    """Read an .onnx file, untrusted: checked, without custom operators, its data in its own folder.

    Raises:
        SourceError: it is damaged, too large, has operators of other domains, or cannot be brought to the canonical opset.
    """
    if weights is not None:
        raise SourceError(f"{path} holds its weights itself; --checkpoint is for modules and language models")
    original, files = _read(path)
    module = OnnxModule(original, str(path))
    _canonical(original, str(path))  # now, before anything slow
    axes = {axis: Axis(1, 1, 16) for spec in module.inputs for axis in spec.axes if axis == "batch"}
    sha256 = weights_sha256([path, *files])
    return Modules(KIND, path.stem, sha256, "unknown", {"": module}, {"": module.inputs}, {"": module.outputs}, axes)


def named_for(source: Modules, family: str) -> Modules:
    """The source with the names that `family` looks for, told by the tensors' kinds where there are usual ones."""
    (file,) = source.modules.values()
    assert isinstance(file, OnnxModule)
    image_first = bool(file.inputs) and len(file.inputs[0].axes) == 4
    graph, first, gives = {
        ("gan", False): ("generator", "z", "image"),
        ("gan", True): ("translator", "image", "image_out"),
        ("vae", False): ("decoder", "latent", "image"),
        ("vae", True): ("decoder", "latent", "image"),
        ("diffusion", True): ("denoiser", "sample", "prediction"),
    }.get((family, image_first), ("", "", ""))
    if not graph:
        return source
    names = [first, *("class_ids" if spec.dtype != "float32" else "timestep" for spec in file.inputs[1:])]
    if len(set(names)) != len(names) or len(file.outputs) != 1:
        return dataclasses.replace(source, modules={graph: file}, inputs={graph: file.inputs}, outputs={graph: file.outputs})
    inputs = tuple(TensorSpec(name, spec.dtype, spec.axes) for name, spec in zip(names, file.inputs, strict=True))
    outputs = (TensorSpec(gives, file.outputs[0].dtype, file.outputs[0].axes),)
    return dataclasses.replace(source, modules={graph: file}, inputs={graph: inputs}, outputs={graph: outputs})


def _read(path: Path) -> tuple[Any, list[Path]]:
    """The file, its external data loaded, and the files where those were."""
    if path.stat().st_size > _MAX_BYTES:
        raise SourceError(f"{path} has {path.stat().st_size} bytes; an ONNX source may have {_MAX_BYTES} with all its data")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has several classes for damage, by its implementation
        raise SourceError(f"{path} is not an ONNX file, or damaged: {str(error).splitlines()[0][:200]}") from error
    newest, version = onnx.defs.onnx_opset_version(), _opset(model)
    if version is None or version > newest:  # an empty file names none, too
        said = "is not a valid ONNX model: it names no opset" if version is None else f"is of opset {version}"
        raise SourceError(f"{path} {said}; those up to {newest} are read: export it with an opset of {OPSET}")
    files = _external(path, model)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's, shape inference's, and what reading the data raises
        raise SourceError(f"{path} is not a valid ONNX model: {_line(error)}") from error
    if model.functions:
        model = inline_local_functions(model)
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in _nodes(model.graph) if n.domain not in ("", "ai.onnx")})
    if foreign:
        raise SourceError(f"{path} has operators outside the ONNX standard: {', '.join(foreign[:4])}; export it without them")
    return model, files


def _external(path: Path, model: Any) -> list[Path]:
    """The files of external data, all inside the model's folder. SourceError for any other, or for too much of it."""
    folder, total = path.parent.resolve(), path.stat().st_size
    found: dict[Path, None] = {}
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        file = (folder / entries.get("location", "")).resolve()
        if folder not in file.parents or not file.is_file():
            place = entries.get("location")
            raise SourceError(f"{path}: the data of {tensor.name} are to be in {place!r}, which is no file in its folder")
        if file not in found:
            found[file] = None
            total += file.stat().st_size
        if total > _MAX_BYTES:
            raise SourceError(f"{path} and its data have more than {_MAX_BYTES} bytes; such an ONNX source is not read")
    return list(found)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():  # GRAPH, GRAPHS
                yield from _nodes(inner)


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.graph.initializer
    for graph_nodes in (_nodes(model.graph), *(_nodes(function) for function in model.functions)):
        for node in graph_nodes:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors, *attribute.g.initializer)
                yield from (tensor for inner in attribute.graphs for tensor in inner.initializer)


def _canonical(original: Any, label: str) -> Any:
    """The model in the canonical opset, with the shapes that can be inferred."""
    version = _opset(original)
    try:
        converted = original if version == OPSET else onnx.version_converter.convert_version(original, OPSET)
        return onnx.shape_inference.infer_shapes(converted, data_prop=True)
    except Exception as error:  # the converter raises RuntimeError and its own classes
        raise SourceError(f"{label} (opset {version}) cannot be brought to opset {OPSET}: {_line(error)}") from error


def _opset(model: Any) -> int | None:
    """The version of the standard operators that a model uses; None where it names none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def _session(model: Any, label: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each status
        raise SourceError(f"onnxruntime does not run {label}, so there is no reference: {_line(error)}") from error


def _inputs(graph: Any) -> list[Any]:
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _specs(values: Sequence[Any], label: str) -> tuple[tuple[TensorSpec, ...], tuple[bool, ...]]:
    """What the file's tensors are, channels first, and of which the file has the channels last."""
    specs, lasts = [], []
    for value in values:
        kind = value.type.tensor_type
        if kind.elem_type not in _DTYPES:
            name = onnx.TensorProto.DataType.Name(kind.elem_type)
            cure = "; export it without the last cast: edgegen makes bytes of float32 pixels" if name == "UINT8" else ""
            listed = ", ".join(_DTYPES.values())
            raise SourceError(f"{label}: {value.name} is {name}; tensors that go in or out are {listed}{cure}")
        axes = [_axis(value.name, place, dim) for place, dim in enumerate(kind.shape.dim)]
        last = len(axes) == 4 and axes[3] in _CHANNELS and axes[1] not in _CHANNELS
        if last:
            _log.info("%s: %s is channels-last; a transposition is added", label, value.name)
            axes = [axes[place] for place in _TO_FIRST]
        specs.append(TensorSpec(_word(value.name), _DTYPES[kind.elem_type], tuple(axes)))  # type: ignore[arg-type]
        lasts.append(last)
    return tuple(specs), tuple(lasts)


def _axis(name: str, place: int, dim: Any) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return "batch" if place == 0 else _word(dim.dim_param or f"{name}_{place}")


def _word(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_." else "_" for letter in text.partition(":")[0]) or "tensor"


def _fitting(label: str, kind: str, known: Sequence[TensorSpec], given: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    def fits(mine: TensorSpec, theirs: TensorSpec) -> bool:
        pairs = zip(mine.axes, theirs.axes, strict=False)
        same = all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))
        return mine.dtype == theirs.dtype and len(mine.axes) == len(theirs.axes) and same

    if len(known) != len(given) or not all(map(fits, known, given)):
        listed = "; ".join(map(str, known))
        raise SourceError(f"{label} has the {kind} {listed}; declared were {'; '.join(map(str, given))}")
    return tuple(given)


def _first_to_last(graph: ir.Graph, value: ir.Value) -> None:
    """What read the input reads it with its channels last."""
    users = list(value.uses())
    turned = insert_before(graph[0], "Transpose", [value], {"perm": list(_TO_LAST)}).outputs[0]
    turned.type, turned.shape = value.type, value.shape
    for use in users:
        use.node.replace_input_with(use.idx, turned)
    value.shape = None


def _last_to_first(graph: ir.Graph, place: int, value: ir.Value) -> None:
    producer = value.producer()
    assert producer is not None
    node = ir.node("Transpose", [value], {"perm": list(_TO_FIRST)})
    graph.insert_after(producer, node)
    node.outputs[0].type = value.type
    graph.outputs[place] = node.outputs[0]


def _rename_output(graph: ir.Graph, place: int, name: str) -> None:
    """Give an output its name; one that is an input or a weight, or goes out twice, passes through a node of its own."""
    value = graph.outputs[place]
    if value.producer() is None or value.is_graph_input() or any(other is value for other in graph.outputs[:place]):
        node = ir.node("Identity", [value])
        graph.append(node)
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        graph.outputs[place] = value = node.outputs[0]
    for other in graph.all_nodes():
        for output in other.outputs:
            if output.name == name and output is not value:
                output.name = f"{name}_inside"
    value.name = name


def _line(error: BaseException) -> str:
    """The reason in one line, without onnxruntime's status and the place in its sources."""
    said = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S*/onnxruntime/\S+:\d+ .*?\) (?=\S)", "", " ".join(str(error).split()))
    return said[:240] or type(error).__name__
