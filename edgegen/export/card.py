"""`card.md`: what a bundle is, for whoever finds it."""

from collections.abc import Sequence

from edgegen.manifest import Manifest
from edgegen.proof import Fidelity, Quality


def card(manifest: Manifest, fidelity: Sequence[Fidelity], quality: Quality) -> str:
    """Markdown with the origin, the licence, and the tables of parity and quality."""
    source = manifest.source
    parity = [
        f"| {f.variant} | {f.arithmetic} | {f.worst_logit:.1e} | {f.tolerance.logits:.0e} | {f.worst_cache:.1e} | "
        f"{f.greedy_match} of {f.greedy_length} ({f.ties} ties) |"
        for f in fidelity
    ]
    return "\n".join([
        f"# {manifest.name}",
        "",
        f"A {manifest.family} bundle for edgegen, {manifest.precision}.",
        "",
        f"* source: {source.name} ({source.kind}), sha256 {source.sha256}",
        f"* licence of the weights: {source.licence}",
        f"* made with {', '.join(f'{name} {version}' for name, version in sorted(manifest.tools.items()))}",
        "",
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
