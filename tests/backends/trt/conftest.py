"""Small graphs and simulated machines for the tests of the TensorRT backend."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from simulated_tensorrt import Simulation, simulate

from edgegen.backends.trt.build import build_engine
from edgegen.backends.trt.flavours import FLAVOURS
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.backends.trt.session import TrtSession
from edgegen.bundle import GraphFiles
from edgegen.manifest import StatePair, Variant
from edgegen.tensors import Axis, TensorSpec

KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}
LONGEST = 16


def graph_files(
    nodes: list[onnx.NodeProto],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    axes: dict[str, Axis] | None = None,
    state: tuple[StatePair, ...] = (),
    constants: dict[str, np.ndarray] | None = None,
) -> GraphFiles:
    values = [
        [helper.make_tensor_value_info(spec.name, KINDS[spec.dtype], spec.axes) for spec in specs]
        for specs in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", *values, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11).SerializeToString()
    variant = Variant("graphs/g.onnx", (), tuple(inputs), tuple(outputs), state)
    return GraphFiles(model, {}, variant, axes or {}, (), None)


def decoder_files() -> GraphFiles:
    """A decoder of one layer without words: tokens are written into a cache and summed up; `kept` rows come out."""
    past = TensorSpec("past", "float32", (1, 1, "cache", 4))
    inputs = [
        TensorSpec("x", "float32", (1, 1, "sequence", 4)),
        TensorSpec("write_indices", "int64", (1,)),
        TensorSpec("logits_to_keep", "int64", ()),
        past,
    ]
    outputs = [TensorSpec("logits", "float32", (1, 1, "kept", 4)), TensorSpec("present", "float32", past.axes)]
    nodes = [
        helper.make_node("TensorScatter", ["past", "x", "write_indices"], ["present"], axis=2, mode="linear"),
        helper.make_node("ReduceSum", ["present", "two"], ["sum"], keepdims=1),
        helper.make_node("Add", ["x", "sum"], ["rows"]),
        helper.make_node("Neg", ["logits_to_keep"], ["last"]),
        helper.make_node("Unsqueeze", ["last", "zero"], ["start"]),
        helper.make_node("Slice", ["rows", "start", "end", "two"], ["logits"]),
    ]
    constants = {
        "two": np.array([2], np.int64),
        "zero": np.array([0], np.int64),
        "end": np.array([1 << 40], np.int64),
        "logits_to_keep": np.array(1, np.int64),
    }
    axes = {name: Axis(1, 1, LONGEST) for name in ("sequence", "kept")} | {"cache": Axis(1, LONGEST, LONGEST)}
    return graph_files(nodes, inputs, outputs, axes, (StatePair("past", "present", 2),), constants)


def image_files() -> GraphFiles:
    """An image graph of fixed shape."""
    spec = TensorSpec("x", "float32", (2, 3))
    return graph_files([helper.make_node("Add", ["x", "x"], ["y"])], [spec], [TensorSpec("y", "float32", (2, 3))])


Open = Callable[..., TrtSession]


@pytest.fixture
def machine(monkeypatch) -> Iterator[Callable[..., Simulation]]:
    """Makes simulated machines; at the end nothing that a test has closed may be left on them."""
    return lambda preset="11.4", **options: simulate(preset, **options).install(monkeypatch)


@pytest.fixture
def opened() -> Open:
    """Builds a graph's engine on a simulated machine, and opens it."""

    def open_files(simulation: Simulation, files: GraphFiles, options: BuildOptions | None = None, **how: object) -> TrtSession:
        flavour, chosen = FLAVOURS[simulation.backend], options or BuildOptions()
        return TrtSession(build_engine(flavour, files, chosen), flavour, files, chosen, **how)

    return open_files


def tokens(count: int, value: float = 1.0) -> np.ndarray:
    return np.full((1, 1, count, 4), value, np.float32)


def at(place: int) -> np.ndarray:
    return np.array([place], np.int64)


def step_all(session: TrtSession, steps: int) -> list[np.ndarray]:
    """A prompt of three, then one token at a time from arrays that stay the same: what `KVCache` does."""
    state = session.new_state(LONGEST)
    found = [session.run({"x": tokens(3), "write_indices": at(0)}, state=state)["logits"].copy()]
    feed = {"x": tokens(1), "write_indices": at(0)}
    for place in range(3, 3 + steps):
        feed["x"].fill(place)
        feed["write_indices"].fill(place)
        found.append(session.run(feed, state=state)["logits"].copy())
    state.close()
    return found


def expected(steps: int) -> list[np.ndarray]:
    sums = np.cumsum([3.0, *range(3, 3 + steps)])
    values = [1.0, *map(float, range(3, 3 + steps))]
    return [tokens(1, total + value) for total, value in zip(sums, values, strict=True)]
