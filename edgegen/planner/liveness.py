"""The most memory that a graph's values take at once: a walk over its nodes in their order, holding what is still needed.

A node's outputs are made before its inputs are let go, but for what costs nothing: a view (Reshape, Squeeze, ...) is its
input's memory, an element-wise node writes over an input that nobody reads any more, and state is written where it lies.
Inputs and constants belong to others and are not counted; outputs are kept to the end.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from edgegen.graphs.nodes import Node
from edgegen.planner.shapes import Form

ROUNDING = 256  # bytes: onnxruntime's arena (core/framework/bfc_arena.h, kMinAllocationSize) and CUDA's allocators

_VIEWS = frozenset({b"Reshape", b"Squeeze", b"Unsqueeze", b"Flatten", b"Identity"})
# onnxruntime's kernels that are registered with MayInplace: their output may be written over an input.
_OVER_AN_INPUT = frozenset(
    b"""Abs Add And BatchNormalization Ceil Clip Cos Div Dropout Elu Equal Erf Exp Floor Gelu HardSigmoid LeakyRelu Log Max Min
    Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Tanh""".split()
)

Scratch = Callable[[Node], int]


class Event(NamedTuple):
    """A buffer is taken (`size_bytes` > 0) or let go (0), at a node's place in the order."""

    place: int
    buffer: bytes
    size_bytes: int


class Peak(NamedTuple):
    """The most bytes at once, and the place of the node that runs then; -1 where nothing is ever held."""

    size_bytes: int
    place: int


def rounded(size_bytes: int) -> int:
    """As an allocator rounds it."""
    return -(-size_bytes // ROUNDING) * ROUNDING


def peak(events: Sequence[Event]) -> Peak:
    """The most that is held between two events."""
    held, most, sizes = 0, Peak(0, -1), dict[bytes, int]()
    for event in events:
        held += event.size_bytes or -sizes[event.buffer]
        sizes[event.buffer] = event.size_bytes
        if held > most.size_bytes:
            most = Peak(held, event.place)
    return most


def events(
    nodes: Sequence[Node],
    forms: Mapping[bytes, Form],
    outputs: frozenset[bytes],
    *,
    elsewhere: frozenset[bytes] = frozenset(),
    views: frozenset[bytes] = _VIEWS,
    scratch: Scratch | None = None,
    planned: frozenset[bytes] | None = None,
) -> list[Event]:
    """Walk `nodes` in their order, and tell when which memory is taken and let go.

    Args:
        nodes: of the graph; a value that none of them makes is an input or a constant.
        forms: of the values; one without a form takes no room (`Shapes.unknown` counts those).
        outputs: what must be there at the end.
        elsewhere: values that are written into memory that is there already: present state.
        views: operators whose output is their first input's memory.
        scratch: bytes that a node needs only while it runs.
        planned: where onnxruntime plans it (core/framework/allocation_planner.cc), the values whose shapes it knows: only those
            are written over an input, and a buffer of one that is free is kept for the next of the same form, so that it is
            held in between. None: all may be written over, and none is kept.
    """
    walk, found = _Walk(nodes, forms, outputs, elsewhere, views, planned), list[Event]()
    for place, node in enumerate(nodes):
        walk.visit(place, node)
    for place, node in enumerate(nodes):
        found += [Event(place, name, walk.sizes[name]) for name in walk.taken.get(place, ())]
        extra = scratch(node) if scratch else 0
        if extra:
            name = b"scratch of %d" % place
            found += [Event(place, name, rounded(extra)), Event(place, name, 0)]
        found += [Event(place, name, 0) for name in walk.sizes if walk.freed.get(name) == place]
    return found


def runtime_order(nodes: Sequence[Node]) -> list[Node]:
    """The nodes in the order in which onnxruntime runs them: from each end of the graph backwards, later inputs first.

    As of core/graph/graph_viewer.cc, ExecutionOrder::DEFAULT: what a branch needs runs just before it, so a shortcut is
    made before the branch that it is added to.
    """
    makers = {name: place for place, node in enumerate(nodes) for name in node.outputs if name}
    sources = [sorted({makers[name] for name in node.inputs if name in makers}) for node in nodes]
    read = {place for inner in sources for place in inner}
    stack, seen, order = [(place, False) for place in range(len(nodes)) if place not in read], set[int](), list[Node]()
    while stack:
        place, is_ready = stack.pop()
        if is_ready:
            order.append(nodes[place])
        elif place not in seen:
            seen.add(place)
            stack += [(place, True), *((source, False) for source in sources[place] if source not in seen)]
    return order


class _Walk:
    """Which buffer each value lies in, when it is taken, and when its last user has run."""

    def __init__(
        self,
        nodes: Sequence[Node],
        forms: Mapping[bytes, Form],
        outputs: frozenset[bytes],
        elsewhere: frozenset[bytes],
        views: frozenset[bytes],
        planned: frozenset[bytes] | None,
    ) -> None:
        self.sizes: dict[bytes, int] = {}  # of the buffers, by the value that they were made for
        self.taken: dict[int, list[bytes]] = {}
        self.freed: dict[bytes, int] = {}  # the place of each buffer's last user; of none that is held to the end
        self._forms, self._outputs, self._elsewhere, self._views, self._planned = forms, outputs, elsewhere, views, planned
        self._uses = Counter(name for node in nodes for name in {*node.inputs} if name) + Counter(outputs)
        self._buffer: dict[bytes, bytes] = {}  # of a value; none for inputs, constants and state
        self._users: Counter[bytes] = Counter()  # of each buffer: uses of the values in it that are still to come

    def visit(self, place: int, node: Node) -> None:
        """Make room for a node's outputs, then let go of what it was the last to read."""
        for number, name in enumerate(node.outputs):
            form = self._forms.get(name)
            if not name or name in self._elsewhere or form is None:
                continue
            buffer = self._shared(node, form) if number == 0 and name not in self._outputs else name
            if buffer is not None:
                self._put(place, name, form, buffer)
        for name in {*node.inputs} & self._buffer.keys():
            self._users[self._buffer[name]] -= 1
        for buffer in {self._buffer[name] for name in (*node.inputs, *node.outputs) if name in self._buffer}:
            if not self._users[buffer]:
                self.freed[buffer] = place

    def _put(self, place: int, name: bytes, form: Form, buffer: bytes) -> None:
        if buffer == name and self._planned is not None and name in self._planned and name not in self._outputs:
            free = (free for free in reversed(self.freed) if free in self._planned and self._forms[free] == form)
            buffer = next(free, name)
        if buffer not in self.sizes:
            self.sizes[buffer] = rounded(form.size_bytes) or ROUNDING
            self.taken.setdefault(place, []).append(buffer)
        self.freed.pop(buffer, None)
        self._buffer[name] = buffer
        self._users[buffer] += self._uses[name]

    def _is_planned(self, name: bytes) -> bool:
        return self._planned is None or name in self._planned

    def _shared(self, node: Node, form: Form) -> bytes | None:
        """The buffer that the first output is written into: a view's, that of an input that nobody else reads, or its own.

        None for a view of an input or a constant, which is not counted.
        """
        if node.operator in self._views:
            return self._buffer.get(node.inputs[0])
        if node.operator in _OVER_AN_INPUT and self._is_planned(node.outputs[0]):
            for source in filter(self._is_planned, node.inputs):
                buffer, given = self._buffer.get(source), self._forms.get(source)
                if (
                    buffer is not None
                    and self._users[buffer] == 1
                    and given is not None
                    and given.size_bytes == form.size_bytes
                ):
                    return buffer
        return node.outputs[0]
