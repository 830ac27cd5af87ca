"""Outputs whose shape is known only once they are computed: the library asks for their memory while it runs."""

from typing import Any

from edgegen.backends.trt.cuda import Cuda, DeviceMemory
from edgegen.errors import BackendError


class Grown:
    """The memory and the shape of one such output. `error` is why there was no memory for it."""

    def __init__(self, trt: Any, cuda: Cuda, name: str) -> None:
        self._cuda, self._name = cuda, name
        self._memory: DeviceMemory | None = None
        self.shape: tuple[int, ...] = ()
        self.error: BackendError | None = None
        self.native: Any = _allocator(trt, self)

    @property
    def address(self) -> int:
        """Where the output is."""
        return 0 if self._memory is None else self._memory.address

    def allocate(self, size_bytes: int) -> int | None:
        """Memory of at least that size; None where there is not enough. It never raises: the library calls it."""
        if self._memory is None or self._memory.size_bytes < size_bytes:
            self.close()
            try:
                self._memory = self._cuda.device_memory(size_bytes, f"output {self._name!r}")
            except BackendError as error:
                self.error = error
                return None
        return self._memory.address

    def close(self) -> None:
        """Free the memory. Closing twice is allowed."""
        if self._memory is not None:
            self._memory.close()
        self._memory = None


def _allocator(trt: Any, grown: Grown) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the base comes with the module
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int | None:  # noqa: ARG002
            return grown.allocate(size)  # CUDA aligns to 256 bytes, more than is ever asked for

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, *_: int) -> int | None:  # noqa: ARG002
            return grown.allocate(size)  # what newer versions call in its place

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ARG002
            grown.shape = tuple(shape)

    return Allocator()
