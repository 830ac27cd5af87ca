"""One contract for every backend: a session computes, keeps state in place, refuses what does not fit, and closes."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from simulated_tensorrt import PRESETS, simulate

from edgegen.backends import BACKENDS, fault, install_hint, present_backends
from edgegen.backends.base import Session
from edgegen.backends.fake import FakeSession
from edgegen.errors import BackendError, InputError
from edgegen.manifest import StatePair, Variant
from edgegen.tensors import Axis, TensorSpec

AXES = {"row": Axis(1, 1, 8), "cache": Axis(1, 16, 64)}
ADD = Variant(
    path="graphs/add.onnx",
    weights=(),
    inputs=(TensorSpec("x", "float32", ("row", 3)), TensorSpec("scale", "float32", ())),
    outputs=(TensorSpec("y", "float32", ("row", 3)), TensorSpec("twice", "float32", ("row", 3))),
)
SCATTER = Variant(
    path="graphs/scatter.onnx",
    weights=(),
    inputs=(
        TensorSpec("x", "float32", (1, 2, "row", 4)),
        TensorSpec("write_indices", "int64", (1,)),
        TensorSpec("past.0", "float32", (1, 2, "cache", 4)),
        TensorSpec("past.1", "float32", (1, 2, "cache", 4)),
    ),
    outputs=(
        TensorSpec("total", "float32", (1,)),
        TensorSpec("present.0", "float32", (1, 2, "cache", 4)),
        TensorSpec("present.1", "float32", (1, 2, "cache", 4)),
    ),
    state=(StatePair("past.0", "present.0", 2), StatePair("past.1", "present.1", 2)),
)


def onnx_bytes(variant: Variant, nodes: list, defaults: dict[str, np.ndarray]) -> bytes:
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    values = [
        [helper.make_tensor_value_info(spec.name, kinds[spec.dtype], spec.axes) for spec in specs]
        for specs in (variant.inputs, variant.outputs)
    ]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in defaults.items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", *values, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11).SerializeToString()


def onnx_add() -> bytes:
    nodes = [("Mul", ["x", "scale"], ["y"], {}), ("Add", ["y", "y"], ["twice"], {})]
    return onnx_bytes(ADD, nodes, {"scale": np.array(1, np.float32)})


def onnx_scatter() -> bytes:
    nodes = [
        ("TensorScatter", [f"past.{i}", "x", "write_indices"], [f"present.{i}"], {"axis": 2, "mode": "linear"}) for i in (0, 1)
    ]
    nodes += [("ReduceSum", ["present.0"], ["sum"], {"keepdims": 0}), ("Reshape", ["sum", "one"], ["total"], {})]
    return onnx_bytes(SCATTER, nodes, {"one": np.array([1], np.int64)})


def add_function(feed, state):
    y = feed["x"] * feed["scale"]
    return {"y": y, "twice": y + y}


def scatter_function(feed, state):
    start, rows = int(feed["write_indices"][0]), feed["x"].shape[2]
    for present in state.values():
        present[:, :, start : start + rows] = feed["x"]
    return {"total": state["past.0"].sum().reshape(1)}


def onnx_scatter_legacy() -> bytes:
    """The same without TensorScatter, which TensorRT before 10.15 does not know: as the variant for it has it."""
    where = [
        ("Shape", ["x"], ["shape"], {}),
        ("Shape", ["x"], ["rows"], {"start": 2, "end": 3}),
        ("Squeeze", ["rows"], ["count"], {}),
        ("Range", ["zero", "count", "step"], ["flat"], {}),
        ("Add", ["flat", "write_indices"], ["moved"], {}),
        ("Reshape", ["moved", "column"], ["upright"], {}),
        ("Expand", ["upright", "shape"], ["places"], {}),
    ]
    nodes = [*where, *(("ScatterElements", [f"past.{i}", "places", "x"], [f"present.{i}"], {"axis": 2}) for i in (0, 1))]
    nodes += [("ReduceSum", ["present.0"], ["sum"], {"keepdims": 0}), ("Reshape", ["sum", "one"], ["total"], {})]
    numbers = {"one": [1], "zero": 0, "step": 1, "column": [-1, 1]}
    return onnx_bytes(SCATTER, nodes, {name: np.array(value, np.int64) for name, value in numbers.items()})


RESIDENT = "onnxruntime, in memory of its own"  # the way of the GPUs, with the CPU as the device
NO_ONNXRUNTIME = pytest.mark.skipif("onnxruntime" not in present_backends(), reason="onnxruntime is not installed")
REAL = [
    *(name for name in present_backends() if not BACKENDS[name].needs_gpu),
    pytest.param(RESIDENT, marks=NO_ONNXRUNTIME),
    *(pytest.param(name, marks=pytest.mark.gpu) for name, backend in BACKENDS.items() if backend.needs_gpu),
    *(f"simulated {preset}" for preset in PRESETS),
]


def open_real(name: str, variant: Variant, model: Callable[[], bytes]) -> Session:
    from edgegen.backends import _is_old, _load

    backend, options = BACKENDS[name.partition(",")[0]], {"resident": True} if name == RESIDENT else {}
    if variant is SCATTER and _is_old(backend):
        model = onnx_scatter_legacy
    return _load(backend)(model(), {}, variant, AXES, threads=1, **backend.options, **options)


def skip_unless_usable(name: str) -> None:
    if name in BACKENDS and name not in present_backends():
        pytest.skip(f"{name}: {install_hint(BACKENDS[name])}")
    if name in BACKENDS and (reason := fault(name)):
        pytest.skip(f"{name}: {reason}")


def open_simulated(name: str, variant: Variant, model: Callable[[], bytes]) -> Session:
    with pytest.MonkeyPatch.context() as patch:
        simulation = simulate(name.partition(" ")[2]).install(patch)
        return open_real(simulation.backend, variant, model)


def open_on(name: str, variant: Variant) -> Session:
    model, function = (onnx_add, add_function) if variant is ADD else (onnx_scatter, scatter_function)
    if name.startswith("simulated"):
        return open_simulated(name, variant, model)
    if name != "fake":
        skip_unless_usable(name)
        return open_real(name, variant, model)
    defaults = {"scale": np.array(1, np.float32)} if variant is ADD else {}
    return FakeSession(function, variant.inputs, variant.outputs, variant.state, axes=AXES, defaults=defaults)


@pytest.fixture(params=["fake", *REAL])
def add(request) -> Iterator[Session]:
    with open_on(request.param, ADD) as session:
        yield session


@pytest.fixture(params=["fake", *REAL])
def scatter(request) -> Iterator[Session]:
    with open_on(request.param, SCATTER) as session:
        yield session


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def rows(count: int, value: float) -> np.ndarray:
    return np.full((1, 2, count, 4), value, np.float32)


def test_a_session_names_its_inputs_and_outputs_with_state(scatter):
    assert list(scatter.inputs) == ["x", "write_indices", "past.0", "past.1"]
    assert list(scatter.outputs) == ["total", "present.0", "present.1"]


def test_outputs_are_computed_for_each_new_shape(add):
    for count in (2, 1, 2):
        out = add.run({"x": X[:count]})
        np.testing.assert_array_equal(out["y"], X[:count])
        np.testing.assert_array_equal(out["twice"], 2 * X[:count])


def test_an_input_with_a_default_may_be_fed_once_and_then_left_out(add):
    np.testing.assert_array_equal(add.run({"x": X})["y"], X)
    np.testing.assert_array_equal(add.run({"x": X, "scale": np.array(3, np.float32)})["y"], 3 * X)
    np.testing.assert_array_equal(add.run({"x": X})["y"], X)


def test_only_the_outputs_that_were_asked_for_come_back(add):
    assert set(add.run({"x": X})) == {"y", "twice"}
    assert set(add.run({"x": X}, outputs=["twice"])) == {"twice"}
    assert set(add.run({"x": X}, outputs=["y"])) == {"y"}


def test_a_slice_that_is_not_contiguous_is_fed_rightly(add):
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(add.run({"x": wide[:, ::2]})["y"], wide[:, ::2])


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"x": X, "more": X},
        {"x": X.astype(np.float64)},
        {"x": X[0]},
        {"x": X[:, :2]},
        {"x": np.zeros((9, 3), np.float32)},
    ],
    ids=["missing", "unknown", "dtype", "rank", "fixed axis", "axis out of range"],
)
def test_a_feed_that_does_not_fit_is_refused(add, feed):
    with pytest.raises(InputError):
        add.run(feed)


def test_an_unknown_output_is_refused(add):
    with pytest.raises(InputError, match="z"):
        add.run({"x": X}, outputs=["z"])


def test_a_graph_without_state_gives_none_and_takes_none(add, scatter):
    with pytest.raises(InputError):
        add.new_state(4)
    with pytest.raises(InputError):
        scatter.run({"x": rows(1, 1.0), "write_indices": np.array([0])})


def test_state_is_zero_at_first_and_updated_in_place(scatter):
    state = scatter.new_state(16)
    assert state.capacity >= 16  # a TensorRT engine has one cache length: there is room for all of it
    assert not state.read("past.0").any()
    for start, value in ((0, 1.0), (3, 2.0)):
        scatter.run({"x": rows(2, value), "write_indices": np.array([start])}, state=state)
    np.testing.assert_array_equal(state.read("past.1")[0, 0, :6, 0], [1, 1, 0, 2, 2, 0])


def test_outputs_that_are_not_state_come_back_from_a_run_with_state(scatter):
    state = scatter.new_state(8)
    out = scatter.run({"x": rows(3, 1.0), "write_indices": np.array([0])}, state=state)
    assert set(out) == {"total"}
    np.testing.assert_array_equal(out["total"], [24])
    assert scatter.run({"x": rows(1, 0.0), "write_indices": np.array([0])}, state=state, outputs=[]) == {}
    np.testing.assert_array_equal(scatter.run({"x": rows(1, 5.0), "write_indices": np.array([7])}, state=state)["total"], [56])


def test_reserve_keeps_what_it_is_told_to_keep(scatter):
    state = scatter.new_state(4)
    scatter.run({"x": rows(4, 3.0), "write_indices": np.array([0])}, state=state)
    state.reserve(4, keep=4)
    state.reserve(12, keep=2)
    assert state.capacity >= 12
    np.testing.assert_array_equal(state.read("past.0")[0, 1, :2, 3], [3, 3])
    scatter.run({"x": rows(1, 9.0), "write_indices": np.array([11])}, state=state)
    np.testing.assert_array_equal(state.read("past.0")[0, :, 11], np.full((2, 4), 9))


def test_two_states_of_one_session_do_not_touch_each_other(scatter):
    first, second = scatter.new_state(4), scatter.new_state(4)
    scatter.run({"x": rows(1, 1.0), "write_indices": np.array([0])}, state=first)
    scatter.run({"x": rows(1, 2.0), "write_indices": np.array([0])}, state=second)
    assert first.read("past.0")[0, 0, 0, 0] == 1
    assert second.read("past.0")[0, 0, 0, 0] == 2


@pytest.mark.parametrize("name", REAL)
def test_a_state_outside_the_exported_range_is_refused(name):
    with open_on(name, SCATTER) as session:
        for capacity in (0, -1, 65):
            with pytest.raises(InputError):
                session.new_state(capacity)


def test_an_unknown_state_name_is_refused(scatter):
    with pytest.raises(InputError):
        scatter.new_state(4).read("past.9")


def test_closing_twice_is_allowed_and_a_closed_session_does_not_run(add):
    add.close()
    add.close()
    with pytest.raises(BackendError, match="closed"):
        add.run({"x": X})


def test_a_closed_state_does_not_run(scatter):
    state = scatter.new_state(4)
    state.close()
    state.close()
    with pytest.raises((InputError, BackendError)):
        scatter.run({"x": rows(1, 1.0), "write_indices": np.array([0])}, state=state)


def test_runs_from_many_threads_are_serialised(add):
    wrong = []

    def work(value: float) -> None:
        for _ in range(50):
            got = add.run({"x": np.full((1, 3), value, np.float32)}, outputs=["twice"])
            if got["twice"].shape != (1, 3):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
