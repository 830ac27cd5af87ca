"""What is in a bundle, for people and for machines: the manifest, its sizes, and the proof's own summary."""

import json
import os
from dataclasses import dataclass
from typing import Any

import msgspec

from edgegen.bundle import Bundle
from edgegen.errors import BundleError
from edgegen.manifest import Graph, Manifest, Variant

_MIB = 1 << 20
_MAX_PROOF_BYTES = 4 << 20


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
        axes = ", ".join(f"{axis} {bounds}" for axis, bounds in graph.axes.items())
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
        return sum(self.manifest.files[path].size_bytes for path in {variant.path, *variant.weights})


def describe(path: str | os.PathLike[str]) -> Description:
    """Describe the bundle at `path` (a directory or a .tar).

    Raises:
        BundleError: It is damaged, foreign, newer than this edgegen, or not to be trusted.
    """
    with Bundle.open(path) as bundle:
        return Description(bundle.manifest, _proof_facts(bundle))


def _proof_facts(bundle: Bundle) -> dict[str, Any]:
    """Read the numbers and words of proof.json, `quality.mean_kl` for those one level down; the family knows what they mean."""
    name = bundle.manifest.proof
    entry = bundle.manifest.files.get(name)
    if entry is None:
        return {}
    if entry.size_bytes > _MAX_PROOF_BYTES:
        raise BundleError(f"{name} has {entry.size_bytes} bytes; {_MAX_PROOF_BYTES} at most")
    try:
        proof = msgspec.json.decode(bytes(bundle.read(name)), type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{name} is not a JSON object: {error}") from error
    facts: dict[str, Any] = {}
    for key, value in proof.items():
        facts |= {f"{key}.{inner}": fact for inner, fact in value.items()} if isinstance(value, dict) else {key: value}
    return {key: fact for key, fact in facts.items() if isinstance(fact, str | int | float)}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
