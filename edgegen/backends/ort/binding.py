"""What ONNX Runtime's IOBinding is told before a run: state once, a repeated feed once, everything else each time."""

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgegen.manifest import StatePair
from edgegen.tensors import Tensor, Tensors


class Binding:
    """An IOBinding that is kept between runs: state stays bound, only what a run feeds and fetches is bound anew."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._io = session.io_binding()
        self._held: dict[StatePair, Any] = {}
        self._kept: set[str] = set()  # the outputs that are held
        self._order: dict[str, int] = {}  # of the bound outputs: the place that ONNX Runtime gives each
        self._fed: dict[str, Tensor] = {}  # of the last run
        self._names: tuple[str, ...] = ()
        self._results: dict[str, Tensor] = {}
        self._settled = False  # the last run's arrays are bound, and its results are written in place
        self._options: Any = None  # of every run

    def value(self, array: Tensor) -> Any:
        """A value for `hold` with the content of `array`, in the memory of the device: here it is the array itself."""
        return ort.OrtValue.ortvalue_from_numpy(array)

    def clear(self) -> None:
        """Let go of what is kept beside the state."""

    def hold(self, pair: StatePair, value: Any) -> None:
        """Bind one value as the past and as the present of `pair`, until it is replaced."""
        self._held[pair] = value
        self._kept.add(pair.output)
        self._io.bind_ortvalue_input(pair.input, value)
        self._io.bind_ortvalue_output(pair.output, value)
        self._order.setdefault(pair.output, len(self._order))

    def repeats(self, inputs: Tensors, names: tuple[str, ...]) -> bool:
        """Whether a run has the very arrays of the last one, with new content: the decode step. It needs no second check."""
        fed = self._fed
        if names != self._names or not fed or len(inputs) != len(fed):
            return False
        return all(fed.get(name) is array and array.flags.c_contiguous for name, array in inputs.items())

    def run(self, inputs: Tensors, names: tuple[str, ...], optional: Set[str]) -> dict[str, Tensor]:
        """Feed `inputs`, fetch `names`: see the protocol of a session."""
        if self.repeats(inputs, names) and optional.isdisjoint(inputs) and self._held:
            if not self._settled:
                self._settle()
            self._session.run_with_iobinding(self._io, self._options)
            return self._results
        self._settled = False
        self._results = self._run_anew(inputs, names, optional)
        self._fed, self._names = dict(inputs), names
        return self._results

    def _settle(self) -> None:
        """Bind the last run's arrays, and memory for its results, until others come: nothing is bound at each step then."""
        for name, array in self._fed.items():
            self._io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        # A graph with state gives the same shapes for the same shapes: what it gave is what it will give.
        self._results = {name: np.empty_like(self._results[name]) for name in self._names}
        for name, array in self._results.items():
            self._io.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        self._settled = True

    def _run_anew(self, inputs: Tensors, names: Sequence[str], optional: Set[str]) -> dict[str, Tensor]:
        """Bind and run. An IOBinding cannot feed an input that has a default: those take a slower way."""
        if self._order.keys() - self._kept - set(names):  # bound, but wanted no more: it would still be kept
            self._io.clear_binding_outputs()
            self._order = {}
            for pair, value in self._held.items():
                self.hold(pair, value)
        for name in names:
            if name not in self._kept:
                # Anew for each run: a binding keeps its last result, and would write the next one over it.
                self._io.bind_output(name)
                self._order.setdefault(name, len(self._order))
        arrays = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        if optional.isdisjoint(arrays):
            for name, array in arrays.items():
                self._io.bind_cpu_input(name, array)
            self._session.run_with_iobinding(self._io, self._options)
        else:
            self._run_vectors(arrays)
        values = self._io.get_outputs_as_ortvaluevector()
        return {name: values[self._order[name]].numpy() for name in names}

    def _run_vectors(self, inputs: Tensors) -> None:
        """Run with `inputs`, among them some with a default, into the outputs that are bound."""
        feeds = {pair.input: value for pair, value in self._held.items()}
        feeds |= {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        vector = native.OrtValueVector()
        for value in feeds.values():
            vector.push_back(value._get_c_value())
        cpu = ort.OrtDevice.make("cpu", 0)._get_c_device()
        outputs = self._io.get_outputs_as_ortvaluevector()
        self._session.run_with_ortvaluevector(
            self._options or ort.RunOptions(), list(feeds), vector, list(self._order), outputs, [cpu] * len(outputs)
        )
