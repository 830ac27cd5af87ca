"""What an engine is bound to: the name under which it is kept, and found again."""

import hashlib
import json
import platform
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from edgegen.bundle import Bundle

FORMAT = 2  # of the cache; raise it, too, when edgegen builds other engines from the same graph and options


class GraphDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One variant of a graph, by content: it is the same wherever its bundle lies and however its files are called.

    Attributes:
        model: SHA-256 of the serialized graph.
        weights: SHA-256 of each external-data file, by the name that the graph uses.
        signature: SHA-256 of what the manifest says of it: inputs, outputs, state, and the ranges of the axes.
    """

    model: str
    weights: dict[str, str]
    signature: str

    @classmethod
    def of(cls, bundle: "Bundle", graph: str, variant: str) -> "GraphDigest":
        """Of an open bundle, from its manifest: the bundle holds every file that it hands out to these digests."""
        described = bundle.manifest.graphs[graph]
        chosen, files = described.variants[variant], bundle.manifest.files
        weights = {path.rpartition("/")[2]: files[path].sha256 for path in chosen.weights}
        said = {
            "inputs": chosen.inputs,
            "outputs": chosen.outputs,
            "state": chosen.state,
            "axes": {name: [axis.min, axis.opt, axis.max, axis.step] for name, axis in described.axes.items()},
        }
        return cls(files[chosen.path].sha256, weights, _digest(said))


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine is to run on.

    Either GPUs by compute capability, without one at hand, or the GPU of this machine, to the driver.

    Attributes:
        compute_capabilities: 89 for 8.9; empty where the engine is for the GPU that is present.
        gpu: its name; empty where the engine is for others.
        sm: its compute capability, 0 likewise.
        driver: version of its driver.
        cuda: the CUDA version that the driver offers.
        host: system and instruction set that the engine's host code is for.
    """

    compute_capabilities: tuple[int, ...] = ()
    gpu: str = ""
    sm: int = 0
    driver: str = ""
    cuda: str = ""
    host: str = f"{platform.system()}-{platform.machine()}"


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides what an engine is. Where any of it differs, so does `digest`, and another engine is built.

    Attributes:
        graph: what it was made of.
        flavour: "tensorrt" or "tensorrt-rtx".
        version: of that library, in full.
        target: what it runs on.
        options: of the build (`BuildOptions.as_dict()`).
        format: of the cache.
    """

    graph: GraphDigest
    flavour: str
    version: str
    target: Target
    options: dict[str, Any]
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 of the key in canonical JSON."""
        return _digest(self)


def _digest(value: Any) -> str:
    plain = json.dumps(msgspec.to_builtins(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()
