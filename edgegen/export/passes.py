"""Clean-ups of a captured graph. A pass that must find something fails where it does not."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgegen.errors import ExportError
from edgegen.tensors import TensorSpec

LAST = np.iinfo(np.int64).max
DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The initializer of that name, made on first use."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        )
    return graph.initializers[name]


def insert_before(node: ir.Node, op: str, inputs: Iterable[ir.Value | None], attributes: dict[str, object] | None = None,
                  *, domain: str = "", outputs: int = 1) -> ir.Node:  # fmt: skip
    """A new node in front of `node`; its outputs are named after it."""
    graph = node.graph
    assert graph is not None
    new = ir.node(op, list(inputs), attributes or None, domain=domain, num_outputs=outputs)  # type: ignore[arg-type]
    graph.insert_before(node, new)
    return new


def replace(old: ir.Value, new: ir.Value) -> None:
    """Everyone who read `old` reads `new`; a graph output keeps its name."""
    new.type = new.type or old.type
    new.shape = new.shape or old.shape
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}_before"
        new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def remove_dead(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads."""
    for node in reversed(graph):
        if not any(value.is_graph_output() or value.uses() for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [n for n, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()]:
        del graph.initializers[name]


def parameter_name(value: ir.Value) -> str:
    """The parameter of the original model: the step that was captured wraps it as `model`."""
    return (value.name or "").removeprefix("model.")


def keep_last_positions(graph: ir.Graph) -> None:
    """Replace the captured gather of positions by a slice of the last `logits_to_keep`, an input with the default 1.

    A default makes it optional: onnxruntime-genai never feeds it, and TensorRT takes it as the constant 1.
    """
    kept = next(value for value in graph.inputs if value.name == "kept")
    hidden, picked = _picked_positions(kept)
    gather = picked.producer()
    assert gather is not None
    keep = initializer(graph, "logits_to_keep", np.array(1, dtype=np.int64))
    one = insert_before(gather, "Neg", [keep]).outputs[0]
    start = insert_before(gather, "Reshape", [one, initializer(graph, "const.shape1", np.array([1], dtype=np.int64))]).outputs[
        0
    ]
    ends = initializer(graph, "const.last", np.array([LAST], dtype=np.int64))
    axes = initializer(graph, "const.axis1", np.array([1], dtype=np.int64))
    replace(picked, insert_before(gather, "Slice", [hidden, start, ends, axes]).outputs[0])
    remove_dead(graph)
    graph.inputs.remove(kept)
    graph.inputs.append(keep)


def _only_user(value: ir.Value) -> ir.Node | None:
    nodes = [use.node for use in value.uses()]
    return nodes[0] if len(nodes) == 1 else None


def _picked_positions(kept: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`hidden[:, kept, :]` is Transpose -> GatherND(.., Unsqueeze(kept)) -> Transpose: its input and its output."""
    nodes: list[ir.Node | None] = [_only_user(kept)]
    for op in ("Unsqueeze", "GatherND"):
        node = nodes[-1]
        if node is None or node.op_type != op:
            raise ExportError(
                "the captured graph does not pick the positions of its logits in the known way; this is a bug in edgegen"
            )
        nodes.append(_only_user(node.outputs[0]))
    gather, back = nodes[-2], nodes[-1]
    assert gather is not None
    assert back is not None
    assert gather.inputs[0] is not None
    forth = gather.inputs[0].producer()
    assert forth is not None
    assert forth.inputs[0] is not None
    return forth.inputs[0], back.outputs[0]


def name_axes(graph: ir.Graph) -> None:
    """Batch is 1 in the graph; `sequence`, `cache` and `kept` are its free axes. Inner shapes are left to the backend."""
    for value in [*graph.inputs, *graph.outputs]:
        axes = _axes(value)
        value.shape = ir.Shape(axes)
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output() and value.shape is not None:
                value.shape = None


def _axes(value: ir.Value) -> list[int | str]:
    assert value.name is not None
    assert value.shape is not None
    if value.name in ("input_ids", "position_ids"):
        return [1, "sequence"]
    if value.name == "attention_mask":
        return [1, "total"]
    if value.name == "logits":
        return [1, "kept", int(value.shape[2])]  # type: ignore[arg-type]
    if value.name.startswith(("past_key_values.", "present.")):
        return [1, int(value.shape[1]), "cache", int(value.shape[3])]  # type: ignore[arg-type]
    return [int(size) for size in value.shape]  # type: ignore[arg-type]


def specs(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """What the manifest says of inputs or outputs."""
    found = []
    for value in values:
        assert value.name is not None
        assert value.dtype is not None
        assert value.shape is not None
        axes = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
        found.append(TensorSpec(value.name, DTYPES[value.dtype], axes))  # type: ignore[arg-type]
    return tuple(found)


def strip_metadata(model: ir.Model) -> None:
    """Remove the exporter's notes: stack traces of the machine that exported are nobody's business, and half of the file."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
