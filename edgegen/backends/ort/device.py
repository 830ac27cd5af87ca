"""Memory of the device that a session runs on: state, and what a repeated run feeds and fetches, at addresses that stay.

The first run of a form (the shapes and names that go in and out) is bound like any other. From the second on its inputs have
device memory of their own, which is written in place, and its results go to memory that stays, too: nothing is allocated at a
decode step, and a CUDA graph finds every address where it was captured.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from edgegen.backends.ort.binding import Binding
from edgegen.manifest import StatePair
from edgegen.tensors import Tensor, Tensors, TensorSpec

_MOST_SLOTS = 4  # forms that keep memory: a decode step, a whole chunk of a prompt, and what is left of it
_MOST_SEEN = 64  # forms that are remembered
_GRAPH = "gpu_graph_id"  # ONNX Runtime's run option: one CUDA graph for each number; -1: none
_SKIP = "-1"

Form = tuple[Any, ...]


class Place(NamedTuple):
    """Where a session's tensors live. `name` is ONNX Runtime's for the kind of memory; `session` allocates for a plugin."""

    name: str
    number: int = 0
    session: Any = None

    def value(self, array: Tensor) -> Any:
        """A value in this memory with the content of `array`, which it does not keep."""
        shape, dtype = array.shape, array.dtype.type
        if self.session is not None and hasattr(self.session, "create_ortvalue_from_shape_and_type"):
            made = self.session.create_ortvalue_from_shape_and_type(shape, dtype, self.name, self.number)
        else:
            made = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self.name, self.number)
        made.update_inplace(array)
        return made


class Captures:
    """The CUDA graphs of one session: a number for each, and their end."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._numbers = itertools.count(1)

    def new(self) -> str:
        """A number that no graph of the session had."""
        return str(next(self._numbers))

    def release(self, number: str) -> None:
        """Let a graph go. Before onnxruntime 1.31 it lives as long as the session."""
        if hasattr(self._session, "release_captured_graph"):
            self._session.release_captured_graph(int(number))


class _Slot:
    """What a form that repeats has bound: inputs on the device, results in memory that stays."""

    def __init__(
        self, binding: "DeviceBinding", inputs: Tensors, results: Tensors, on_host: Set[str], captures: Captures | None
    ) -> None:
        self._io = binding.new_io()
        self._fed: dict[str, Any] = {}
        # A graph replays what the device does alone: a value that was read on the host would stay that of the capture.
        self._captures = captures if on_host.isdisjoint(inputs) else None
        self._options, self._number = ort.RunOptions(), self._captures.new() if self._captures else None
        if captures:
            self._options.add_run_config_entry(_GRAPH, self._number or _SKIP)
        for name, array in inputs.items():
            value = ort.OrtValue.ortvalue_from_numpy(array.copy()) if name in on_host else binding.place.value(array)
            self._fed[name] = value
            self._io.bind_ortvalue_input(name, value)
        self._results = {name: np.empty_like(array) for name, array in results.items()}
        self._fetched: dict[str, Any] = {}
        for name, array in self._results.items():
            if self._captures:  # a graph writes to the device alone
                self._fetched[name] = binding.place.value(array)
                self._io.bind_ortvalue_output(name, self._fetched[name])
            else:
                self._io.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def run(self, session: Any, inputs: Tensors) -> dict[str, Tensor]:
        for name, array in inputs.items():
            self._fed[name].update_inplace(array)  # which makes it contiguous, where it is not
        session.run_with_iobinding(self._io, self._options)
        for name, value in self._fetched.items():
            np.copyto(self._results[name], value.numpy())
        return self._results

    def close(self) -> None:
        if self._captures and self._number is not None:
            self._captures.release(self._number)


class DeviceBinding(Binding):
    """An IOBinding whose state, and whose repeated feeds and results, are in the memory of the device."""

    def __init__(self, session: Any, place: Place, specs: Mapping[str, TensorSpec], captures: Captures | None = None) -> None:
        super().__init__(session)
        self.place = place
        self._axes = {name: spec.axes for name, spec in specs.items()}
        self._captures = captures
        self._slots: collections.OrderedDict[Form, _Slot] = collections.OrderedDict()
        self._seen: collections.OrderedDict[Form, None] = collections.OrderedDict()
        self._on_host = frozenset() if place.name == "cpu" else _host_inputs(session)
        if captures:
            self._options = ort.RunOptions()
            self._options.add_run_config_entry(_GRAPH, _SKIP)

    def new_io(self) -> Any:
        """An IOBinding with the state bound."""
        io = self._session.io_binding()
        for pair, value in self._held.items():
            io.bind_ortvalue_input(pair.input, value)
            io.bind_ortvalue_output(pair.output, value)
        return io

    def hold(self, pair: StatePair, value: Any) -> None:
        """Bind one value as the past and as the present of `pair`, until it is replaced."""
        self.clear()
        super().hold(pair, value)

    def clear(self) -> None:
        """Let go of all that is kept for forms that repeat."""
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        self._seen.clear()

    def run(self, inputs: Tensors, names: tuple[str, ...], optional: Set[str]) -> dict[str, Tensor]:
        """Feed `inputs`, fetch `names`: see the protocol of a session."""
        form: Form = (names, *((name, array.dtype.char, array.shape) for name, array in inputs.items()))
        slot = self._slots.get(form)
        if slot is not None:
            self._slots.move_to_end(form)
            self._results = slot.run(self._session, inputs)
        else:
            self._results = self._run_anew(inputs, names, optional)
            if optional.isdisjoint(inputs) and self._is_fixed(inputs, names):
                self._remember(form, inputs)
        self._fed, self._names = dict(inputs), names
        return self._results

    def _remember(self, form: Form, inputs: Tensors) -> None:
        if form not in self._seen:
            self._seen[form] = None
            if len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
            return
        if len(self._slots) >= _MOST_SLOTS:
            self._slots.popitem(last=False)[1].close()
        self._slots[form] = _Slot(self, inputs, self._results, self._on_host, self._captures)

    def _is_fixed(self, inputs: Tensors, names: Sequence[str]) -> bool:
        """Whether the same shapes in give the same shapes out: in a graph with state, or where every axis is an input's."""
        known = {axis for name in inputs for axis in self._axes[name]}
        return bool(self._held) or all(isinstance(axis, int) or axis in known for name in names for axis in self._axes[name])

    def value(self, array: Tensor) -> Any:
        """A value in the memory of the device with the content of `array`."""
        return self.place.value(array)


def _host_inputs(session: Any) -> frozenset[str]:
    """The inputs that the graph reads on the host, as ONNX Runtime (from 1.24 or so) tells."""
    if not hasattr(session, "get_input_memory_infos"):
        return frozenset()
    nodes = session.get_inputs()
    return frozenset(
        node.name for node, memory in zip(nodes, session.get_input_memory_infos(), strict=True) if memory.name == "Cpu"
    )
