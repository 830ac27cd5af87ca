"""The export half of decoder language models: one graph, `decoder`, with its cache as state.

Stages: load the original, measure it, convert its weights, measure again (quality), record the reference, capture, lower,
write, and replay the proof on what was written (fidelity). Only then is the bundle published.
"""

import gc
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from edgegen.backends import open_session
from edgegen.bundle import Bundle, BundleWriter
from edgegen.errors import ExportError, ProofError
from edgegen.export import lower, lower_cuda, lower_legacy, lower_ort, passes, reference
from edgegen.export.capture import Captured, capture, require_attention
from edgegen.export.card import card
from edgegen.export.exact import exact_fidelity
from edgegen.export.genai import genai_config
from edgegen.export.report import ExportReport, Progress
from edgegen.export.request import CUDA, LEGACY, Request
from edgegen.export.sources import Checkpoint
from edgegen.export.sources.base import quiet
from edgegen.export.texts import PROSE
from edgegen.export.weights import WeightTable, convert
from edgegen.export.write import write_variants
from edgegen.manifest import FORMAT, Graph, Manifest, Precision, Source, Variant
from edgegen.pipelines.decoder_lm import DecoderLMSettings
from edgegen.proof.decoder_lm import TOLERANCES, Arithmetic, Fidelity, Proof, Quality, require, verify
from edgegen.proof.reference import Reference
from edgegen.tensors import Axis

GRAPH = "decoder"
DEFAULT_CONTEXT = 8192
# Mean KL in nats of the next token against the original. int4 from round-to-nearest costs small models most.
LIMITS: Mapping[str, float] = {"fp32": 1e-6, "fp16": 1e-3, "int8": 2e-2, "int4": 0.5}


def export(request: Request, progress: Progress) -> ExportReport:
    """Export a causal language model to a bundle.

    Raises:
        SourceError, CaptureError, ExportError: it cannot be read, captured, quantized or written.
        ProofError: the graph differs from PyTorch, or the quantized weights from the original, by more than is allowed.
    """
    checkpoint: Checkpoint = request.source
    context = _context_length(checkpoint.config, request.context_length)
    with quiet(), BundleWriter(request.output, force=request.force) as writer:
        progress("load", 0.0)
        model = checkpoint.load()
        require_attention(model)
        tokens = _text_tokens(checkpoint, context)
        table, quality = _convert(model, tokens, request, progress)
        progress("reference", 0.0)
        recorded = reference.record(model, tokens, context)
        progress("capture", 0.0)
        captured = capture(model, context)
        del model
        models = _lower(captured, table, request.variants, progress)
        quantized = len(table.quantized)
        matrices = len(table.matrices)
        del table
        gc.collect()
        progress("write", 0.0)
        variants = write_variants(models, GRAPH, writer.directory)
        del models, captured.model
        gc.collect()
        manifest = _write_rest(writer.directory, request, context, variants, captured, recorded, quality)
        fidelity = _prove(writer, manifest, variants, progress)
        (writer.directory / "card.md").write_text(card(manifest, fidelity, quality), encoding="utf-8")
        path = writer.publish(manifest)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ExportReport(path, request.precision, matrices, quantized, size, fidelity, quality)


def _context_length(config: Any, wanted: int | None) -> int:
    longest = min(int(getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT), _one_table(config))
    if wanted is None:
        return min(longest, DEFAULT_CONTEXT)
    if not 16 <= wanted <= longest:
        raise ExportError(f"--context-length {wanted}: this model has positions for 16 to {longest} tokens")
    return wanted


def _one_table(config: Any) -> int:
    """How many positions one rotary table serves: some models change theirs when a text grows beyond the original length."""
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(original) if rope.get("rope_type") in ("longrope", "dynamic") and original else sys.maxsize


def _text_tokens(checkpoint: Checkpoint, context: int) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_files["tokenizer.json"].decode())
    tokens = [id_ for id_ in tokenizer.encode(PROSE).ids if id_ < checkpoint.config.vocab_size]
    return tokens[: min(reference.QUALITY_TOKENS, context)]


def _convert(model: Any, tokens: list[int], request: Request, progress: Progress) -> tuple[WeightTable, Quality]:
    progress("original", 0.0)
    limit = request.limit if request.limit is not None else LIMITS[request.precision]
    original = reference.answers(model, tokens)
    table = convert(model, request.precision, lambda share: progress("weights", share))
    progress("quality", 0.0)
    same = request.precision == "fp32"
    quality = reference.quality(original, original if same else reference.answers(model, tokens), limit)
    if not quality.mean_kl <= limit:
        raise ProofError(
            f"{request.precision} weights differ from the original by a mean KL of {quality.mean_kl:.3g} nats, "
            f"more than {limit:g} (perplexity x {quality.perplexity_ratio:.3f}); use a higher precision, or accept it: --limit"
        )
    return table, quality


