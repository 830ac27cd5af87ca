"""Which operators the ONNX parser of a TensorRT release reads: `tensorrt_operators.json`, and a check of a graph against it.

The table is read from the releases' documentation and, for TensorRT-RTX, from the parser itself; each row says where from. A
number is the highest version of the operator (ONNX's `since_version`) that the release reads.
"""

import functools
from pathlib import Path
from typing import Literal

import msgspec
import onnx
import onnx_ir as ir

from edgegen.errors import ExportError, UnknownNameError

_FILE = Path(__file__).with_name("tensorrt_operators.json")


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One release. `opset` is the highest one that a graph for it may have; `reason` says how that is known."""

    title: str
    opset: int
    confidence: Literal["high", "medium", "low"]
    reason: str


class Operator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operator: by release the highest version that is read, and where only some inputs may be used, how many."""

    versions: dict[str, int]
    sources: tuple[str, ...]
    inputs: dict[str, int] = {}
    note: str = ""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole table."""

    sources: dict[str, str]
    releases: dict[str, Release]
    operators: dict[str, Operator]


@functools.cache
def table() -> Table:
    """The table, as shipped."""
    return msgspec.json.decode(_FILE.read_bytes(), type=Table)


def require_readable(model: ir.Model, release: str, graph: str) -> None:
    """Raise ExportError unless the parser of `release` reads every operator of a graph; names the operator, and what to do."""
    known = table()
    if release not in known.releases:
        raise UnknownNameError("TensorRT release", release, known.releases)
    opset = model.opset_imports[""]
    if opset > known.releases[release].opset:
        raise ExportError(f"{graph} has opset {opset}; {known.releases[release].title} reads {known.releases[release].opset}")
    for node in model.graph.all_nodes():
        if problem := _problem(node, release, opset):
            raise ExportError(
                f"{graph}: {node.op_type} ({node.name or node.outputs[0].name}) {problem} {known.releases[release].title}; "
                "export without the variant tensorrt-legacy, or write the module with other operators"
            )


def _problem(node: ir.Node, release: str, opset: int) -> str | None:
    """What is wrong with one node, as words before the release's title; None where nothing is."""
    if node.domain:
        return f"of {node.domain} is not read by"
    row = table().operators.get(node.op_type)
    if row is None or release not in row.versions:
        return "is not read by"
    version = onnx.defs.get_schema(node.op_type, opset).since_version
    if version > row.versions[release]:
        return f"in its version {version} is not read by"
    used = sum(value is not None for value in node.inputs)
    if used > row.inputs.get(release, used):
        return f"with {used} inputs is not read by"
    return None
