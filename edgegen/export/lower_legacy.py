"""The variant for TensorRT 10.3 and 10.13 (JetPack 6.2, 7.0, 7.1): the canonical graph in operators that their parsers read.

Attention, rotary embeddings, RMS norms and the cache's update are spelled out (`edgegen.export.plain`); inputs, outputs and
state keep their names, so that the pipeline feeds it unchanged. Weights share their bytes with the canonical graph, except:

* int4: blocks along the first axis of [in, out], the form in which NVIDIA's own quantizer writes a weight of 4 bits, and only
  where they feed a product; a table whose rows are picked becomes float16.
* int8: as of 10.7 blocks are of INT4 alone, so the matrices become float16: twice as large.

What is known of the old parsers is read, not tried: TensorRT-RTX builds these graphs, and onnxruntime gives their numbers.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.export import passes, plain
from edgegen.export.passes import initializer, remove_dead, replace
from edgegen.export.tensorrt_operators import require_readable

RELEASES = ("10.3", "10.13")
OPSET = 20  # the highest that TensorRT 10.0 is documented to read; nothing is said to have changed up to 10.3
OPSET_OF_INT4 = 21  # the first with blocks of INT4


def to_legacy(model: ir.Model, graph: str, heads: int | None = None) -> None:
    """Rewrite the canonical graph named `graph` in place; `heads` are those of its queries, where its shapes do not tell.

    Raises ExportError, naming the operator and the cure, where an older TensorRT would not read what comes out.
    """
    _weights(model.graph)
    _spell_out(model.graph, heads)
    remove_dead(model.graph)
    opset = OPSET_OF_INT4 if any(node.op_type == "DequantizeLinear" for node in model.graph) else OPSET
    source = model.opset_imports[""]
    for node in model.graph.all_nodes():
        _fit(node, source, opset)
    model.opset_imports.clear()
    model.opset_imports.update({"": opset})
    passes.strip_metadata(model)
    for release in RELEASES:
        require_readable(model, release, graph)


def _spell_out(graph: ir.Graph, heads: int | None) -> None:
    """Replace every operator that has a spelling in `plain` or here."""
    shared = plain.Shared()
    for node in list(graph):
        rule = _RULES.get(node.op_type) if not node.domain else None
        if rule is None:
            continue
        new = plain.attention(node, shared, heads) if node.op_type == "Attention" else rule(node, shared)
        if new is not node.outputs[0]:
            replace(node.outputs[0], new)
            graph.remove(node, safe=True)


def _squeeze(node: ir.Node, _: plain.Shared) -> ir.Value:
    """Axes are named: without them an old parser does not know what is left of a shape that is not known yet."""
    source = node.inputs[0]
    if len(node.inputs) > 1 or source is None:
        return node.outputs[0]
    producer = source.producer()
    if producer is not None and producer.op_type == "Shape":
        axes = [0]
    elif source.shape is not None and all(isinstance(size, int) for size in source.shape):
        axes = [axis for axis, size in enumerate(source.shape) if size == 1]
    else:
        raise plain.refuse(node, "names no axes")
    put = plain.Before(node)
    return put("Squeeze", source, put.integers(*axes))


def _pow(node: ir.Node, _: plain.Shared) -> ir.Value:
    """An exponent of integers becomes one of the base's type."""
    base, exponent = plain.known(node, 0), plain.known(node, 1)
    if exponent.dtype == base.dtype or base.dtype is None:
        return node.outputs[0]
    put = plain.Before(node)
    return put("Pow", base, put.cast(exponent, base.dtype))


_RULES: Mapping[str, plain.Rule] = {**plain.PLAIN, "Squeeze": _squeeze, "Pow": _pow}


# ------------------------------------------------------------------------------------------------ versions of operators


def _fit(node: ir.Node, source: int, target: int) -> None:
    """Raise ExportError unless the node means the same in the older opset; drop new attributes that say the default."""
    if node.domain or not onnx.defs.has(node.op_type, max_inclusive_version=target, domain=""):
        return  # the table tells of it
    new, old = onnx.defs.get_schema(node.op_type, source), onnx.defs.get_schema(node.op_type, target)
    if new.since_version == old.since_version:
        return
    for name in [name for name in node.attributes if name not in old.attributes]:
        if node.attributes[name].value != _default(new, name):
            raise plain.refuse(node, f"has the attribute {name}, which opset {target} has not")
        del node.attributes[name]
    if len(node.inputs) > old.max_input or len(node.outputs) > old.max_output:
        raise plain.refuse(node, f"has more inputs or outputs than opset {target} knows")


def _default(schema: onnx.defs.OpSchema, name: str) -> object:
    found = schema.attributes[name].default_value
    if found.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(found)
    return value.decode() if isinstance(value, bytes) else value


# ------------------------------------------------------------------------------------------------ weights


def _weights(graph: ir.Graph) -> None:
    """Quantized matrices in the forms that the module's docstring names."""
    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        codes, scales = plain.known(node, 0), plain.known(node, 1)
        if codes.const_value is None or scales.const_value is None:
            raise ExportError(f"{codes.name} is quantized, but no weight; this is a bug in edgegen")
        name = str(codes.name).removesuffix("::codes")
        for use in list(node.outputs[0].uses()):
            columns = use.node.op_type == "Transpose" and codes.dtype == ir.DataType.INT4 and _is_whole(node)
            if columns:
                replace(use.node.outputs[0], _columns(node, name))
            else:
                dense = initializer(graph, f"{name}::dense", _dense(node))
                use.node.replace_input_with(use.idx, dense)
    remove_dead(graph)


def _is_whole(node: ir.Node) -> bool:
    """Whether the last block of each row is as long as the others."""
    codes = plain.known(node, 0)
    size = plain.axis_size(codes, 1)
    return size is not None and size % int(plain.attribute(node, "block_size", 1)) == 0


def _columns(node: ir.Node, name: str) -> ir.Value:
    """The same matrix as [in, out] with blocks along its first axis: no transposition is left for the parser to see through."""
    put = plain.Before(node)
    codes, scales = plain.known(node, 0), plain.known(node, 1)
    stored = [
        initializer(put.graph, f"{name}::{kind}_columns", np.ascontiguousarray(_array(value).T))
        for kind, value in (("codes", codes), ("scales", scales))
    ]
    size = int(plain.attribute(node, "block_size", 0))
    return put("DequantizeLinear", *stored, dtype=scales.dtype, axis=0, block_size=size)


def _dense(node: ir.Node) -> np.ndarray:
    """What the codes stand for, [out, in], in the type of the scales: rounded once, as DequantizeLinear does."""
    codes, scales = _array(plain.known(node, 0)), _array(plain.known(node, 1))
    size = int(plain.attribute(node, "block_size", 1))
    dense = np.empty(codes.shape, scales.dtype)
    for row in range(len(codes)):  # a row at a time: in float32 the whole is twice as large as the result
        wide = np.repeat(scales[row].astype(np.float32), size)[: codes.shape[1]]
        dense[row] = codes[row].astype(np.float32) * wide
    return dense


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    array: np.ndarray = value.const_value.numpy()
    return array
