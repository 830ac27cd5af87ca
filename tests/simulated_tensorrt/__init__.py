"""A simulation of TensorRT's Python API and of CUDA's, for tests only: engines that onnxruntime runs, memory on the host.

`simulate("10.3")` makes one machine; `Simulation.install` puts it where the backend imports its libraries from.
"""

import importlib.machinery
import sys
import types
from dataclasses import dataclass

from simulated_tensorrt.cuda_runtime import Cuda
from simulated_tensorrt.module import PRESETS, Faults, make

__all__ = ["PRESETS", "Simulation", "simulate"]


@dataclass
class Simulation:
    """One simulated machine: its TensorRT module, its CUDA, and what is to go wrong."""

    preset: str
    trt: types.ModuleType
    cuda: Cuda
    faults: Faults

    @property
    def backend(self) -> str:
        """The backend's name that this library belongs to."""
        return "tensorrt-rtx" if self.preset == "rtx" else "tensorrt"

    def install(self, monkeypatch) -> "Simulation":
        """Make `import tensorrt` (or tensorrt_rtx) and `import cuda.bindings.runtime` find the simulation."""
        parents = {name: types.ModuleType(name) for name in ("cuda", "cuda.bindings")}
        parents["cuda"].bindings, parents["cuda.bindings"].runtime = parents["cuda.bindings"], self.cuda.module
        modules = {self.trt.__name__: self.trt, **parents, "cuda.bindings.runtime": self.cuda.module}
        for name, module in modules.items():
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        return self


def simulate(preset: str, *, devices: int = 1) -> Simulation:
    """A machine with the library of a preset ("10.3", "10.13", "10.16", "11.4", "rtx") and so many GPUs."""
    cuda, faults = Cuda(devices), Faults()
    return Simulation(preset, make(preset, cuda, faults), cuda, faults)
