"""The values of small integer tensors that a graph computes its own shapes from: `Shape`, `Gather`, `Concat`, sums of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.planner.shape_rules import Call, Shape

Numbers = NDArray[Any]

_INTEGERS = (6, 7)  # TensorProto.DataType


def _shape(call: Call) -> Numbers:
    shape = call.shape(0)
    return np.array(shape[call.integer("start", 0) : call.integer("end", len(shape))])


def _cast(call: Call) -> Numbers:
    return call.value(0).astype(np.int64) if call.integer("to", 0) in _INTEGERS else call.value(0)


def _divide(call: Call) -> Numbers:
    one, other = call.value(0), call.value(1)
    return np.asarray(one // other if one.dtype.kind == other.dtype.kind == "i" else one / other)


def _slice(call: Call) -> Numbers:
    found = call.value(0)
    for axis, cut in call.cuts():
        found = found[(slice(None),) * axis + (cut,)]
    return found


def _sum(call: Call) -> Numbers:
    axes = call.axes(1)
    return np.asarray(np.sum(call.value(0), axis=axes, keepdims=bool(call.integer("keepdims", 1))))


def _all(call: Call) -> list[Numbers]:
    return [call.value(place) for place in range(len(call.shapes))]


_VALUES: dict[bytes, Callable[[Call], Numbers]] = {
    b"Shape": _shape,
    b"Cast": _cast,
    b"Div": _divide,
    b"ReduceSum": _sum,
    b"Slice": _slice,
    b"Size": lambda call: np.array(np.prod(call.shape(0), dtype=np.int64)),
    b"Gather": lambda call: np.take(call.value(0), call.value(1).astype(np.int64), call.integer("axis", 0)),
    b"Concat": lambda call: np.concatenate(_all(call), call.integer("axis", 0)),
    b"Range": lambda call: np.arange(*(number.item() for number in _all(call))),
    b"Add": lambda call: np.asarray(call.value(0) + call.value(1)),
    b"Sub": lambda call: np.asarray(call.value(0) - call.value(1)),
    b"Mul": lambda call: np.asarray(call.value(0) * call.value(1)),
    b"Neg": lambda call: np.asarray(-call.value(0)),
    b"Min": lambda call: np.minimum.reduce(_all(call)),
    b"Max": lambda call: np.maximum.reduce(_all(call)),
    b"Equal": lambda call: np.asarray(call.value(0) == call.value(1)),
    b"Where": lambda call: np.where(*_all(call)),
    b"Expand": lambda call: np.broadcast_to(call.value(0), np.broadcast_shapes(call.value(0).shape, call.whole(1))),
    **dict.fromkeys((b"Reshape", b"Squeeze", b"Unsqueeze", b"Flatten", b"Identity"), lambda call: call.value(0)),
}


def value_of(call: Call, shape: Shape) -> Numbers | None:
    """The first output of a node whose inputs are known, in its shape; None where nobody needs to follow it.

    Raises what numpy raises, or LookupError, where an input is not known.
    """
    compute = _VALUES.get(call.node.operator)
    return None if compute is None else np.reshape(compute(call), shape)
