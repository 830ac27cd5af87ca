"""What a TensorRT session does beyond the common contract: profiles, aliases, recorded runs, and nothing left behind."""

import gc
import logging

import numpy as np
import pytest
from onnx import helper

from edgegen.backends.trt.engine import RunOptions
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.errors import BackendError, InputError
from edgegen.manifest import StatePair
from edgegen.tensors import Axis, TensorSpec

from .conftest import LONGEST, at, decoder_files, expected, graph_files, image_files, step_all, tokens


@pytest.mark.parametrize("preset", ["10.16", "11.4", "rtx"])
@pytest.mark.parametrize("graphs", [True, False])
def test_recorded_steps_give_what_plain_ones_give(machine, opened, preset, graphs):
    with opened(machine(preset), decoder_files(), run=RunOptions(cuda_graphs=graphs)) as session:
        np.testing.assert_array_equal(step_all(session, 8), expected(8))


def test_a_step_is_recorded_once_it_has_come_twice_and_launched_from_then_on(machine, opened):
    simulation = machine()
    with opened(simulation, decoder_files()) as session:
        step_all(session, 8)
        assert session.counts == {"plain": 3, "recorded": 1, "replayed": 6}  # the prompt, two steps; six launches
        assert session.details["cuda graphs"] == "on"
    last = simulation.cuda.journal[simulation.cuda.journal.index("GraphLaunch") :]
    assert last[:5] == ["GraphLaunch", "HostToDevice", "HostToDevice", "Execute", "DeviceToHost"]
    assert last.count("Execute") == last.count("GraphLaunch") == 6


def test_a_recorded_step_is_not_launched_for_other_shapes_outputs_or_memory(machine, opened):
    with opened(machine(), decoder_files()) as session:
        first, second = session.new_state(4), session.new_state(4)
        one = {"x": tokens(1), "write_indices": at(0)}
        for _ in range(3):
            session.run(one, state=first)
        assert session.counts["replayed"] == 1
        session.run(one, state=second)
        session.run(one, state=first, outputs=["present"])
        session.run(one | {"x": tokens(2)}, state=first)
        assert session.counts["replayed"] == 1
        np.testing.assert_array_equal(session.run(one, state=first)["logits"], tokens(1, 3.0))  # 1 at 0, 1 left at 1; and x
        assert session.counts["replayed"] == 2


def test_tensorrt_rtx_records_by_itself(machine, opened):
    simulation = machine("rtx")
    with opened(simulation, decoder_files()) as session:
        step_all(session, 5)
        assert session.details["cuda graphs"] == "by the library"
        assert session._engine._config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        assert session.counts["recorded"] == 0
    assert "cudaStreamBeginCapture" not in simulation.cuda.calls


def test_a_library_that_cannot_be_recorded_runs_plainly_and_says_so(machine, opened, caplog):
    simulation = machine()
    simulation.cuda.fail_capture = True
    with caplog.at_level(logging.INFO, "edgegen"), opened(simulation, decoder_files()) as session:
        np.testing.assert_array_equal(step_all(session, 5), expected(5))
        assert session.counts["recorded"] == 0
        assert session.details["cuda graphs"].startswith("off: cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated")
    assert "runs without CUDA graphs" in caplog.text


def test_a_value_that_is_a_shape_makes_another_run(machine, opened):
    with opened(machine(), decoder_files()) as session:
        state = session.new_state(1)
        feed = {"x": tokens(3), "write_indices": at(0)}
        for kept in (1, 1, 1, 2, 2, 2, 1):
            logits = session.run(feed | {"logits_to_keep": np.array(kept)}, state=state)["logits"]
            assert logits.shape == (1, 1, kept, 4)
        assert session.counts == {"plain": 4, "recorded": 2, "replayed": 3}


def test_a_recorded_run_is_void_when_its_memory_was_replaced(machine, opened):
    x, y = (TensorSpec(name, "float32", ("row", 3)) for name in "xy")
    files = graph_files([helper.make_node("Add", ["x", "x"], ["y"])], [x], [y], {"row": Axis(1, 1, 4096)})
    with opened(machine(), files) as session:
        for rows in (1, 1, 1, 4096, 1, 1, 1):  # 48 KiB do not fit where one row did
            feed = np.full((rows, 3), rows, np.float32)
            np.testing.assert_array_equal(session.run({"x": feed})["y"], 2 * feed)
        assert session.counts == {"plain": 5, "recorded": 2, "replayed": 2}


def test_a_recorded_run_has_its_context_to_itself_as_long_as_it_is_kept(machine, opened):
    """The library leaves open what a graph does when its context was told other shapes or addresses since."""
    x, y = (TensorSpec(name, "float32", ("row", 3)) for name in "xy")
    files = graph_files([helper.make_node("Add", ["x", "x"], ["y"])], [x], [y], {"row": Axis(1, 1, 16)})
    with opened(machine(), files) as session:
        for rows in (1, 1, 2, 1, 2, 3, 2, 1, 3, 1, 4, 4, 5, 5, 6, 6, 1):
            feed = np.full((rows, 3), rows, np.float32)
            np.testing.assert_array_equal(session.run({"x": feed})["y"], 2 * feed)
        assert session.counts["recorded"] == 6
        # Five at most: four graphs have one each, and plain runs have one; the context of a graph that was let go serves on.
        assert session._engine._native.contexts == 5


