"""The schema of `manifest.json`: frozen and strict, an unknown key is an error.

The two halves of a family meet only here: graph names, axis names, and `settings`, which the family's pipeline decodes with
a struct of its own.
"""

from typing import Any, Literal

import msgspec

from edgegen.tensors import Axis, TensorSpec

FORMAT = 1
Precision = Literal["fp32", "fp16", "int8", "int4"]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The digest and size of one file of the bundle."""

    sha256: str
    size_bytes: int


class StatePair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output that is written over an input: memory that stays on the device between runs.

    `axis` is the one that grows with the sequence (the cache length).
    """

    input: str
    output: str
    axis: int


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One lowering of a graph. `weights` are the external-data files that `path` refers to, beside it."""

    path: str
    weights: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StatePair, ...] = ()


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph in all its variants; `canonical` is always there. `axes` bounds the named axes of all variants."""

    variants: dict[str, Variant]
    axes: dict[str, Axis]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from. `sha256` is over the checkpoint's weight files."""

    kind: str
    name: str
    sha256: str
    licence: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole manifest. `settings` belongs to the family; `proof` is the path of the proof's own JSON, in the bundle."""

    format: int
    name: str
    family: str
    precision: Precision
    source: Source
    tools: dict[str, str]
    graphs: dict[str, Graph]
    settings: dict[str, Any]
    proof: str
    files: dict[str, FileEntry]
