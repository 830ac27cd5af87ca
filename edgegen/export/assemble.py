"""From a family's model to a published bundle: record, capture, lower, write, prove. For every family but language models."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import torch

from edgegen.bundle import Bundle, BundleWriter
from edgegen.errors import ExportError
from edgegen.export.capture_module import STEPS, capture_part
from edgegen.export.card import tensor_card
from edgegen.export.footprint import row_bytes
from edgegen.export.halves import compute_in_half, store_in_half
from edgegen.export.lower_legacy import to_legacy
from edgegen.export.parts import Graphed, Model
from edgegen.export.prepare import fold_batch_norms, round_weights
from edgegen.export.report import Progress, TensorExportReport
from edgegen.export.request import CUDA, LEGACY, Request
from edgegen.export.soundness import check_answers, check_rows, check_weights
from edgegen.export.substitutes import reference_operators
from edgegen.export.write import write_variants
from edgegen.manifest import FORMAT, Graph, Manifest, Source, Variant
from edgegen.proof.npz import write_npz
from edgegen.proof.tensors import (
    TOLERANCES,
    Arithmetic,
    TensorError,
    TensorFidelity,
    TensorProof,
    TensorTolerance,
    replay,
    require,
)
from edgegen.tensors import Axis, Tensors

PRECISIONS = ("fp32", "fp16")
_SAME_DB = 80.0  # what float32 leaves between two orders of the same sums is far above


def export_model(request: Request, model: Model, progress: Progress) -> TensorExportReport:
    """Make the bundle of `model`; the proof is part of it.

    Raises:
        CaptureError, ExportError: it cannot be captured or written, or is not sound: NaN, or images that depend on others.
        ProofError: the graphs differ from PyTorch by more than is allowed.
    """
    if request.precision not in PRECISIONS:
        raise ExportError(f"{model.family} models are exported in {' or '.join(PRECISIONS)}, not in {request.precision}")
    if CUDA in request.variants:
        raise ExportError(f"the variant {CUDA} is for language models; {model.family} models run there as they are")
    with BundleWriter(request.output, force=request.force) as writer, torch.no_grad(), reference_operators():
        progress("reference", 0.0)
        recorded, quality = _record(model, request)
        graphs, axes, rows = {}, {}, {}
        for index, (name, part) in enumerate(model.parts.items()):
            progress("capture", index / len(model.parts))
            captured = capture_part(name, part, model.axes)
            check_rows(name, part, model.axes)  # a branch on the data is told better by what captures it
            rows[name] = row_bytes(name, part, model.axes)
            axes[name] = _stepped(model.axes, captured.meta[STEPS])
            graphs[name] = _variants(captured, name, request)
        progress("write", 0.0)
        written = {name: write_variants(variants, name, writer.directory) for name, variants in graphs.items()}
        del graphs
        manifest = _write_rest(writer.directory, request, model, _graphs(written, axes, rows), recorded, quality)
        fidelity = _prove(writer, manifest, progress)
        card = tensor_card(manifest, fidelity, quality).replace("against PyTorch", f"against {_reference_of(model)}")
        (writer.directory / "card.md").write_text(card, encoding="utf-8")
        path = writer.publish(manifest)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return TensorExportReport(path, request.precision, tuple(model.parts), size, fidelity, quality)


def _record(model: Model, request: Request) -> tuple[tuple[Tensors, Tensors], dict[str, float]]:
    """PyTorch's answers with the weights that the bundle will hold, and how far they are from the original weights'."""
    check_weights(model.parts)
    inputs, outputs = model.reference()
    check_answers(outputs, _reference_of(model))
    if request.precision == "fp32":
        return (inputs, outputs), {}
    _fold_batch_norms(model, outputs)
    for part in model.parts.values():
        round_weights(part.module)
    check_weights(model.parts, "float16 goes to 65504: export them as fp32")
    again, rounded = model.reference()
    check_answers(rounded, f"{_reference_of(model)} with weights in float16")
    psnr_db = {name: TensorError.between(name, rounded[name], outputs[name]).psnr_db for name in outputs}
    return (again, rounded), {name: value for name, value in psnr_db.items() if value != float("inf")}


def _fold_batch_norms(model: Model, outputs: Tensors) -> None:
    """Before weights are rounded: a graph that keeps them apart multiplies and adds once for each. Undone where it is wrong."""
    undone = [undo for part in model.parts.values() if (undo := fold_batch_norms(part.module))]
    if not undone:
        return
    _, folded = model.reference()
    if any(TensorError.between(name, folded[name], outputs[name]).psnr_db < _SAME_DB for name in outputs):
        for undo in undone:
            undo()


def _variants(captured: ir.Model, name: str, request: Request) -> dict[str, ir.Model]:
    found = {"canonical": captured}
    if request.precision != "fp32":
        found["onnxruntime"] = captured.clone()
        wide = {str(value.name) for value in (*captured.graph.inputs, *captured.graph.outputs)}
        compute_in_half(captured.graph, wide)
        store_in_half(found["onnxruntime"].graph)
    if LEGACY in request.variants:
        found[LEGACY] = captured.clone()
        to_legacy(found[LEGACY], name)
    return found


def _arithmetic(precision: str, extra: Sequence[str]) -> dict[str, Arithmetic]:
    on_gpu: Arithmetic = "float32" if precision == "fp32" else "float16"
    found: dict[str, Arithmetic] = {"canonical": on_gpu, **dict.fromkeys(extra, on_gpu)}
    return found if precision == "fp32" else found | {"onnxruntime": "float32"}


def _write_rest(
    directory: Path,
    request: Request,
    model: Model,
    graphs: dict[str, Graph],
    recorded: tuple[Tensors, Tensors],
    quality: dict[str, float],
) -> Manifest:
    """Everything beside the graphs. Returns the manifest, its files still to be listed."""
    source = request.source
    arithmetic = _arithmetic(request.precision, request.variants)
    proof = TensorProof("proof/inputs.npz", "proof/outputs.npz", arithmetic, _tolerances(model), quality)
    files = dict(model.files) | {
        "proof/proof.json": msgspec.json.format(msgspec.json.encode(proof, order="sorted"), indent=2),
        proof.inputs: write_npz(recorded[0]),
        proof.outputs: write_npz(recorded[1]),
    }
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    settings: Any = msgspec.to_builtins(model.settings)
    return Manifest(
        format=FORMAT,
        name=request.name,
        family=model.family,
        precision=request.precision,
        source=Source(source.kind, source.name, source.sha256, source.licence),
        tools={name: metadata.version(name) for name in ("edgegen", "torch", "onnx-ir", "onnxruntime")},
        graphs=graphs,
        settings=settings,
        proof="proof/proof.json",
        files={},
    )


def _reference_of(model: Model) -> str:
    """Whose answers were recorded."""
    from_files = any(isinstance(part.module, Graphed) for part in model.parts.values())
    return "the original ONNX file in onnxruntime" if from_files else "PyTorch"


def _tolerances(model: Model) -> dict[str, TensorTolerance]:
    """What is allowed, and why; says so where the reference is not PyTorch."""
    if (reference := _reference_of(model)) == "PyTorch":
        return dict(TOLERANCES)
    said = f"; the reference is {reference}, not PyTorch"
    return {name: TensorTolerance(t.largest, t.mean, t.reason + said) for name, t in TOLERANCES.items()}


def _stepped(axes: Mapping[str, Axis], steps: Mapping[str, int]) -> dict[str, Axis]:
    """The axes, with the multiples that one graph asks for."""
    return {name: msgspec.structs.replace(axis, step=steps.get(name, axis.step)) for name, axis in axes.items()}


def _graphs(
    written: Mapping[str, dict[str, Variant]], axes: Mapping[str, Mapping[str, Axis]], rows: Mapping[str, int]
) -> dict[str, Graph]:
    """The manifest's entries: what was written, with the bounds of the axes that it names, and what a row takes."""
    return {
        name: Graph(variants, {axis: axes[name][axis] for axis in _axes_of(variants)}, rows[name])
        for name, variants in written.items()
    }


def _axes_of(variants: Mapping[str, Variant]) -> list[str]:
    specs = [spec for variant in variants.values() for spec in (*variant.inputs, *variant.outputs)]
    return sorted({axis for spec in specs for axis in spec.axes if isinstance(axis, str)})


def _prove(writer: BundleWriter, manifest: Manifest, progress: Progress) -> tuple[TensorFidelity, ...]:
    """Replay the proof on the written files, as a device would read them, for every variant."""
    writer.seal(manifest)
    variants = sorted({name for graph in manifest.graphs.values() for name in graph.variants}, reverse=True)
    found = []
    with Bundle.open(writer.directory) as bundle:
        for index, variant in enumerate(variants):
            progress("prove", index / len(variants))
            found.append(replay(bundle, "onnxruntime", variant).fidelity)
    for fidelity in found:
        require(fidelity)
    progress("prove", 1.0)
    return tuple(found)
