"""The schema of `manifest.json`: frozen and strict, an unknown key is an error.

The two halves of a family meet only here: graph names, axis names, and `settings`, which the family's pipeline decodes with
a struct of its own. `decode` and `encode` apply the same bounds, so what is written can be read.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec

from edgegen.errors import BundleError
from edgegen.tensors import Axis, TensorSpec

_T = TypeVar("_T")

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 8 << 20
Precision = Literal["fp32", "fp16", "int8", "int4"]

_MAX_PATH = 100  # what a tar header holds without extensions
_MAX_FILES = 512  # every one of them is open while the bundle is
_MAX_GRAPHS = 64
_MAX_VARIANTS = 16
_MAX_TENSORS = 4096
_MAX_AXIS = 1 << 31
_MAX_ELEMENTS = 1 << 40
_MAX_FILE_BYTES = 1 << 43
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    """One lowering of a graph. All paths are the bundle's.

    `weights` are the external-data files of `path`; they lie in its folder, and the graph names them by file name alone.
    """

    path: str
    weights: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StatePair, ...] = ()


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One graph in all its variants; `canonical` is always there. `axes` bounds the named axes of all variants.

    `row_bytes` is what a run has to hold for each row of its batch, weights aside, at the usual sizes of the other axes: a
    backend takes a few times as much (see `pipelines.batches`); 0 where nobody knows.
    """

    variants: dict[str, Variant]
    axes: dict[str, Axis]
    row_bytes: int = 0


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from. `sha256` is over the checkpoint's weight files."""

    kind: str
    name: str
    sha256: str
    licence: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole manifest. `settings` belongs to the family; `proof` is the path of the proof's own JSON, in the bundle.

    `proof` is empty only while a bundle is being made. `files` lists every file but the manifest itself.
    """

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


class Stamp(msgspec.Struct, frozen=True):
    """What is read before all else: enough to know a bundle, and its age, whatever its format."""

    format: int
    family: str
    graphs: dict[str, Any]


def decode_stamp(data: bytes) -> Stamp:
    """Read the stamp of a manifest of any format. Raises BundleError where `data` is no manifest at all."""
    return _decode(data, Stamp)


def decode(data: bytes) -> Manifest:
    """Read a manifest and check its bounds. Raises BundleError: not JSON, unknown key, newer format, absurd value."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST} has {len(data)} bytes; the most that is read is {MAX_MANIFEST_BYTES}")
    stamp = decode_stamp(data)
    if stamp.format > FORMAT:
        raise BundleError(f"made by a newer edgegen: format {stamp.format}, this one reads {FORMAT}; update edgegen")
    manifest = _decode(data, Manifest)
    check(manifest)
    return manifest


