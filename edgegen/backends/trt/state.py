"""A language model's cache on the device: written in place where the engine can, else from one copy to another."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from edgegen.backends.trt.cuda import Cuda, DeviceMemory, Stream
from edgegen.errors import BackendError, InputError
from edgegen.manifest import StatePair
from edgegen.tensors import Tensor, TensorSpec


class TrtState:
    """State in device memory (see `backends.base.State`). Its capacity is the cache length that the engine was built for.

    Where the engine writes an output over its input, both are bound to one piece of memory. An engine that does not, of an
    older TensorRT, has two pieces that change places after every run.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Stream,
        pairs: Mapping[StatePair, TensorSpec],
        shapes: Mapping[str, tuple[int, ...]],
        aliased: Callable[[StatePair], bool],
        lock: AbstractContextManager[Any],
    ) -> None:
        """Allocate and clear. `shapes` are those of the inputs, by name; `lock` is the session's: its stream is used here."""
        self._lock = lock
        self._cuda, self._stream, self._pairs, self.shapes = cuda, stream, pairs, shapes
        self._memory: dict[str, DeviceMemory] = {}
        self._capacity = 0
        try:
            for pair, spec in pairs.items():
                self._memory[pair.input] = self._cleared(pair.input, spec)
                self._memory[pair.output] = self._memory[pair.input] if aliased(pair) else self._cleared(pair.input, spec)
            stream.wait()
        except BaseException:
            self.close()
            raise
        self._capacity = min(shapes[pair.input][pair.axis] for pair in pairs)

    @property
    def capacity(self) -> int:
        """The length of the growing axis; 0 once closed."""
        return self._capacity

    @property
    def is_open(self) -> bool:
        """Whether its memory is still there."""
        return bool(self._memory)

    @property
    def device_bytes(self) -> int:
        """Device memory in use."""
        return sum(memory.size_bytes for memory in {id(memory): memory for memory in self._memory.values()}.values())

    def addresses(self) -> dict[str, int]:
        """Where the next run finds each past, and puts each present."""
        return {name: memory.address for name, memory in self._memory.items()}

    def advance(self) -> None:
        """A run is over: what it wrote is what the next one reads."""
        for pair in self._pairs:
            memory = self._memory
            memory[pair.input], memory[pair.output] = memory[pair.output], memory[pair.input]

    def reserve(self, capacity: int, keep: int) -> None:
        """Nothing is to be done: the whole cache is there from the start. InputError where more is asked for."""
        self._check_open()
        if not 0 <= keep <= self._capacity:
            raise InputError(f"{keep} entries of a state of {self._capacity} were to be kept")
        if capacity > self._capacity:
            raise InputError(
                f"a state of {capacity} entries was asked for; the engine was built for {self._capacity}: "
                "build it for a longer cache"
            )

    def read(self, name: str) -> Tensor:
        """A copy, on the host, of the state tensor with that input name."""
        with self._lock:
            self._check_open()
            if name not in self.shapes:
                raise InputError(f"no state named {name!r}; there are {sorted(self.shapes)}")
            self._cuda.use()
            spec = next(spec for pair, spec in self._pairs.items() if pair.input == name)
            staging = self._cuda.host_memory(_size_bytes(spec, self.shapes[name]), f"reading state {name!r}")
            self._stream.to_host(staging.address, self._memory[name].address, staging.size_bytes)
            self._stream.wait()
            return staging.array(spec.dtype, self.shapes[name])

    def close(self) -> None:
        """Free the memory. Closing twice is allowed."""
        with self._lock:
            for memory in self._memory.values():
                memory.close()
            self._memory.clear()
            self._capacity = 0

    def _check_open(self) -> None:
        if not self._memory:
            raise BackendError("the state is closed; make another with new_state()")

    def _cleared(self, name: str, spec: TensorSpec) -> DeviceMemory:
        size_bytes = _size_bytes(spec, self.shapes[name])
        memory = self._cuda.device_memory(size_bytes, f"state {name!r}")
        try:
            self._stream.zero(memory.address, size_bytes)
        except BaseException:
            memory.close()
            raise
        return memory


def _size_bytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(spec.dtype).itemsize
