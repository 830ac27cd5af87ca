"""`card.md`: what a bundle is, for whoever finds it."""

from collections.abc import Mapping, Sequence

from edgegen.export.request import LEGACY
from edgegen.manifest import Manifest
from edgegen.proof.decoder_lm import Fidelity, Quality
from edgegen.proof.tensors import TensorFidelity, quality_lines


def card(manifest: Manifest, fidelity: Sequence[Fidelity], quality: Quality) -> str:
    """Markdown with the origin, the licence, and the tables of parity and quality."""
    parity = [
        f"| {f.variant} | {f.arithmetic} | {f.worst_logit:.1e} | {f.tolerance.logits:.0e} | {f.worst_cache:.1e} | "
        f"{f.greedy_match} of {f.greedy_length} ({f.ties} ties) |"
        for f in fidelity
    ]
    return "\n".join([
        *_head(manifest),
        "## Execution fidelity: the graph against PyTorch with the same weights",
        "",
        "| variant | computes with | worst logit | allowed | worst cache entry | greedy tokens |",
        "|---|---|---|---|---|---|",
        *parity,
        "",
        "## Quantization quality: these weights against the original ones",
        "",
        "| tokens | mean KL (nats) | limit | perplexity | ratio | greedy match |",
        "|---|---|---|---|---|---|",
        f"| {quality.tokens} | {quality.mean_kl:.4f} | {quality.limit_kl:g} | {quality.perplexity:.2f} | "
        f"{quality.perplexity_ratio:.3f} | {quality.greedy_match} of {quality.greedy_length} |",
        "",
    ])  # fmt: skip


def tensor_card(manifest: Manifest, fidelity: Sequence[TensorFidelity], quality: Mapping[str, float]) -> str:
    """As `card`, for a model that is proven tensor by tensor."""
    parity = [
        f"| {f.variant} | {f.arithmetic} | {len(f.errors)} | {f.worst.name} | {f.worst.largest:.1e} | "
        f"{f.tolerance.largest:.0e} | {f.errors[-1].psnr_db:.1f} |"
        for f in fidelity
    ]
    return "\n".join([
        *_head(manifest),
        "## Execution fidelity: the graphs against PyTorch with the same weights",
        "",
        "| variant | computes with | tensors | worst | its error | allowed | PSNR of the last (dB) |",
        "|---|---|---|---|---|---|---|",
        *parity,
        "",
        *quality_lines(quality),
        "",
    ])  # fmt: skip


def _head(manifest: Manifest) -> list[str]:
    source = manifest.source
    return [
        f"# {manifest.name}",
        "",
        f"A {manifest.family} bundle for edgegen, {manifest.precision}.",
        "",
        f"* source: {source.name} ({source.kind}), sha256 {source.sha256}",
        f"* licence of the weights: {source.licence}",
        f"* made with {', '.join(f'{name} {version}' for name, version in sorted(manifest.tools.items()))}",
        *_of_legacy(manifest),
        "",
    ]


def _of_legacy(manifest: Manifest) -> list[str]:
    """What the variant for older releases of TensorRT holds in another form."""
    if not any(LEGACY in graph.variants for graph in manifest.graphs.values()):
        return []
    forms = {
        "int8": "; its matrices are float16, twice as large: those releases read no blocks of 8 bits",
        "int4": "; the table of tokens is float16: those releases read 4 bits only in a product",
    }
    return [f"* {LEGACY}: the graphs in operators that TensorRT 10.3 and 10.13 read{forms.get(manifest.precision, '')}"]
