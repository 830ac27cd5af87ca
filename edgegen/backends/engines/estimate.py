"""How long a build will take and how much memory, told before it begins.

Straight lines through what was measured: real builds with TensorRT-RTX 1.7.1 for one compute capability, on an x86-64 server
without a GPU. Seconds are those of the processor, which pass on the wall where a core is free. The lines are within a factor of
two of them, and in memory within a fifth. TensorRT proper also times kernels on the GPU, and takes longer by a factor that only
the device knows.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgegen.backends.memory import available_bytes
from edgegen.errors import BackendError
from edgegen.graphs.nodes import read

if TYPE_CHECKING:
    from edgegen.bundle import Bundle


@dataclass(frozen=True)
class Measured:
    """One build: the bytes of the graph and its weights, its nodes, its process's seconds of the CPU, and most memory."""

    what: str
    weights_bytes: int
    nodes: int
    seconds: float
    peak_memory_bytes: int


MEASURED = (
    Measured("the layers of a StyleGAN2 of 16 pixels, fp16", 31_215, 146, 0.6, 242 << 20),
    Measured("a Llama of 2 layers, fp16, context 256", 187_413, 90, 0.8, 246 << 20),
    Measured("a tiny U-Net with attention to a text, fp16", 118_912, 327, 2.6, 339 << 20),
    Measured("SmolLM2-135M, 30 layers, int4, context 8192", 77_940_065, 1254, 16.0, 879 << 20),
    Measured("SmolLM2-135M, 30 layers, fp16, context 8192", 270_439_006, 1042, 14.3, 1732 << 20),
)
_BASE_S, _S_PER_NODE, _S_PER_BYTE = 0.2, 0.006, 0.04e-6
_BASE_BYTES, _BYTES_PER_NODE, _BYTES_PER_BYTE = 230 << 20, 290_000, 4.8


@dataclass(frozen=True)
class Estimate:
    """What a build will take, about."""

    seconds: float
    memory_bytes: int

    @classmethod
    def of(cls, weights_bytes: int, nodes: int) -> "Estimate":
        """Of a graph that has so many bytes, weights included, and so many nodes."""
        seconds = _BASE_S + _S_PER_NODE * nodes + _S_PER_BYTE * weights_bytes
        return cls(seconds, int(_BASE_BYTES + _BYTES_PER_NODE * nodes + _BYTES_PER_BYTE * weights_bytes))

    def check(self, graph: str) -> None:
        """Raise BackendError where that much memory is not there."""
        there = available_bytes()
        if there is not None and self.memory_bytes > there:
            raise BackendError(
                f"graph {graph!r}: a build takes about {self.memory_bytes >> 20} MB of memory, and {there >> 20} MB are free; "
                "close other programs, build on a larger machine, or try all the same with --force"
            )

    def __str__(self) -> str:
        return f"about {max(self.seconds, 1):.0f} s and {self.memory_bytes / 1e9:.1f} GB"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def estimate(bundle: "Bundle", graph: str, variant: str) -> Estimate:
    """What the build of one graph of an open bundle will take. BundleError where the graph's file is damaged."""
    chosen = bundle.manifest.graphs[graph].variants[variant]
    weights_bytes = sum(bundle.manifest.files[path].size_bytes for path in chosen.weights)
    model = bundle.read(chosen.path)
    return Estimate.of(weights_bytes + len(model), len(read(model).nodes))