def encode(manifest: Manifest) -> bytes:
    """Write a manifest: the same manifest gives the same bytes. Raises BundleError where `decode` would refuse it."""
    check(manifest)
    return json.dumps(msgspec.to_builtins(manifest), indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def check(manifest: Manifest) -> None:
    """Raise BundleError unless every value is in its bounds and every reference leads somewhere."""
    _require(manifest.format == FORMAT, f"format {manifest.format} is unknown; this edgegen reads {FORMAT}")
    _require(_NAME.fullmatch(manifest.family), f"family {_short(manifest.family)} is not a name")
    _require(len(manifest.name) <= 200 and manifest.name.isprintable(), f"name {_short(manifest.name)} is not printable")
    _require(len(manifest.files) <= _MAX_FILES, f"{len(manifest.files)} files; at most {_MAX_FILES} are read")
    for path, entry in manifest.files.items():
        _check_file(path, entry)
    _require(not manifest.proof or manifest.proof in manifest.files, f"proof {_short(manifest.proof)} is not in `files`")
    _require(1 <= len(manifest.graphs) <= _MAX_GRAPHS, f"{len(manifest.graphs)} graphs; 1 to {_MAX_GRAPHS} are read")
    for name, graph in manifest.graphs.items():
        _check_graph(name, graph, manifest)


def check_path(path: str) -> str:
    """Return `path` if it is plain, relative and normalised (ASCII letters, digits, `_.+-`); raise BundleError otherwise."""
    if len(path) > _MAX_PATH or not _PATH.fullmatch(path):
        raise BundleError(f"path {_short(path)} is not a plain relative path inside the bundle")
    return path


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise BundleError(f"{MANIFEST}: {str(error).splitlines()[0][:200]}") from None
    except RecursionError:
        raise BundleError(f"{MANIFEST}: nested too deep") from None


def _check_file(path: str, entry: FileEntry) -> None:
    check_path(path)
    _require(path != MANIFEST, f"`files` lists {MANIFEST} itself")
    _require(0 <= entry.size_bytes <= _MAX_FILE_BYTES, f"{path}: absurd size {entry.size_bytes}")
    _require(_SHA256.fullmatch(entry.sha256), f"{path}: {_short(entry.sha256)} is not a SHA-256 digest")


def _check_graph(name: str, graph: Graph, manifest: Manifest) -> None:
    where = f"graph {_short(name)}"
    _require(_NAME.fullmatch(name), f"{where} is not a name")
    _require("canonical" in graph.variants, f"{where} has no variant 'canonical'")
    _require(len(graph.variants) <= _MAX_VARIANTS, f"{where}: {len(graph.variants)} variants; at most {_MAX_VARIANTS} are read")
    _require(len(graph.axes) <= _MAX_TENSORS, f"{where}: {len(graph.axes)} axes; at most {_MAX_TENSORS} are read")
    for axis, bounds in graph.axes.items():
        good = 0 <= bounds.min <= bounds.opt <= bounds.max <= _MAX_AXIS and 1 <= bounds.step <= _MAX_AXIS
        sizes = f"min {bounds.min}, opt {bounds.opt}, max {bounds.max}, step {bounds.step}"
        _require(good, f"{where}: axis {_short(axis)} has absurd sizes: {sizes}")
    _require(0 <= graph.row_bytes <= _MAX_FILE_BYTES, f"{where}: a row of its batch takes an absurd {graph.row_bytes} bytes")
    for label, variant in graph.variants.items():
        _require(_NAME.fullmatch(label), f"{where}: variant {_short(label)} is not a name")
        _check_variant(f"{where}, variant {label!r}", variant, graph, manifest)


def _check_variant(where: str, variant: Variant, graph: Graph, manifest: Manifest) -> None:
    for path in (variant.path, *variant.weights):
        _require(path in manifest.files, f"{where}: {_short(path)} is not in `files`")
    folder = variant.path.rpartition("/")[0]
    strays = [path for path in variant.weights if path.rpartition("/")[0] != folder or path == variant.path]
    _require(not strays, f"{where}: weights {strays} do not lie beside {variant.path}")
    for specs in (variant.inputs, variant.outputs):
        _check_specs(where, specs, graph)
    _check_state(where, variant)


def _check_specs(where: str, specs: Sequence[TensorSpec], graph: Graph) -> None:
    _require(len(specs) <= _MAX_TENSORS, f"{where}: {len(specs)} tensors; at most {_MAX_TENSORS} are read")
    _require(len({spec.name for spec in specs}) == len(specs), f"{where}: two tensors have the same name")
    for spec in specs:
        fixed = [axis for axis in spec.axes if isinstance(axis, int)]
        unbounded = [axis for axis in spec.axes if isinstance(axis, str) and axis not in graph.axes]
        _require(not unbounded, f"{where}: tensor {_short(spec.name)} has axes without bounds: {_short(unbounded)}")
        sane = len(spec.axes) <= 16 and all(0 <= size <= _MAX_AXIS for size in fixed) and math.prod(fixed) <= _MAX_ELEMENTS
        _require(sane, f"{where}: tensor {_short(spec.name)} has absurd axis sizes {_short(spec.axes)}")


def _check_state(where: str, variant: Variant) -> None:
    inputs = {spec.name: spec for spec in variant.inputs}
    outputs = {spec.name: spec for spec in variant.outputs}
    for pair in variant.state:
        # Taken out of the table: no tensor can be in two pairs.
        past, present = inputs.pop(pair.input, None), outputs.pop(pair.output, None)
        if past is None or present is None:
            raise BundleError(f"{MANIFEST}: {where}: state {_short(pair.input)} -> {_short(pair.output)} is not in the graph")
        same = past.dtype == present.dtype and len(past.axes) == len(present.axes) and 0 <= pair.axis < len(past.axes)
        _require(same, f"{where}: state {_short(pair.input)} -> {_short(pair.output)}: dtype, rank or axis does not fit")


def _require(condition: object, message: str) -> None:
    if not condition:
        raise BundleError(f"{MANIFEST}: {message}")


def _short(value: object) -> str:
    """Quote a value that a stranger chose: escaped, and never longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
