"""What a bundle takes in memory on one device and backend: weights, state, activations, arrays, and what runs them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgegen.graphs.nodes import Node
from edgegen.planner import arena, held, liveness, scratch
from edgegen.planner.graphs import CPU, ENGINES, Ask, PlannedBundle, PlannedGraph, as_run
from edgegen.planner.shapes import FLOAT32, Shapes, input_forms

MIB = 1 << 20

# Measured with Python 3.11, numpy 2, onnxruntime 1.32 on x86-64 Linux (benchmarks/plan_against_measured.py): a process that
# imported edgegen and numpy and ran a graph whose weights and values take nothing. Libraries' code counts as it is touched.
_PROCESS_BYTES = 64 * MIB
# What families import and touch beside it, measured likewise: tokenizers and jinja2; tokenizers alone.
_FAMILY_BYTES = {"decoder_lm": 11 * MIB, "diffusion": 5 * MIB}
_TOKENIZER_TIMES = 5  # tokenizer.json becomes tables: SmolLM2's 1.7 MB leave 8 MiB once the rest was trimmed
_NODE_BYTES = 11 << 10  # onnxruntime's own of one node and its kernel: 6 MiB of SmolLM2's 546 nodes

# Estimates, not measured for want of a GPU, nor taken from a source; low confidence. A CUDA context with the modules of
# TensorRT's kernels, and the libraries' host memory.
_CUDA_BYTES = 350 * MIB
_ENGINE_LIBRARY_BYTES = 250 * MIB
_GPU_PROVIDER_BYTES = 500 * MIB  # onnxruntime's CUDA provider with cuBLAS and cuDNN
# Engines of TensorRT-RTX 1.7.1 for compute capability 8.9, in MiB, beside the weights of the graph: SmolLM2 int4 107 to 74,
# fp16 407 to 257; a U-Net fp32 26 to 15, fp16 10 to 3; StyleGAN2 fp16 10 to 2; a VAE's decoder fp32 6 to 2; DCGAN fp32 14 to
# 14. With one of its two profiles SmolLM2 fp16 has 263: each wants half of the weights in an order of its own. TensorRT itself
# could not be asked.
_KERNEL_BYTES = 8 * MIB  # of each graph
_REORDERED_SHARE = 0.5  # of the weights, where an engine has a profile for prompts and one for steps


class Part(NamedTuple):
    """One line of a plan. `estimated`: it rests on what was not measured, as everything of a GPU's libraries does."""

    name: str
    size_bytes: int
    note: str = ""
    estimated: bool = False


@dataclass(frozen=True)
class Usage:
    """What one bundle takes: its parts beside what a process takes in any case.

    Attributes:
        parts: by what they are for, each of all graphs together.
        loading_bytes: what is needed while it is loaded, beyond what stays: an engine's file beside the engine.
        unknown: values whose shapes could not be found, and are not counted.
        values: how many there are.
    """

    parts: tuple[Part, ...]
    loading_bytes: int
    unknown: int
    values: int

    @property
    def size_bytes(self) -> int:
        """Of all parts, when everything has run."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def peak_bytes(self) -> int:
        """The most at once: while it is loaded, or when it has run."""
        weights = next(part.size_bytes for part in self.parts if part.name == "weights")
        return max(self.size_bytes, weights + self.loading_bytes)


class _GraphUsage(NamedTuple):
    weights: int
    state: int
    activations: int
    arrays: int
    structure: int
    unknown: int
    values: int
    note: str

    @property
    def numbers(self) -> tuple[int, ...]:
        """All but the note."""
        return self[:-1]


def runtime(backend: str, family: str) -> Part:
    """What a process takes before any bundle: interpreter, libraries, and a GPU's context."""
    size = _PROCESS_BYTES + _FAMILY_BYTES.get(family, 0)
    if backend == CPU:
        return Part("runtime", size, "Python, numpy, onnxruntime")
    if backend in ENGINES:
        return Part("runtime", size + _CUDA_BYTES + _ENGINE_LIBRARY_BYTES, "Python, CUDA context, TensorRT (estimated)", True)
    return Part("runtime", size + _CUDA_BYTES + _GPU_PROVIDER_BYTES, "Python, CUDA context, onnxruntime (estimated)", True)


def usage(bundle: PlannedBundle, ask: Ask, *, threads: int = 2) -> Usage:
    """What `bundle` takes for what is asked, once each of its graphs has run twice.

    Raises:
        InputError: a context beyond what it was exported for.
    """
    asked = bundle.settled(ask)
    found = [_graph_usage(bundle, graph, asked, threads) for graph in bundle.graphs]
    weights, state, activations, arrays, structure, unknown, values = (
        sum(one.numbers[place] for one in found) for place in range(7)
    )
    tokenizer = _TOKENIZER_TIMES * bundle.tokenizer_bytes
    notes = "; ".join(dict.fromkeys(one.note for one in found if one.note))
    on_gpu = bundle.backend != CPU
    parts = [
        Part("weights", weights, _weights_note(bundle), on_gpu),
        *([Part("cache", state, _cache_note(bundle, asked))] * bool(state)),
        Part("activations", activations, notes, on_gpu),
        Part("arrays", arrays, "inputs and outputs"),
        Part("model", structure + tokenizer, "graph" + (" and tokenizer" if tokenizer else "")),
    ]
    loading = weights if bundle.backend in ENGINES else 0
    return Usage(tuple(parts), loading, unknown, values)


