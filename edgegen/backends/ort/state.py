"""State of a graph in ONNX Runtime: each tensor is bound as its past and as its present, so a run updates it in place."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgegen.backends.ort.binding import Binding
from edgegen.errors import BackendError, InputError
from edgegen.manifest import StatePair
from edgegen.tensors import Axis, Tensor, TensorSpec

_ALIGNMENT = 64  # bytes: a cache line, and the width of an AVX-512 register


class Shelf:
    """The memory of the state that was closed last, for the next one: what was captured at its addresses stays of use.

    Without it every conversation would capture its decode step anew, and older versions of onnxruntime keep each CUDA graph
    until the session ends.
    """

    def __init__(self) -> None:
        self._kept: tuple[Binding, dict[str, Any], int] | None = None

    def put(self, binding: Binding, values: dict[str, Any], capacity: int) -> None:
        """Keep this memory, in place of what was kept before."""
        self.clear()
        self._kept = binding, values, capacity

    def take(self, capacity: int) -> tuple[Binding, dict[str, Any], int] | None:
        """What is kept, with what was in it, if it has room for `capacity` entries."""
        if self._kept is None or not 1 <= capacity <= self._kept[2]:
            return None
        kept, self._kept = self._kept, None
        return kept

    def clear(self) -> None:
        """Free what is kept."""
        if self._kept is not None:
            self._kept[0].clear()
        self._kept = None


class OrtState:
    """State in the memory of the session's device: each tensor is bound as its past and as its present.

    `fixed` is the only length that the graph takes, where it was built for one: then every state has it. With a `shelf`, memory
    comes from it and goes back to it.
    """

    def __init__(
        self,
        binding: Binding,
        pairs: Mapping[StatePair, TensorSpec],
        axes: Mapping[str, Axis],
        capacity: int,
        fixed: int | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.binding: Binding | None = binding
        self._pairs, self._axes, self._fixed, self._shelf = pairs, axes, fixed, shelf
        self._values: dict[str, Any] = {}
        self._capacity = 0
        kept = shelf.take(capacity) if shelf is not None else None
        if kept is None:
            self._grow(capacity, 0)
        else:
            self.binding, self._values, self._capacity = kept
            for pair, spec in pairs.items():
                value = self._values[pair.input]
                value.update_inplace(_zeros(spec, tuple(value.shape())))

    @property
    def capacity(self) -> int:
        """The present length of the growing axis; 0 once closed."""
        return self._capacity

    def reserve(self, capacity: int, keep: int) -> None:
        """Make the growing axis at least `capacity` long and keep the first `keep` entries: see the protocol."""
        if not 0 <= keep <= self._capacity:
            raise InputError(f"{keep} entries of a state of {self._capacity} were to be kept")
        if capacity > self._capacity:
            self._grow(capacity, keep)

    def read(self, name: str) -> Tensor:
        """A copy of the state tensor with that input name."""
        if name not in self._values:
            raise InputError(f"no state named {name!r}; there are {sorted(self._values)}")
        copied: Tensor = self._values[name].numpy().copy()  # on the host, `numpy` looks at the value itself
        return copied

    def close(self) -> None:
        """Free the memory."""
        if self.binding is not None and self._shelf is not None:
            self._shelf.put(self.binding, self._values, self._capacity)
        elif self.binding is not None:
            self.binding.clear()
        self.binding, self._values = None, {}
        self._capacity = 0

    def _grow(self, capacity: int, keep: int) -> None:
        if self.binding is None:
            raise BackendError("the state is closed; make another with new_state()")
        if self._fixed is not None:
            if capacity > self._fixed:
                raise InputError(f"a state of {capacity} entries was asked for; this session was built for {self._fixed}")
            capacity = self._fixed if capacity > 0 else capacity
        for pair, spec in self._pairs.items():  # one by one, so that old and new exist side by side for one tensor only
            grown = _zeros(spec, _state_shape(spec, pair, self._axes, capacity))
            if keep:
                kept = (slice(None),) * pair.axis + (slice(keep),)
                grown[kept] = self._values[pair.input].numpy()[kept]
            self._values[pair.input] = self.binding.value(grown)
            self.binding.hold(pair, self._values[pair.input])
        self._capacity = capacity


def _state_shape(spec: TensorSpec, pair: StatePair, axes: Mapping[str, Axis], capacity: int) -> tuple[int, ...]:
    """The shape of a state tensor: `capacity` on the growing axis; other named axes have their `opt` size, 1 if unbounded."""
    growing = axes.get(str(spec.axes[pair.axis]))
    if capacity < 1 or (growing is not None and capacity > growing.max):
        most = "" if growing is None else f", at most {growing.max}"
        raise InputError(f"a state of {capacity} entries was asked for; {spec} has at least 1{most}")
    sizes = [axis if isinstance(axis, int) else axes[axis].opt if axis in axes else 1 for axis in spec.axes]
    sizes[pair.axis] = capacity
    return tuple(sizes)


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Tensor:
    """An aligned array of zeros, whose pages the system commits only when they are written."""
    size_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
    try:
        raw = np.zeros(size_bytes + _ALIGNMENT, np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: more than can be addressed
        raise BackendError(f"no memory for {size_bytes} bytes of state {spec.name!r}; ask for a shorter context") from error
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size_bytes].view(spec.dtype).reshape(shape)
