"""Small graphs made by hand, for tests of the planner."""

from edgegen.graphs.nodes import Constant, Graph, Node
from edgegen.planner.shapes import Form

FLOAT = 1


def node(operator, inputs, outputs, domain="", **attributes):
    """A node; names are parted by spaces."""
    return Node(
        operator.encode(),
        domain.encode(),
        tuple(name.encode() for name in inputs.split()),
        tuple(name.encode() for name in outputs.split()),
        {name.encode(): value for name, value in attributes.items()},
        b"",
    )


def graph(*nodes, constants=(), outputs=(), shapes=()):
    """A graph of `nodes`; constants are (shape, values) by name."""
    return Graph(
        tuple(nodes),
        {name.encode(): Constant(7 if values else FLOAT, shape, values) for name, (shape, values) in dict(constants).items()},
        {name.encode(): shape for name, shape in dict(shapes).items()},
        {},
        frozenset(name.encode() for name in outputs),
        {b"": 24},
    )


def forms(**shapes):
    """float32 values by name."""
    return {name.encode(): Form(FLOAT, shape) for name, shape in shapes.items()}
