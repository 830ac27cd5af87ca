"""What is in a bundle, for people and for machines: the manifest, its sizes, and the proof's own summary."""

import json
import os
from dataclasses import dataclass
from typing import Any

import msgspec

from edgegen.bundle import Bundle
from edgegen.manifest import Graph, Manifest, Variant

_MIB = 1 << 20


@dataclass(frozen=True)
class Description:
    """A bundle's manifest and the scalar facts of its proof."""

    manifest: Manifest
    proof: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(entry.size_bytes for entry in self.manifest.files.values())

    def lines(self) -> list[str]:
        """Say it for people."""
        manifest = self.manifest
        source = manifest.source
        head = [
            f"{manifest.name}: {manifest.family}, {manifest.precision}, {self.size_bytes / _MIB:.1f} MiB "
            f"in {len(manifest.files)} files, format {manifest.format}",
            f"source:  {source.kind} {source.name}, sha256 {source.sha256[:16]}..., licence {source.licence}",
            f"made by: {', '.join(f'{name} {version}' for name, version in sorted(manifest.tools.items()))}",
        ]
        graphs = [line for name, graph in manifest.graphs.items() for line in self._graph_lines(name, graph)]
        proof = [f"proof:   {name} = {value}" for name, value in self.proof.items()]
        settings = [f"setting: {name} = {_short(value)}" for name, value in manifest.settings.items()]
        return [*head, *graphs, *settings, *proof]

    def as_dict(self) -> dict[str, Any]:
        """Say it for machines."""
        return {"size_bytes": self.size_bytes, "proof_summary": self.proof} | dict(msgspec.to_builtins(self.manifest))

    def _graph_lines(self, name: str, graph: Graph) -> list[str]:
        axes = ", ".join(f"{axis} {bounds.min}..{bounds.max}" for axis, bounds in graph.axes.items())
        lines = [f"graph {name}: {axes}"]
        for variant_name, variant in graph.variants.items():
            size = self._size_bytes(variant) / _MIB
            lines.append(
                f"  {variant_name}: {variant.path}, {size:.1f} MiB with its weights, {len(variant.state)} state tensors"
            )
            state = {pair.input for pair in variant.state} | {pair.output for pair in variant.state}
            lines += [f"    in  {spec}" for spec in variant.inputs if spec.name not in state]
            lines += [f"    out {spec}" for spec in variant.outputs if spec.name not in state]
        return lines

    def _size_bytes(self, variant: Variant) -> int:
        files = self.manifest.files
        paths = [path for path in files if path == variant.path or path.rsplit("/", 1)[-1] in _names(variant)]
        return sum(files[path].size_bytes for path in paths)


def describe(path: str | os.PathLike[str]) -> Description:
    """Describe the bundle at `path` (a directory or a .tar).

    Raises:
        BundleError: It is damaged, foreign, newer than this edgegen, or not to be trusted.
    """
    with Bundle.open(path) as bundle:
        manifest = bundle.manifest
        proof = json.loads(bytes(bundle.read(manifest.proof))) if manifest.proof in manifest.files else {}
    scalars = {name: value for name, value in proof.items() if isinstance(value, str | int | float)}
    return Description(manifest, scalars)


def _names(variant: Variant) -> set[str]:
    return {weights.rsplit("/", 1)[-1] for weights in variant.weights}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
