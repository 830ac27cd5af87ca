"""Memory that a session uses again from run to run: for each tensor a piece on the host and one on the device."""

from edgegen.backends.trt.cuda import Cuda, DeviceMemory, HostMemory

_SMALLEST_BYTES = 4096  # a prompt of 512 tokens
_LARGEST_STEP_BYTES = 32 << 20


class Buffers:
    """Pieces of memory by tensor name. One that is too small is replaced, and `version` counts that: recorded runs are void.

    Arrays of a piece that was replaced stay valid: a caller may still hold the last run's results.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._host: dict[str, HostMemory] = {}
        self._device: dict[str, DeviceMemory] = {}
        self.version = 0

    def host(self, name: str, size_bytes: int) -> HostMemory:
        """Page-locked memory of at least that size."""
        held = self._host.get(name)
        if held is None or held.size_bytes < size_bytes:
            grown = self._cuda.host_memory(_rounded(size_bytes, held), f"tensor {name!r}")
            if held is not None:
                held.close()
                self.version += 1
            self._host[name] = held = grown
        return held

    def device(self, name: str, size_bytes: int) -> DeviceMemory:
        """Device memory of at least that size; its content is undefined."""
        held = self._device.get(name)
        if held is None or held.size_bytes < size_bytes:
            size = _rounded(size_bytes, held)
            if held is not None:  # before the new one is there: memory for both may not be
                held.close()
                del self._device[name]
                self.version += 1
            self._device[name] = held = self._cuda.device_memory(size, f"tensor {name!r}")
        return held

    @property
    def device_bytes(self) -> int:
        """Device memory in use."""
        return sum(memory.size_bytes for memory in self._device.values())

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""
        for pinned in self._host.values():
            pinned.close()
        for memory in self._device.values():
            memory.close()
        self._host.clear()
        self._device.clear()


def _rounded(size_bytes: int, held: HostMemory | DeviceMemory | None) -> int:
    """At least doubled, up to a point: shapes that grow bit by bit do not bring an allocation each time."""
    before = 0 if held is None else held.size_bytes
    return max(size_bytes, _SMALLEST_BYTES, before + min(before, _LARGEST_STEP_BYTES))
