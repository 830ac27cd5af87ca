"""The shapes of all values of a graph for given sizes of its axes: inferred operator by operator, without the onnx package.

What a file says of inner values is not enough: exporters leave shapes out, lowering loses them, and names of axes ("2*batch*h")
have to be computed. So every shape is inferred from the inputs' sizes, small integer tensors (shapes that a graph itself
computes) are followed with their values, and what the file says is only asked where an operator is unknown. A value whose
shape cannot be found is counted, never taken as empty.
"""

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgegen.graphs.nodes import Graph, Node
from edgegen.graphs.walk import DTYPES, ELEMENT_BITS
from edgegen.manifest import Variant
from edgegen.planner.shape_rules import FIXED_DTYPES, RULES, SECOND_DTYPES, Call, Shape
from edgegen.planner.shape_values import value_of

Numbers = NDArray[Any]
FLOAT32 = 1  # TensorProto.DataType

_Sum = ast.Add | ast.Sub | ast.Mult | ast.FloorDiv
_SUMS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}
_DTYPE_FROM = {b"Where": 1, b"DequantizeLinear": 1, b"GatherBlockQuantized": 2}  # the input that an output's dtype is
_MOST_ELEMENTS = 1 << 10  # of a value that is followed: shapes, and indices made from them
_NOT_FOUND = (LookupError, ValueError, TypeError, ArithmeticError, AttributeError)  # what a rule raises where it does not fit


class Form(NamedTuple):
    """TensorProto.DataType and shape of one value."""

    dtype: int
    shape: Shape

    @property
    def size_bytes(self) -> int:
        """Of its elements, closely packed; four bytes for each where the dtype is not known."""
        return -(-math.prod(self.shape) * ELEMENT_BITS.get(self.dtype, 32) // 8)


class Shapes(NamedTuple):
    """The form of every value that could be found, and the names of those that could not."""

    forms: dict[bytes, Form]
    unknown: tuple[bytes, ...]


def input_forms(variant: Variant, sizes: Mapping[str, int]) -> dict[bytes, Form]:
    """The forms of a variant's inputs at `sizes` of its named axes; KeyError where one is missing."""
    return {
        spec.name.encode(): Form(
            DTYPES[spec.dtype], tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes)
        )
        for spec in variant.inputs
    }


def infer(
    graph: Graph, inputs: Mapping[bytes, Form], sizes: Mapping[str, int], values: Mapping[bytes, Numbers] | None = None
) -> Shapes:
    """Find the form of every value.

    Args:
        graph: the graph's nodes in an order in which they can run.
        inputs: forms of the graph's inputs.
        sizes: of the named axes, for what the file says of inner values.
        values: of inputs that shapes depend on: `logits_to_keep`, and the mask whose ones are counted.
    """
    forms = {name: Form(constant.dtype, constant.shape) for name, constant in graph.constants.items()} | dict(inputs)
    known = {
        name: np.reshape(np.array(constant.values), constant.shape)
        for name, constant in graph.constants.items()
        if constant.values is not None
    }
    known |= values or {}
    unknown = []
    for node in graph.nodes:
        found = _infer_node(graph, node, forms, known, sizes)
        unknown += [name for name in node.outputs if name and name not in found]
        forms |= found
    return Shapes(forms, tuple(unknown))


def _infer_node(
    graph: Graph, node: Node, forms: Mapping[bytes, Form], known: dict[bytes, Numbers], sizes: Mapping[str, int]
) -> dict[bytes, Form]:
    call = Call(node, [forms[name].shape if name in forms else None for name in node.inputs], list(map(known.get, node.inputs)))
    rule = RULES.get(node.operator)
    try:
        shapes = [tuple(map(int, shape)) for shape in rule(call)] if rule else []
    except _NOT_FOUND:
        shapes = []
    found = {}
    for place, name in enumerate(node.outputs):
        shape = shapes[place] if place < len(shapes) else _said_shape(graph, name, sizes)
        if name and shape is not None and min(shape, default=0) >= 0:
            found[name] = Form(graph.dtypes.get(name) or _dtype(node, place, forms), shape)
    first = found.get(node.outputs[0]) if node.outputs else None
    if first is not None and math.prod(first.shape) <= _MOST_ELEMENTS:
        try:
            value = value_of(call, first.shape)
        except _NOT_FOUND:
            value = None
        if value is not None:
            known[node.outputs[0]] = value
    return found


def _dtype(node: Node, place: int, forms: Mapping[bytes, Form]) -> int:
    """Of a node's output, where the file does not say it."""
    name = node.operator
    if place == 1 and name in SECOND_DTYPES:
        return SECOND_DTYPES[name]
    to = node.attributes.get(b"to", node.attributes.get(b"output_dtype"))
    if isinstance(to, int) and to > 0:
        return to
    source = _DTYPE_FROM.get(name, 0)
    given = forms.get(node.inputs[source]) if source < len(node.inputs) else None
    return FIXED_DTYPES.get(name, given.dtype if given is not None else 0)


def _said_shape(graph: Graph, name: bytes, sizes: Mapping[str, int]) -> Shape | None:
    """What the file says of a value, at these sizes; None where it says nothing, or names an axis that nobody knows.

    No axes at all may be a scalar or a shape that was lost: that is not known either.
    """
    said = graph.shapes.get(name, ())
    try:
        return tuple(axis if isinstance(axis, int) else evaluate(axis.decode(), sizes) for axis in said) or None
    except (ValueError, KeyError, ZeroDivisionError):
        return None


def evaluate(text: str, sizes: Mapping[str, int]) -> int:
    """The size of an axis whose name is a sum or product of others, "2*batch*h". KeyError or ValueError where it is not."""
    if text in sizes:
        return sizes[text]
    try:
        return _evaluate(ast.parse(text, mode="eval").body, sizes)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} is no size") from error


def _evaluate(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, _Sum):
        result: int = _SUMS[type(tree.op)](_evaluate(tree.left, sizes), _evaluate(tree.right, sizes))
        return result
    raise ValueError("neither a number, nor a name, nor a sum or product of them")
