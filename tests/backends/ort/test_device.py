"""Memory of a device, with the CPU as the device: the same code binds what lies on a GPU."""

import types

import numpy as np
import onnxruntime as ort
import pytest
from backends.test_session import ADD, AXES, SCATTER, onnx_add, onnx_scatter, rows

from edgegen.backends.ort.device import Captures, DeviceBinding, Place, _host_inputs
from edgegen.backends.ort.session import OrtSession
from edgegen.backends.ort.state import Shelf
from edgegen.errors import InputError


@pytest.fixture
def scatter():
    with OrtSession(onnx_scatter(), {}, SCATTER, AXES, threads=1, resident=True) as session:
        yield session


@pytest.fixture
def add():
    with OrtSession(onnx_add(), {}, ADD, AXES, threads=1, resident=True) as session:
        yield session


def feed(value: float, start: int, count: int = 1) -> dict[str, np.ndarray]:
    return {"x": rows(count, value), "write_indices": np.array([start])}


def slots(state) -> list:
    return list(state.binding._slots.values())


def test_a_step_that_repeats_writes_its_results_to_the_same_memory(scatter):
    state = scatter.new_state(16)
    found = [scatter.run(feed(float(step), step), state=state)["total"] for step in range(5)]
    assert len(slots(state)) == 1
    assert found[2] is found[3] is found[4]  # from the third run on nothing is allocated
    np.testing.assert_array_equal(state.read("past.0")[0, 0, :5, 0], np.arange(5))


def test_steps_and_prompts_keep_memory_of_their_own(scatter):
    state = scatter.new_state(32)
    for start in (0, 4, 8):
        scatter.run(feed(1.0, start, 4), state=state)
    totals = [scatter.run(feed(1.0, start), state=state)["total"][0] for start in (12, 13, 14)]
    assert len(slots(state)) == 2
    assert totals == [8 * 13, 8 * 14, 8 * 15]


def test_forms_beyond_the_most_let_the_oldest_go(scatter):
    state = scatter.new_state(64)
    for count in (1, 2, 3, 4, 5, 6):
        for _ in range(2):
            scatter.run(feed(1.0, 0, count), state=state)
    assert len(slots(state)) == 4


def test_an_input_that_is_not_contiguous_is_copied_rightly_into_memory_that_stays(add):
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    for step in range(4):
        np.testing.assert_array_equal(add.run({"x": wide[:, ::2] + step})["twice"], 2 * (wide[:, ::2] + step))
        np.testing.assert_array_equal(add.run({"x": (wide + step)[:, ::2]})["y"], (wide + step)[:, ::2])


def test_a_default_that_is_fed_now_and_then_is_seen_every_time(add):
    x = np.ones((1, 3), np.float32)
    for scale in (3, 5, 7):
        np.testing.assert_array_equal(add.run({"x": x})["y"], x)
        np.testing.assert_array_equal(add.run({"x": x, "scale": np.array(scale, np.float32)})["y"], scale * x)


def test_state_that_grows_keeps_what_it_held_and_forgets_old_addresses(scatter):
    state = scatter.new_state(4)
    for step in range(3):
        scatter.run(feed(2.0, step), state=state)
    state.reserve(12, keep=3)
    assert slots(state) == []
    for step in range(3, 7):
        scatter.run(feed(3.0, step), state=state)
    np.testing.assert_array_equal(state.read("past.1")[0, 1, :8, 2], [2, 2, 2, 3, 3, 3, 3, 0])


def test_what_is_read_is_a_copy(scatter):
    state = scatter.new_state(4)
    before = state.read("past.0")
    scatter.run(feed(9.0, 0), state=state)
    assert not before.any()


def test_a_graph_built_for_one_length_gives_every_state_that_length(monkeypatch):
    from edgegen.backends.ort import providers

    fixed = providers.PROVIDERS["cpu"]._replace(fixed_state=True)
    monkeypatch.setitem(providers.PROVIDERS, "cpu", fixed)
    with OrtSession(onnx_scatter(), {}, SCATTER, AXES, threads=1, cache_length=20, resident=True) as session:
        state = session.new_state(4)
        assert state.capacity == 20
        scatter_shape = state.read("past.0").shape
        assert scatter_shape == (1, 2, 20, 4)
        with pytest.raises(InputError, match="built for 20"):
            session.new_state(21)
    with pytest.raises(InputError, match="cache_length is 65"):
        OrtSession(onnx_scatter(), {}, SCATTER, AXES, threads=1, cache_length=65)