def test_a_recorded_run_makes_room_where_there_is_no_memory_for_another_context(machine, opened):
    x, y = (TensorSpec(name, "float32", ("row", 3)) for name in "xy")
    files = graph_files([helper.make_node("Add", ["x", "x"], ["y"])], [x], [y], {"row": Axis(1, 1, 16)})
    simulation = machine()
    with opened(simulation, files) as session:
        for rows in (1, 1, 1, 2, 2, 2, 1, 1, 1):
            simulation.faults.context = session.counts["recorded"] > 0
            feed = np.full((rows, 3), rows, np.float32)
            np.testing.assert_array_equal(session.run({"x": feed})["y"], 2 * feed)
        assert session._engine._native.contexts == 1
        assert session.counts == {"plain": 5, "recorded": 3, "replayed": 4}


@pytest.mark.parametrize("capturable", [True, False])
def test_a_library_that_can_tell_is_asked_before_it_is_recorded(machine, opened, monkeypatch, capturable):
    simulation = machine("rtx")
    monkeypatch.delattr(simulation.trt.IRuntimeConfig, "cuda_graph_strategy")  # as if it recorded nothing by itself
    monkeypatch.setattr(simulation.trt.IExecutionContext, "is_stream_capturable", lambda context, stream: capturable)
    with opened(simulation, decoder_files()) as session:
        np.testing.assert_array_equal(step_all(session, 5), expected(5))
        assert session.counts["recorded"] == int(capturable)
        assert session.details["cuda graphs"] == ("on" if capturable else "off: the library cannot be recorded for this graph")


def test_without_cuda_graphs_every_run_is_queued_piece_by_piece(machine, opened):
    for preset in ("11.4", "rtx"):
        simulation = machine(preset)
        with opened(simulation, decoder_files(), run=RunOptions(cuda_graphs=False)) as session:
            step_all(session, 5)
            assert session.counts == {"plain": 6, "recorded": 0, "replayed": 0}
            assert session.details["cuda graphs"] == "off"
            if preset == "rtx":
                assert session._engine._config.cuda_graph_strategy.name == "DISABLED"


def test_a_graph_of_fixed_shape_is_recorded_too(machine, opened):
    with opened(machine(), image_files()) as session:
        for value in range(5):
            x = np.full((2, 3), value, np.float32)
            np.testing.assert_array_equal(session.run({"x": x})["y"], x + x)
        assert session.counts == {"plain": 2, "recorded": 1, "replayed": 3}


def test_the_cache_is_written_in_place(machine, opened):
    simulation = machine()
    with opened(simulation, decoder_files()) as session:
        before = simulation.cuda.in_use("device")
        state = session.new_state(1)
        assert simulation.cuda.in_use("device") == before + 1  # one piece of memory for past and present
        assert state.capacity == LONGEST
        assert session.details["state"] == "in place"
        session.run({"x": tokens(2, 5.0), "write_indices": at(3)}, state=state)
        np.testing.assert_array_equal(state.read("past")[0, 0, :, 0], [0, 0, 0, 5, 5, *[0] * 11])


def test_an_engine_that_writes_no_state_in_place_has_two_copies_that_change_places(machine, opened):
    inputs = [TensorSpec("x", "float32", (4,)), TensorSpec("past", "float32", (4,))]
    outputs = [TensorSpec("present", "float32", (4,)), TensorSpec("y", "float32", (4,))]
    nodes = [helper.make_node("Add", ["past", "x"], ["present"]), helper.make_node("Identity", ["past"], ["y"])]
    files = graph_files(nodes, inputs, outputs, state=(StatePair("past", "present", 0),))
    simulation = machine("10.3")
    with opened(simulation, files) as session:
        before, state = simulation.cuda.in_use("device"), session.new_state(4)
        assert simulation.cuda.in_use("device") == before + 2
        assert session.details["state"] == "two copies that change places"
        for count in range(9):
            np.testing.assert_array_equal(session.run({"x": np.ones(4, np.float32)}, state=state)["y"], np.full(4, count))
        np.testing.assert_array_equal(state.read("past"), np.full(4, 9))
        assert session.counts["recorded"] == 2  # one for each direction
        assert session.counts["replayed"] == 5


def test_the_first_profile_that_fits_is_taken(machine, opened):
    with opened(machine(), decoder_files(), BuildOptions(prefill=4)) as session:
        state = session.new_state(LONGEST)
        session.run({"x": tokens(1), "write_indices": at(0)}, state=state)
        assert list(session._runners) == [0]
        logits = session.run({"x": tokens(4), "write_indices": at(0), "logits_to_keep": np.array(3)}, state=state)["logits"]
        assert list(session._runners) == [0, 1]
        assert logits.shape == (1, 1, 3, 4)
        with pytest.raises(InputError, match=r"sequence.*exported for 1 to 4"):
            session.run({"x": tokens(5), "write_indices": at(0)}, state=state)
        with pytest.raises(InputError, match=r"not built for sequence 4, logits_to_keep 9; it is for decode \(one shape\)"):
            session.run({"x": tokens(4), "write_indices": at(0), "logits_to_keep": np.array(9)}, state=state)


