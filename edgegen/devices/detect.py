"""What this machine is: a Jetson, a computer with NVIDIA cards, or a processor alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgegen.devices import live
from edgegen.devices.cpu import Cpu, read_cpu
from edgegen.devices.files import read_size, read_strings, read_text
from edgegen.devices.jetson import Jetson, read_jetson
from edgegen.devices.nvidia import Gpus, read_gpus
from edgegen.devices.table import DEVICES, Device, JetPack, jetpack_of

_HERE = Path("/")


@dataclass(frozen=True)
class Machine:
    """A machine as it is now. What could not be read is None.

    `title` is what it calls itself; `row` the table's row that it is, where it has one. `memory_bytes` is what the kernel may
    use (MemTotal), `available_bytes` what it would give away now.
    """

    kind: Literal["jetson", "gpu", "cpu"]
    title: str
    row: Device | None
    jetson: Jetson | None
    gpus: Gpus
    cpu: Cpu
    memory_bytes: int | None
    available_bytes: int | None

    @property
    def jetpack(self) -> JetPack | None:
        """The JetPack that it runs, by its Jetson Linux release."""
        return jetpack_of(self.jetson.l4t) if self.jetson is not None and self.jetson.l4t else None

    def device(self, bandwidth_bytes_s: float | None = None) -> Device | None:
        """This machine as a device to plan for, with its memory, live mode and peaks; None where these cannot be known.

        `bandwidth_bytes_s` is a processor's measured memory bandwidth (`edgegen.bench.machine.read_bandwidth`), which no file
        tells.
        """
        if self.jetson is not None:
            return live.jetson_device(self.jetson, self.row, self.memory_bytes) if self.row is not None else None
        if self.gpus.cards:
            return live.gpu_device(self.gpus.cards[0])
        if self.row is not None:
            return live.board_device(self.row, self.memory_bytes)
        return live.cpu_device(self.cpu, self.memory_bytes, bandwidth_bytes_s)

    def as_dict(self) -> dict[str, Any]:
        """Say it for machines."""
        return {
            "kind": self.kind,
            "title": self.title,
            "row": self.row.name if self.row else None,
            "device": self.device(),
            "jetpack": self.jetpack,
            "jetson": self.jetson,
            "gpus": self.gpus,
            "cpu": self.cpu,
            "memory_bytes": self.memory_bytes,
            "available_bytes": self.available_bytes,
        }


def detect(root: Path = _HERE) -> Machine:
    """Find out what the machine below `root` is. Never raises: what is missing, broken or hostile is None.

    NVIDIA cards are asked for by NVML on this machine alone, for a folder has no driver.
    """
    memory, available = (read_size(root, "proc/meminfo", field) for field in ("MemTotal", "MemAvailable"))
    jetson, cpu = read_jetson(root), read_cpu(root)
    if jetson is not None:
        row = _jetson_row(jetson, memory)
        title = jetson.model or "a Jetson without a name"
        return Machine(
            "jetson", title, row, jetson, Gpus(reason="a Jetson's GPU is read from its files"), cpu, memory, available
        )
    gpus = read_gpus() if root == _HERE else Gpus(reason="a recorded tree has no driver to ask")
    if gpus.cards:
        name = gpus.cards[0].name
        row = next((row for row in DEVICES.values() if name in row.gpu_names), None)
        return Machine("gpu", name, row, None, gpus, cpu, memory, available)
    title = (read_text(root, "proc/device-tree/model") or cpu.name or "a processor without a name")[:128]
    return Machine(
        "cpu", title, _board_row(read_strings(root, "proc/device-tree/compatible"), memory), None, gpus, cpu, memory, available
    )


def _jetson_row(jetson: Jetson, memory: int | None) -> Device | None:
    """The row of the first part number that any has."""
    return next((row for board in jetson.boards if (row := _board_row((board,), memory)) is not None), None)


def _board_row(boards: tuple[str, ...], memory: int | None) -> Device | None:
    """The row of these part numbers; where several differ by their memory alone, the nearest to this machine's."""
    rows = [row for row in DEVICES.values() if any(board.startswith(known) for board in boards for known in row.boards)]
    return min(rows, key=lambda row: abs(row.memory_bytes - (memory or row.memory_bytes)), default=None)
