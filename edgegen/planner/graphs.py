"""The graphs of a bundle as a backend would run them, and their sizes for what is asked: read once, planned many times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from edgegen.backends import BACKENDS
from edgegen.backends.ort.image_nodes import DOMAIN
from edgegen.backends.ort.kernel_nodes import exchange
from edgegen.backends.trt.profiles import BuildOptions
from edgegen.bundle import Bundle
from edgegen.errors import BundleError, InputError
from edgegen.graphs.nodes import Constant, Graph, Node, read
from edgegen.manifest import Manifest, Variant
from edgegen.planner.blocked import in_blocks
from edgegen.planner.liveness import runtime_order
from edgegen.planner.shapes import Form, Shapes, infer, input_forms
from edgegen.tensors import Axis

CPU = "onnxruntime"  # the backend that edgegen's kernels and the packing of weights are of; all others run on a GPU
ENGINES = ("tensorrt", "tensorrt-rtx")
PLANNED = (CPU, *ENGINES, "onnxruntime-cuda")
PREFILL = 256  # tokens that go in at once: DecoderLM.prefill_chunk, which a test compares

_DEQUANTIZE = b"DequantizeLinear"


@dataclass(frozen=True)
class Ask:
    """What is to be generated. None: what the bundle was exported for, or its usual size.

    Attributes:
        context: tokens that a conversation's cache has room for.
        prompt: tokens that go in at once; as many as a pipeline puts in at once, if the context has room for them.
        batch: images in a run, or conversations at once.
        height: of the image, in pixels; beyond what a graph was exported for it is made in tiles.
        width: likewise.
        tile: the largest side of a tile, in pixels.
    """

    context: int | None = None
    prompt: int | None = None
    batch: int | None = None
    height: int | None = None
    width: int | None = None
    tile: int | None = None


@dataclass(frozen=True, eq=False)  # compared by identity: a plan remembers what it found of a graph
class PlannedGraph:
    """One graph of a bundle: `file` as it is there, `nodes` as they run, which edgegen's kernels may have exchanged.

    `is_legacy` where it is written for a TensorRT that cannot update its state in place, and so holds it twice.
    """

    name: str
    variant: Variant
    axes: Mapping[str, Axis]
    file: Graph
    nodes: tuple[Node, ...]
    outputs: frozenset[bytes]
    model_bytes: int
    has_kernels: bool
    is_legacy: bool = False

    def sizes(self, ask: Ask, usual: Mapping[str, int]) -> dict[str, int]:
        """The sizes of the named axes. `usual` has the sides of the images that the bundle was made for."""
        return {name: _size(name, axis, ask, usual, self.axes) for name, axis in self.axes.items()}

    def shapes(self, sizes: Mapping[str, int]) -> Shapes:
        """The forms of all values at these sizes."""
        inputs = input_forms(self.variant, sizes)
        mask = inputs.get(b"attention_mask")
        values: dict[bytes, Any] = {}
        if mask is not None and not self._is_state(b"attention_mask"):
            values[b"attention_mask"] = np.ones(mask.shape, np.int64)
        return infer(self.file, inputs, sizes, values)

    @property
    def state_outputs(self) -> frozenset[bytes]:
        """Names of the outputs that are written where the state lies."""
        return frozenset(pair.output.encode() for pair in self.variant.state)

    def _is_state(self, name: bytes) -> bool:
        return any(pair.input.encode() == name for pair in self.variant.state)


@dataclass(frozen=True)
class PlannedBundle:
    """A bundle's graphs, as `backend` runs them. `usual` has the opt sizes of its image axes, by name."""

    path: str
    manifest: Manifest
    backend: str
    graphs: tuple[PlannedGraph, ...]
    usual: Mapping[str, int]

    @property
    def name(self) -> str:
        """As the manifest has it."""
        return self.manifest.name

    @property
    def is_text(self) -> bool:
        """Whether it keeps a cache of keys and values."""
        return any(graph.variant.state for graph in self.graphs)

    @property
    def tokenizer_bytes(self) -> int:
        """The size of its tokenizer's file; 0 where it has none."""
        entry = self.manifest.files.get("tokenizer/tokenizer.json")
        return entry.size_bytes if entry is not None else 0

    def settled(self, ask: Ask) -> Ask:
        """The question with what the bundle says put in place of None. InputError where it cannot be.

        An engine takes memory for the largest sizes that it is built for, so there these are what is put, not the usual ones.
        """
        is_engine = self.backend in ENGINES
        axes = {name: axis for graph in self.graphs for name, axis in graph.axes.items()}
        most = axes["cache"].max if self.is_text and "cache" in axes else None
        context = None if most is None else most if ask.context is None else ask.context
        if context is not None and most is not None and not 1 <= context <= most:
            raise InputError(f"{self.path}: a context of {context} was asked for; it was exported for at most {most}")
        pieces = BuildOptions.prefill if is_engine else PREFILL
        prompt = None if context is None else min(ask.prompt or pieces, context)
        usual = {name: axis.max if is_engine else axis.opt for name, axis in axes.items()}
        batch = ask.batch or (1 if self.is_text else usual.get("batch", 1))
        if not self.is_text:  # more images than that are made in several runs
            batch = min(batch, max((graph.axes["batch"].max for graph in self.graphs if "batch" in graph.axes), default=1))
        sides = {name: getattr(ask, name) or usual.get(name) for name in ("height", "width")}
        return replace(ask, context=context, prompt=prompt, batch=batch, **sides)