def _lower(captured: Captured, table: WeightTable, extra: Sequence[str], progress: Progress) -> dict[str, ir.Model]:
    progress("lower", 0.0)
    canonical = captured.model
    passes.keep_last_positions(canonical.graph)
    ort = canonical.clone()
    cuda = canonical.clone() if CUDA in extra else None
    lower_ort.to_onnxruntime(ort, table, captured.windows)
    models = {"canonical": canonical, "onnxruntime": ort}
    if cuda is not None:
        lower_cuda.to_onnxruntime_cuda(cuda, table, captured.windows)
        models[CUDA] = cuda
    lower.to_canonical(canonical, table)
    if LEGACY in extra:
        models[LEGACY] = canonical.clone()
        lower_legacy.to_legacy(models[LEGACY], GRAPH, captured.heads)
    return models


def _arithmetic(precision: Precision, extra: Sequence[str]) -> dict[str, Arithmetic]:
    on_cpu: Arithmetic = "int8-activations" if precision in ("int8", "int4") else "float32"
    on_gpu: Arithmetic = "float32" if precision == "fp32" else "float16"
    return {"canonical": on_gpu, "onnxruntime": on_cpu, **dict.fromkeys(extra, on_gpu)}


def _write_rest(
    directory: Path,
    request: Request,
    context: int,
    variants: dict[str, Variant],
    captured: Captured,
    recorded: Reference,
    quality: Quality,
) -> Manifest:
    """Everything beside the graphs. Returns the manifest, its files still to be listed."""
    checkpoint: Checkpoint = request.source
    settings = _settings(checkpoint, context, captured.vocab_size)
    _write_tokenizer(directory, checkpoint, settings)
    layers, kv_heads, dim = captured.cache_shape
    config = genai_config(settings, variants["onnxruntime"], layers, kv_heads, dim, captured.heads)
    (directory / "genai_config.json").write_bytes(config)
    proof = Proof("proof/reference.npz", _arithmetic(request.precision, request.variants), dict(TOLERANCES), quality)
    (directory / "proof").mkdir()
    (directory / "proof" / "proof.json").write_bytes(msgspec.json.format(msgspec.json.encode(proof, order="sorted"), indent=2))
    (directory / proof.reference).write_bytes(recorded.to_bytes())
    axes = {
        "sequence": Axis(1, 1, context),
        "cache": Axis(1, context, context),
        "kept": Axis(1, 1, context),
        "total": Axis(1, context, context),
    }
    return Manifest(
        format=FORMAT,
        name=request.name,
        family="decoder_lm",
        precision=request.precision,
        source=Source(checkpoint.kind, checkpoint.name, checkpoint.sha256, checkpoint.licence),
        tools={name: metadata.version(name) for name in ("edgegen", "torch", "transformers", "onnx-ir", "onnxruntime")},
        graphs={GRAPH: Graph(variants, axes)},
        settings=msgspec.to_builtins(settings),
        proof="proof/proof.json",
        files={},
    )


def _settings(checkpoint: Checkpoint, context: int, vocab_size: int) -> DecoderLMSettings:
    return DecoderLMSettings(
        vocab_size=vocab_size,
        context_length=context,
        eos_token_ids=checkpoint.eos_token_ids,
        bos_token_id=checkpoint.bos_token_id,
        pad_token_id=checkpoint.pad_token_id,
        chat_template="tokenizer/chat_template.jinja" if checkpoint.chat_template else None,
        special_tokens=dict(checkpoint.special_tokens),
    )


def _write_tokenizer(directory: Path, checkpoint: Checkpoint, settings: DecoderLMSettings) -> None:
    """Below `tokenizer/`, and at the top for onnxruntime-genai, which looks there."""
    (directory / "tokenizer").mkdir()
    for name, content in checkpoint.tokenizer_files.items():
        (directory / "tokenizer" / name).write_bytes(content)
        (directory / name).write_bytes(content)
    if settings.chat_template is not None and checkpoint.chat_template is not None:
        (directory / settings.chat_template).write_text(checkpoint.chat_template, encoding="utf-8")
        (directory / "chat_template.jinja").write_text(checkpoint.chat_template, encoding="utf-8")


def _prove(
    writer: BundleWriter, manifest: Manifest, variants: Mapping[str, Variant], progress: Progress
) -> tuple[Fidelity, ...]:
    """Replay the proof on the written files, as a device would read them, for every variant."""
    writer.seal(manifest)
    found = []
    with Bundle.open(writer.directory) as bundle:
        for index, variant in enumerate(sorted(variants, reverse=True)):
            progress("prove", index / len(variants))
            # Unfused integer weights are folded once at load, or a graph for a GPU would expand them at every step.
            config = {"session.disable_quant_qdq": "1"} if variant != "onnxruntime" else None
            with open_session("onnxruntime", bundle, GRAPH, variant=variant, config=config) as session:
                fidelity = verify(bundle, session, variant, "onnxruntime").fidelity
            found.append(fidelity)
            if fidelity.arithmetic == "int8-activations":
                found.append(exact_fidelity(bundle, writer.directory, GRAPH, variant))
    for fidelity in found:
        require(fidelity)
    progress("prove", 1.0)
    return tuple(found)
