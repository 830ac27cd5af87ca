"""What a TensorRT session leaves behind when it is closed, or when something goes wrong: nothing, but one line."""

import gc

import numpy as np
import pytest

from edgegen.backends.trt.build import build_engine
from edgegen.backends.trt.flavours import FLAVOURS
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.backends.trt.session import TrtSession
from edgegen.errors import BackendError, InputError

from .conftest import at, decoder_files, image_files, step_all, tokens


def test_arrays_outlive_the_session_that_gave_them(machine, opened):
    simulation = machine()
    with opened(simulation, image_files()) as session:
        y = session.run({"x": np.ones((2, 3), np.float32)})["y"]
    assert simulation.cuda.leaks() == {"host": 1}  # what the array lies in
    np.testing.assert_array_equal(y, np.full((2, 3), 2))
    del y
    gc.collect()
    assert simulation.cuda.leaks() == {}


def use(simulation, session: TrtSession) -> None:
    step_all(session, 4)
    session.new_state(1)


@pytest.mark.parametrize("preset", ["10.16", "11.4", "rtx"])
def test_nothing_is_left_on_the_device_after_closing(machine, opened, preset):
    simulation = machine(preset)
    session = opened(simulation, decoder_files())
    use(simulation, session)
    session.close()
    session.close()
    assert simulation.cuda.leaks() == {}  # at once, not when Python tidies up


def test_nothing_is_left_when_any_allocation_fails(machine, opened):
    simulation = machine()
    files, flavour, options = decoder_files(), FLAVOURS["tensorrt"], BuildOptions()
    engine = build_engine(flavour, files, options)

    def whole() -> None:
        with TrtSession(engine, flavour, files, options) as session:
            use(simulation, session)

    whole()
    allocations = sum(simulation.cuda.calls.count(name) for name in ("cudaMalloc", "cudaHostAlloc"))
    assert allocations >= 10  # scratch, two states, and on both sides two inputs and logits; a value that is a shape
    for place in range(1, allocations + 1):
        simulation.cuda.fail_allocation = place
        with pytest.raises(BackendError, match=r"out of memory: .* were asked for, .* are free"):
            whole()
        gc.collect()
        assert simulation.cuda.leaks() == {}, f"allocation {place}"


def test_an_execution_that_fails_is_one_line_and_the_next_may_succeed(machine, opened):
    simulation = machine()
    with opened(simulation, image_files()) as session:
        feed = {"x": np.ones((2, 3), np.float32)}
        session.run(feed)
        simulation.faults.execute = True
        with pytest.raises(BackendError, match=r"^tensorrt 11.4.0.106, graphs/g.onnx failed: .*an injected failure\)$"):
            session.run(feed)
        simulation.faults.says = "another"
        with pytest.raises(BackendError, match=r"^tensorrt 11.4.0.106, graphs/g.onnx failed: [^;]*another\)$"):
            session.run(feed)
        simulation.faults.execute = False
        np.testing.assert_array_equal(session.run(feed)["y"], np.full((2, 3), 2))


def test_a_fault_of_the_device_is_named_as_cuda_names_it(machine, opened):
    simulation = machine()
    with opened(simulation, image_files()) as session:
        simulation.cuda.fault = simulation.cuda.module.cudaError_t.cudaErrorIllegalAddress
        with pytest.raises(BackendError, match="cudaStreamSynchronize failed: cudaErrorIllegalAddress"):
            session.run({"x": np.ones((2, 3), np.float32)})


def test_an_engine_that_cannot_be_deserialized_leaves_nothing(machine, opened):
    simulation = machine()
    simulation.faults.deserialize = True
    with pytest.raises(BackendError, match=r"cannot be deserialized: .*magicTag.*build it again"):
        opened(simulation, image_files())
    simulation.faults.deserialize = False
    simulation.faults.context = True
    with opened(simulation, image_files()) as session, pytest.raises(BackendError, match=r"out of memory.*free memory"):
        session.run({"x": np.ones((2, 3), np.float32)})
    gc.collect()
    assert simulation.cuda.leaks() == {}


@pytest.mark.parametrize(("built", "opened_on"), [("10.3", "11.4"), ("11.4", "10.3"), ("rtx", "11.4")])
def test_an_engine_of_another_version_is_refused(machine, built, opened_on):
    files, options = image_files(), BuildOptions()
    simulation = machine(built)
    engine = build_engine(FLAVOURS[simulation.backend], files, options)
    simulation = machine(opened_on)
    with pytest.raises(BackendError, match="build it again"):
        TrtSession(engine, FLAVOURS[simulation.backend], files, options)
    assert simulation.cuda.leaks() == {}


def test_tensorrt_rtx_is_asked_whether_an_engine_is_valid_here(machine):
    simulation = machine("rtx")
    with pytest.raises(BackendError, match=r"not valid on this machine \(diagnostics 32\)"):
        TrtSession(b"no engine" * 20, FLAVOURS["tensorrt-rtx"], image_files(), BuildOptions())
    assert simulation.cuda.leaks() == {}


def test_an_engine_of_another_graph_or_of_other_options_is_refused(machine):
    simulation = machine()
    files, flavour, options = decoder_files(), FLAVOURS["tensorrt"], BuildOptions()
    engine = build_engine(flavour, image_files(), options)
    with pytest.raises(BackendError, match=r"inputs .* differ from the manifest's"):
        TrtSession(engine, flavour, files, options)
    assert simulation.cuda.leaks() == {}


def test_two_sessions_hear_only_their_own_errors(machine, opened):
    simulation = machine()
    with opened(simulation, image_files()) as one, opened(simulation, decoder_files()) as other:
        feed = {"x": np.ones((2, 3), np.float32)}
        one.run(feed)
        simulation.faults.execute = True
        with pytest.raises(BackendError):
            one.run(feed)
        with pytest.raises(BackendError) as caught:
            other.run({"x": tokens(1), "write_indices": at(0)}, state=other.new_state(1))
        assert str(caught.value).count("injected") == 1


def test_a_device_that_is_not_there_is_refused(machine, opened):
    with pytest.raises(InputError, match="no GPU 3; this machine has 1"):
        opened(machine(), image_files(), device=3)