def read_bundle(path: Any, backend: str, *, has_kernels: bool = True, is_old: bool = False) -> PlannedBundle:
    """Read the graphs of the bundle at `path`; nothing of its weights but their sizes.

    Args:
        path: a bundle's folder or tar.
        backend: "onnxruntime" for a CPU, or that of a GPU.
        has_kernels: whether edgegen's kernels run where `backend` is on the CPU.
        is_old: whether the library of `backend` may be one that takes the older variants, where the bundle has them.

    Raises:
        BundleError: no bundle, or a graph that cannot be read.
    """
    with Bundle.open(path, verify=False) as bundle:  # sizes are wanted, and weights are never run from here
        graphs = tuple(_read_graph(bundle, name, backend, has_kernels, is_old) for name in bundle.manifest.graphs)
        axes = {name: axis.opt for graph in graphs for name, axis in graph.axes.items()}
        return PlannedBundle(str(path), bundle.manifest, backend, graphs, axes)


def _read_graph(bundle: Bundle, name: str, backend: str, has_kernels: bool, is_old: bool) -> PlannedGraph:
    known, table = bundle.manifest.graphs[name].variants, BACKENDS[backend]
    wanted = (*table.older, *table.variants) if is_old else table.variants
    chosen = next((variant for variant in wanted if variant in known), "canonical")
    files = bundle.graph(name, chosen)
    model = files.model
    taken = 0
    if backend == CPU and has_kernels:
        last = {spec.name: spec.axes[-1] for spec in files.variant.inputs if spec.dtype == "float32" and spec.axes}
        model, taken = exchange(model, {name: size for name, size in last.items() if isinstance(size, int)})
    try:
        file, run = read(files.model), read(model)
    except (IndexError, ValueError) as error:
        raise BundleError(f"{bundle.path}: {files.variant.path} cannot be read: {error}") from error
    return PlannedGraph(
        name, files.variant, files.axes, file, run.nodes, run.outputs, len(files.model), taken > 0, chosen in table.older
    )


class Run(NamedTuple):
    """A graph as onnxruntime runs it on the CPU: nodes in its order and with its copies, and what it knows.

    `made` are the forms of constants that it computes once, when the graph is loaded; `planned` are the values whose shape it
    knows beforehand, in terms of the inputs' axes, so that it can plan which of them share memory.
    """

    nodes: list[Node]
    forms: dict[bytes, Form]
    constants: dict[bytes, Constant]
    made: dict[bytes, Form]
    planned: frozenset[bytes]


def as_run(graph: PlannedGraph, shapes: Shapes) -> Run:
    """See `Run`."""
    forms, constants = dict(shapes.forms), dict(graph.file.constants)
    nodes, made = folded(graph.nodes, forms, constants)
    constants |= {name: Constant(form.dtype, form.shape) for name, form in made.items()}
    copied, forms = in_blocks(nodes, forms, constants)
    return Run(runtime_order(copied), forms, constants, made, _planned(copied, graph.file, constants))


def _planned(nodes: Sequence[Node], file: Graph, constants: Mapping[bytes, Constant]) -> frozenset[bytes]:
    """Values whose shape the file says, or follows from such by operators that onnxruntime knows: edgegen's say nothing."""
    known = {name for name, shape in file.shapes.items() if shape and b"" not in shape} | constants.keys() | {b""}
    for node in nodes:
        if node.domain != DOMAIN and known.issuperset(node.inputs):
            known |= {*node.outputs}
    return frozenset(known)


def folded(
    nodes: Sequence[Node], forms: Mapping[bytes, Form], constants: Mapping[bytes, Constant]
) -> tuple[list[Node], dict[bytes, Form]]:
    """The nodes that are left when all that constants alone decide is computed, and the forms of what was."""
    left, made = list[Node](), dict[bytes, Form]()
    for node in nodes:
        given = [name for name in node.inputs if name]
        is_fixed = bool(given) and all(name in constants or name in made for name in given)
        if is_fixed and node.operator != _DEQUANTIZE and all(name in forms for name in node.outputs if name):
            made |= {name: forms[name] for name in node.outputs if name}
        else:
            left.append(node)
    return left, made


def _size(name: str, axis: Axis, ask: Ask, usual: Mapping[str, int], axes: Mapping[str, Axis]) -> int:
    """The size of one axis for what is asked, in its bounds."""
    if name in ("cache", "total"):
        return _within(axis, ask.context or axis.opt)
    if name == "sequence" and "cache" in axes:
        return _within(axis, ask.prompt or axis.opt)
    if name == "kept":
        return axis.min
    if name == "batch":  # conversations each have a state of their own, one after the other in the graph
        return axis.opt if "cache" in axes else _within(axis, ask.batch or axis.opt)
    side = next((side for side in ("height", "width") if side in name), None)
    if side is None or side not in usual:
        return axis.opt
    wanted = getattr(ask, side) or usual[side]
    if ask.tile is not None:
        wanted = min(wanted, ask.tile)
    return _within(axis, round(wanted * axis.opt / usual[side]))


def _within(axis: Axis, size: int) -> int:
    """The nearest size that the axis may have; more is split, or cut into tiles."""
    return min(max(-(-size // axis.step) * axis.step, axis.min), axis.max)