def _graph_usage(bundle: PlannedBundle, graph: PlannedGraph, ask: Ask, threads: int) -> _GraphUsage:
    sizes = graph.sizes(ask, bundle.usual)
    found = _sized(graph, tuple(sorted(sizes.items())), bundle.backend, threads)
    return found._replace(state=found.state * (ask.batch or 1))


@functools.lru_cache(maxsize=256)
def _sized(graph: PlannedGraph, axes: tuple[tuple[str, int], ...], backend: str, threads: int) -> _GraphUsage:
    """What one graph takes at these sizes of its axes, with one state. Remembered: looking for limits asks often."""
    sizes = dict(axes)
    shapes = graph.shapes(sizes)
    state_names = {name.encode() for pair in graph.variant.state for name in (pair.input, pair.output)}
    inputs = input_forms(graph.variant, sizes)
    copies = 2 if graph.is_legacy else 1
    state = copies * sum(form.size_bytes for name, form in inputs.items() if name in state_names)
    arrays = sum(form.size_bytes for name, form in inputs.items() if name not in state_names)
    results = sum(shapes.forms[name].size_bytes for name in graph.outputs - state_names if name in shapes.forms)
    if not state_names:
        results *= 2  # images become pixels in a copy (pipelines/images.py, to_uint8)
    weights, activations, note = _on_cpu(graph, shapes, threads) if backend == CPU else _on_gpu(graph, shapes, backend)
    if backend in ENGINES:
        weights += _KERNEL_BYTES + round(weights * _REORDERED_SHARE) * bool(state_names)
    values = sum(bool(name) for node in graph.file.nodes for name in node.outputs)
    structure = len(graph.nodes) * _NODE_BYTES
    return _GraphUsage(weights, state, activations, arrays + results, structure, len(shapes.unknown), values, note)


def _on_cpu(graph: PlannedGraph, shapes: Shapes, threads: int) -> tuple[int, int, str]:
    run = as_run(graph, shapes)
    weights = held.on_cpu(run.nodes, run.constants, run.made).size_bytes
    events = liveness.events(
        run.nodes,
        run.forms,
        graph.outputs,
        elsewhere=graph.state_outputs,
        scratch=lambda node: scratch.scores_bytes(node, run.forms),
        planned=run.planned,
    )
    has_pattern = not graph.variant.state  # as OrtSession sets it
    touched = arena.touched_bytes(events, graph.outputs, has_pattern=has_pattern)
    note = "twice: onnxruntime's second run takes a block of its own" if has_pattern else ""
    return weights, touched + scratch.kernel_bytes(run.nodes, run.forms, threads), note


def _on_gpu(graph: PlannedGraph, shapes: Shapes, backend: str) -> tuple[int, int, str]:
    """Weights as in the graph, and the peak of its values: fusion makes that less, tactics' workspace more.

    TensorRT has kernels for attention in float16; in float32 it is decomposed, and keeps a table of scores. It multiplies by
    weights in few bits as they are; onnxruntime makes them whole first, unless their variant has products for that.
    """
    weights = held.as_in_file(graph.nodes, graph.file.constants).size_bytes
    from_weights = {name for node in graph.nodes if node.operator == b"DequantizeLinear" for name in node.outputs}
    forms = {name: form for name, form in shapes.forms.items() if name not in from_weights or backend not in ENGINES}

    def scores(node: Node) -> int:
        query = forms.get(node.inputs[0]) if node.inputs else None
        return scratch.scores_bytes(node, forms) if query is not None and query.dtype == FLOAT32 else 0

    events = liveness.events(graph.nodes, forms, graph.outputs, elsewhere=graph.state_outputs, scratch=scores)
    size = "for the largest it is built for" if backend in ENGINES else "for what is asked"
    return weights, liveness.peak(events).size_bytes, f"{size}; without fusion and workspace"


def _cache_note(bundle: PlannedBundle, asked: Ask) -> str:
    times = f", {asked.batch} times" if asked.batch != 1 else ""
    is_legacy = any(graph.is_legacy for graph in bundle.graphs)
    return f"context of {asked.context}{times}" + (", held twice by a TensorRT older than 10.15" if is_legacy else "")


def _weights_note(bundle: PlannedBundle) -> str:
    if bundle.backend in ENGINES:
        return f"{bundle.manifest.precision}, as an engine holds them, with its kernels"
    if bundle.backend != CPU:
        return f"{bundle.manifest.precision}, as in the graph"
    return "packed" + (" for edgegen's kernels" if any(graph.has_kernels for graph in bundle.graphs) else "")


def together(usages: Sequence[Usage]) -> int:
    """The most that bundles take that are loaded one after the other, and all stay: a load beside those that are there."""
    most = held_bytes = 0
    for one in usages:
        most = max(most, held_bytes + one.peak_bytes)
        held_bytes += one.size_bytes
    return most


def one_after_the_other(usages: Sequence[Usage]) -> int:
    """The most that they take where each is closed before the next is loaded."""
    return max((one.peak_bytes for one in usages), default=0)


def best_order(usages: Sequence[Usage]) -> list[int]:
    """The order of loading with the least peak: those whose load needs most beyond what stays come first."""
    return sorted(range(len(usages)), key=lambda place: usages[place].size_bytes - usages[place].peak_bytes)
