"""What this machine has for edgegen: interpreter, libraries, backends, threads, privacy, cache."""

import importlib
import importlib.metadata
import os
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

from edgegen.backends import BACKENDS, fault, install_hint, present_backends
from edgegen.backends.ort.kernels import kernels as own_kernels

_BASE = ("numpy", "msgspec", "tokenizers", "jinja2", "click", "rich")
_WORKSTATION = ("torch", "onnx", "onnxscript", "transformers", "safetensors", "gguf", "accelerate")


@dataclass(frozen=True)
class Health:
    """What `examine` found. `passed` where a bundle can be run; a version is None where the library is not installed."""

    passed: bool
    edgegen: str
    python: str
    platform: str
    cpus: int
    base: dict[str, str | None]
    backends: dict[str, str]
    export: dict[str, str | None]
    telemetry: str

    def lines(self) -> list[str]:
        """Say it for people."""
        return [
            f"edgegen {self.edgegen} on Python {self.python}, {self.platform}, {self.cpus} CPUs usable",
            f"base:      {_versions(self.base)}",
            *(f"backend:   {name}: {state}" for name, state in self.backends.items()),
            f"export:    {_versions(self.export)}",
            f"telemetry: {self.telemetry}",
            "ready to run bundles" if self.passed else "cannot run bundles: " + "; ".join(self._faults()),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Say it for machines."""
        return asdict(self)

    def _faults(self) -> list[str]:
        missing = [name for name, version in self.base.items() if version is None]
        return [f"{name} is missing" for name in missing] + ["no backend works"] * (not missing)


def examine() -> Health:
    """Look at this machine. A backend works when its library can be imported; one for GPUs, when it runs a tiny graph."""
    from edgegen import __version__

    base = {name: _version(name) for name in _BASE}
    backends = {name: _backend_state(name) for name in BACKENDS}
    works = [name for name, state in backends.items() if state.startswith("works")]
    return Health(
        passed=bool(works) and None not in base.values(),
        edgegen=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        base=base,
        backends=backends,
        export={name: _version(name) for name in _WORKSTATION},
        telemetry="off (ORT_DISABLE_TELEMETRY=1)"
        if os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
        else "NOT off: set ORT_DISABLE_TELEMETRY=1 before onnxruntime is imported",
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _backend_state(name: str) -> str:
    backend = BACKENDS[name]
    if name not in present_backends():
        return f"not installed: {install_hint(backend)}"
    try:
        library = importlib.import_module(backend.library)
    except (ImportError, OSError) as error:  # OSError: a shared library that the loader refuses
        return f"broken: {str(error).splitlines()[0]}"
    if reason := fault(name):  # a GPU's: it runs a graph of one operator
        return f"installed, {backend.library} {library.__version__}, but {reason}"
    own = f", edgegen's kernels for {found.instructions}" if name == "onnxruntime" and (found := own_kernels()) else ""
    return f"works, {backend.library} {library.__version__}{own}"


def _versions(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or '(not installed)'}" for name, version in versions.items())