def test_memory_that_was_captured_is_used_again_and_is_zero_again(scatter):
    scatter._shelf = Shelf()
    state = scatter.new_state(16)
    for step in range(3):
        scatter.run(feed(7.0, step), state=state)
    binding, first = state.binding, slots(state)
    state.close()
    smaller = scatter.new_state(8)
    assert (smaller.binding, smaller.capacity) == (binding, 16)
    assert slots(smaller) == first  # with what was captured
    assert not smaller.read("past.0").any()
    scatter.run(feed(1.0, 0), state=smaller)
    np.testing.assert_array_equal(smaller.read("past.1")[0, 0, :3, 0], [1, 0, 0])
    assert scatter.new_state(32).binding is not binding
    with pytest.raises(InputError):
        scatter.run(feed(1.0, 0), state=state)


class Recorder:
    """A native session that remembers the graph number of every run and what was released."""

    def __init__(self, native, memory="Cuda"):
        self.native, self.runs, self.released, self.memory = native, [], [], memory

    def io_binding(self):
        return self.native.io_binding()

    def get_inputs(self):
        return self.native.get_inputs()

    def get_input_memory_infos(self):
        return [types.SimpleNamespace(name=self.memory) for _ in self.native.get_inputs()]

    def run_with_iobinding(self, io, options=None):
        self.runs.append(options.get_run_config_entry("gpu_graph_id"))
        self.native.run_with_iobinding(io, options)

    def release_captured_graph(self, number):
        self.released.append(number)


def test_only_runs_that_repeat_are_captured_each_form_under_its_number_and_given_back():
    recorder = Recorder(ort.InferenceSession(onnx_add(), providers=["CPUExecutionProvider"]))
    specs = {spec.name: spec for spec in (*ADD.inputs, *ADD.outputs)}
    binding = DeviceBinding(recorder, Place("cpu"), specs, Captures(recorder))
    small, large = np.ones((1, 3), np.float32), np.ones((4, 3), np.float32)
    for x in (small, small, small, large, large, large, small):
        got = binding.run({"x": x}, ("twice",), {"scale"})
        np.testing.assert_array_equal(got["twice"], 2 * x)
    assert recorder.runs == ["-1", "-1", "1", "-1", "-1", "2", "1"]
    binding.clear()
    assert sorted(recorder.released) == [1, 2]


def test_a_run_that_reads_a_value_on_the_host_is_not_captured():
    """A replay would go on with the value that was there when it was captured, and say nothing."""
    recorder = Recorder(ort.InferenceSession(onnx_add(), providers=["CPUExecutionProvider"]), memory="Cpu")
    specs = {spec.name: spec for spec in (*ADD.inputs, *ADD.outputs)}
    binding = DeviceBinding(recorder, Place("cpu"), specs, Captures(recorder))
    binding._on_host = _host_inputs(recorder)  # as on a device: there some are, and here all would be
    for value in range(5):
        x = np.full((1, 3), value, np.float32)
        np.testing.assert_array_equal(binding.run({"x": x}, ("twice",), {"scale"})["twice"], 2 * x)
    assert binding._slots  # they repeat all the same
    assert set(recorder.runs) == {"-1"}


def test_inputs_that_the_graph_reads_on_the_host_stay_there():
    session = types.SimpleNamespace(
        get_inputs=lambda: [types.SimpleNamespace(name=name) for name in ("ids", "length")],
        get_input_memory_infos=lambda: [types.SimpleNamespace(name=name) for name in ("Cuda", "Cpu")],
    )
    assert _host_inputs(session) == {"length"}
    assert _host_inputs(types.SimpleNamespace()) == frozenset()  # an onnxruntime that does not tell


def test_a_whole_decoder_is_the_same_in_memory_of_its_own(tiny_bundle):
    from edgegen.bundle import Bundle
    from edgegen.kv_cache import KVCache

    texts = []
    with Bundle.open(tiny_bundle) as bundle:
        files = bundle.graph("decoder", "canonical")
        for resident in (False, True):
            with OrtSession(files.model, files.weights, files.variant, files.axes, threads=1, resident=resident) as session:
                cache = KVCache(session, 64, 8)
                logits = [cache.append([1, 3, 5]).copy(), *(cache.append([token]).copy() for token in (4, 6, 8, 2))]
                texts.append((np.stack(logits), cache.append_all([3, 4]).copy()))
    np.testing.assert_array_equal(texts[0][0], texts[1][0])
    np.testing.assert_array_equal(texts[0][1], texts[1][1])