def test_a_cache_may_be_shorter_than_what_was_exported(machine, opened):
    with opened(machine(), decoder_files(), BuildOptions(cache_length=8)) as session:
        assert session.new_state(1).capacity == 8
        with pytest.raises(InputError, match="at most 8"):
            session.new_state(9)
        with pytest.raises(InputError, match="longer cache"):
            session.new_state(8).reserve(9, 0)


def test_a_state_of_another_session_is_refused(machine, opened):
    simulation = machine()
    with opened(simulation, decoder_files()) as one, opened(simulation, decoder_files()) as other:
        state = other.new_state(1)
        with pytest.raises(InputError, match="of this session"):
            one.run({"x": tokens(1), "write_indices": at(0)}, state=state)


def test_outputs_whose_shape_depends_on_the_data_come_back_whole(machine, opened):
    nodes = [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Add", ["x", "x"], ["y"])]
    inputs = [TensorSpec("x", "float32", ("row",))]
    outputs = [TensorSpec("places", "int64", (1, "found")), TensorSpec("y", "float32", ("row",))]
    files = graph_files(nodes, inputs, outputs, {"row": Axis(1, 4, 8), "found": Axis(0, 1, 8)})
    for preset in ("10.3", "rtx"):
        simulation = machine(preset)
        with opened(simulation, files) as session:
            for x in ([0, 1, 0, 2], [1, 1, 1, 1, 1, 0], [0, 0]):
                out = session.run({"x": np.array(x, np.float32)})
                np.testing.assert_array_equal(out["places"], np.array(x).nonzero())
            for _ in range(4):
                out = session.run({"x": np.ones(3, np.float32)}, outputs=["places"])
                np.testing.assert_array_equal(out["places"], [[0, 1, 2]])
            assert session.counts["recorded"] == 0
        del out
        gc.collect()
        assert simulation.cuda.leaks() == {}


def test_no_memory_for_such_an_output_is_said(machine, opened):
    files = graph_files(
        [helper.make_node("NonZero", ["x"], ["places"])],
        [TensorSpec("x", "float32", (4,))],
        [TensorSpec("places", "int64", (1, "found"))],
        {"found": Axis(0, 1, 4)},
    )
    simulation = machine()
    with opened(simulation, files) as session:
        session.run({"x": np.zeros(4, np.float32)}, outputs=[])
        simulation.cuda.fail_allocation = 1
        with pytest.raises(BackendError, match="out of memory: 32 bytes on the GPU for output 'places' were asked for"):
            session.run({"x": np.ones(4, np.float32)})


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "int8", "uint8", "bool"])
def test_every_dtype_and_a_tensor_without_axes_pass_through(machine, opened, dtype):
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("a", "b")]
    inputs = [TensorSpec("a", dtype, (3,)), TensorSpec("b", "float32", ())]
    outputs = [TensorSpec("a_out", dtype, (3,)), TensorSpec("b_out", "float32", ())]
    with opened(machine(), graph_files(nodes, inputs, outputs)) as session:
        a, b = np.array([0, 1, 2]).astype(dtype), np.array(7, np.float32)
        out = session.run({"a": a, "b": b})
        np.testing.assert_array_equal(out["a_out"], a)
        assert out["a_out"].dtype == a.dtype
        assert out["b_out"].shape == ()
        assert out["b_out"] == 7


def test_runtime_options_of_rtx_are_set_and_told(machine, opened, tmp_path):
    simulation, cache = machine("rtx"), tmp_path / "kernels"
    for state in ("cold", "hot"):
        with opened(simulation, image_files(), run=RunOptions(specialization="eager", runtime_cache=cache)) as session:
            assert session.details["runtime cache"] == state
            assert session.details["kernel specialization"] == "eager"
            assert session.details["library"] == "tensorrt-rtx 1.7.1.116"
            assert "SM 89" in session.details["gpu"]
    assert cache.stat().st_mode & 0o777 == 0o600
    cache.write_bytes(b"of another version")
    with opened(simulation, image_files(), run=RunOptions(runtime_cache=cache)) as session:
        assert session.details["runtime cache"] == "cold"
    with pytest.raises(InputError, match="no kernel specialization 'fast'; there are lazy, eager, none"):
        opened(simulation, image_files(), run=RunOptions(specialization="fast"))
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["kernels"]
    assert simulation.cuda.leaks() == {}


def test_a_runtime_cache_that_cannot_be_written_is_no_error(machine, opened, tmp_path):
    with opened(machine("rtx"), image_files(), run=RunOptions(runtime_cache=tmp_path / "none" / "kernels")) as session:
        session.run({"x": np.ones((2, 3), np.float32)})
    assert list(tmp_path.iterdir()) == []
