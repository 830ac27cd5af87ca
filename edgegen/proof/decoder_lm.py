"""The proof of a decoder language model: through its cache, token by token.

Two questions are kept apart:

*Execution fidelity*: does the graph, on this backend, compute what PyTorch computes with the *same*, already quantized,
weights? The reference is recorded at export and replayed here, through the cache: a prefill, teacher-forced steps, a second
prefill on the filled cache, and free greedy generation.

*Quantization quality*: how far are those weights from the original ones? It was measured at export, against the original, and
is only reported here.

The reference keeps, for every position, `logsumexp` over the whole vocabulary and the logits of some columns (the likeliest
and an even spread), and for some positions every layer's keys and values: so a failure names the first tensor that went wrong.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.backends import open_session, variant_for
from edgegen.bundle import Bundle
from edgegen.errors import BundleError, InputError, ProofError
from edgegen.kv_cache import Context, KVCache
from edgegen.proof.files import MAX_PROOF_BYTES, MAX_REFERENCE_BYTES, decode_json, read_bounded
from edgegen.proof.reference import Reference

if TYPE_CHECKING:
    from edgegen.backends.base import Session

GRAPH = "decoder"
Arithmetic = Literal["float32", "float16", "int8-activations"]


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest error that is allowed.

    `logits`: of any position, as a share of its largest logit; `mean`: of that share over all positions; `cache`: of an entry,
    as a share of the largest entry of its tensor.
    """

    logits: float
    mean: float
    cache: float
    reason: str


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quantized weights against the original ones, both in PyTorch, on a fixed text.

    `mean_kl` is in nats per token; `perplexity_ratio` is quantized / original; `greedy_match` counts the first tokens of a
    greedy continuation that agree, of `greedy_length`. `limit_kl` is the limit that was applied to `mean_kl` at export.
    """

    tokens: int
    mean_kl: float
    max_kl: float
    perplexity: float
    perplexity_ratio: float
    greedy_match: int
    greedy_length: int
    limit_kl: float


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`proof/proof.json`. `arithmetic` says, by variant, what the graph computes with: it decides the tolerance."""

    reference: str
    arithmetic: dict[str, Arithmetic]
    tolerances: dict[str, Tolerance]
    quality: Quality


# ------------------------------------------------------------------------------------------------ replay


@dataclass(frozen=True)
class Fidelity:
    """How one graph did. `failure` is None, or says what differs and where; `ties` were forgiven."""

    variant: str
    arithmetic: str
    worst_logit: float
    worst_logit_at: str
    mean_logit: float
    worst_cache: float
    worst_cache_at: str
    ties: int
    greedy_match: int
    greedy_length: int
    tolerance: Tolerance
    failure: str | None

    def lines(self) -> list[str]:
        """For people."""
        verdict = "ok" if self.failure is None else "FAILED"
        t = self.tolerance
        return [
            f"execution fidelity of {self.variant} ({self.arithmetic}): {verdict}",
            f"  logits differ by {self.worst_logit:.1e} at most ({self.worst_logit_at}), {self.mean_logit:.1e} on average; "
            f"allowed {t.logits:g} and {t.mean:g}",
            f"  cache differs by {self.worst_cache:.1e} at most ({self.worst_cache_at}); allowed {t.cache:g}",
            f"  greedy: {self.greedy_match} of {self.greedy_length} tokens, {self.ties} ties; why this tolerance: {t.reason}",
            *([f"  {self.failure}"] if self.failure is not None else []),
        ]


class _Worst:
    """The largest error, and where it was."""

    def __init__(self) -> None:
        self.error, self.where = 0.0, "-"
        self.first: str | None = None
        self._sum, self._count = 0.0, 0

    @property
    def mean(self) -> float:
        return self._sum / max(self._count, 1)

    def see(self, errors: NDArray[np.floating[Any]], name: Callable[[int], str], tolerance: float) -> None:
        if not errors.size:
            return
        self._sum, self._count = self._sum + float(errors.sum()), self._count + errors.size
        worst = int(errors.argmax()) if np.isfinite(errors).all() else int(np.argmin(np.isfinite(errors)))
        if not errors[worst] <= self.error:
            self.error, self.where = float(errors[worst]), name(worst)
        beyond = np.flatnonzero(~(errors <= tolerance))
        if self.first is None and beyond.size:
            first = int(beyond[0])
            self.first = f"{name(first)} differs by {errors[first]:.2e}, allowed {tolerance:.0e}"


def replay(session: "Session", reference: Reference, variant: str, arithmetic: str, tolerance: Tolerance) -> Fidelity:
    """Run the reference's tokens through `session` and compare: of the free generation, as much as its cache has room for.

    Raises InputError where they do not fit the graph, ContextFullError where the cache has no room for the fixed ones.
    """
    fixed = len(reference.prompt) + len(reference.forced) + len(reference.second)
    room = Context(session, fixed + len(reference.greedy)).length - fixed
    reference = replace(reference, greedy=reference.greedy[: max(room, 0)])
    total = fixed + len(reference.greedy)
    with KVCache(session, total, total) as kv:
        logits, ties, wrong = _Worst(), 0, None
        for start, got in _fixed_positions(kv, reference):
            errors = _logit_errors(got, reference, start)
            logits.see(errors, lambda i, at=start: _position_name(reference, at + i), tolerance.logits)  # type: ignore[misc]
            tied, far = _flips(got, reference, start, tolerance.logits)
            ties, wrong = ties + tied, wrong or far
        cache = _cache_errors(kv, reference, tolerance.cache)
        match, greedy_failure, greedy_ties = _greedy(kv, reference, tolerance.logits, logits)
    drift = f"logits differ by {logits.mean:.1e} on average, allowed {tolerance.mean:g}"
    drifted = None if logits.mean <= tolerance.mean else drift
    return Fidelity(
        variant=variant,
        arithmetic=arithmetic,
        worst_logit=logits.error,
        worst_logit_at=logits.where,
        mean_logit=logits.mean,
        worst_cache=cache.error,
        worst_cache_at=cache.where,
        ties=ties + greedy_ties,
        greedy_match=match,
        greedy_length=len(reference.greedy),
        tolerance=tolerance,
        failure=cache.first or logits.first or wrong or drifted or greedy_failure,
    )


def _fixed_positions(kv: KVCache, reference: Reference) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Prefill, teacher-forced steps, second prefill: (first position, logits [token, vocab])."""
    position = 0
    yield position, kv.append_all(reference.prompt.tolist())
    position += len(reference.prompt)
    for token in reference.forced.tolist():
        yield position, kv.append([token])[None]  # the very path of generation
        position += 1
    yield position, kv.append_all(reference.second.tolist())


def _position_name(reference: Reference, position: int) -> str:
    for name, part in (("prefill", reference.prompt), ("decode", reference.forced), ("second prefill", reference.second)):
        if position < len(part):
            return f"logits, {name}, {'step' if name == 'decode' else 'position'} {position}"
        position -= len(part)
    return f"logits, free generation, step {position}"


def _logit_errors(got: NDArray[np.float32], reference: Reference, start: int) -> NDArray[np.float32]:
    """For each position: the largest difference of a recorded logit or of logsumexp, over the largest recorded logit."""
    rows = slice(start, start + len(got))
    wanted = reference.logits[rows]
    differences = np.abs(np.take_along_axis(got, reference.columns[rows].astype(np.int64), axis=1) - wanted).max(axis=1)
    differences = np.maximum(differences, np.abs(logsumexp(got) - reference.logsumexp[rows]))
    errors: NDArray[np.float32] = differences / np.maximum(np.abs(wanted).max(axis=1), 1e-6)
    return errors


def logsumexp(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(sum(exp(logits))) over the last axis, in float64 inside: float32 [position] from [position, vocab]."""
    top = logits.max(axis=-1, keepdims=True)
    total: NDArray[np.float64] = np.exp(logits - top).sum(axis=-1, dtype=np.float64)
    found: NDArray[np.float32] = (np.log(total) + top[..., 0]).astype(np.float32)
    return found


def _flips(got: NDArray[np.float32], reference: Reference, start: int, tolerance: float) -> tuple[int, str | None]:
    """Positions whose best token is another one than PyTorch's: how many are ties, and the first that is not."""
    rows = slice(start, start + len(got))
    best = np.take_along_axis(reference.columns[rows], reference.logits[rows].argmax(axis=1)[:, None], axis=1)[:, 0]
    found = got.argmax(axis=1)
    flipped = np.flatnonzero(found != best)
    far = [int(i) for i in flipped if not _is_tie(reference, start + int(i), tolerance)]
    wrong = (
        f"{_position_name(reference, start + far[0])}: the best token is {found[far[0]]}, not {best[far[0]]}" if far else None
    )
    return len(flipped) - len(far), wrong


def _is_tie(reference: Reference, row: int, tolerance: float) -> bool:
    """Whether the best two logits are so close that errors within the tolerance may exchange them: each may move by it."""
    return float(reference.gap[row]) <= 2 * tolerance * float(np.abs(reference.logits[row]).max())


def _cache_errors(kv: KVCache, reference: Reference, tolerance: float) -> _Worst:
    worst = _Worst()
    for layer in range(len(reference.keys)):
        for part, wanted in (("key", reference.keys[layer]), ("value", reference.values[layer])):
            got = kv.read(f"past_key_values.{layer}.{part}")[0].transpose(1, 0, 2)[reference.cache_positions]
            errors = np.abs(got.astype(np.float32) - wanted).reshape(len(wanted), -1).max(axis=1)
            scale = max(float(np.abs(wanted).max()), 1e-6)
            names = [f"present.{layer}.{part}, position {p}" for p in reference.cache_positions]
            worst.see(errors / scale, names.__getitem__, tolerance)
    return worst


def _greedy(kv: KVCache, reference: Reference, tolerance: float, worst: _Worst) -> tuple[int, str | None, int]:
    """Generate freely from the last fixed position. Returns the matching tokens, the failure, and whether a tie ended it.

    A step whose best two logits are closer in the reference than twice the tolerance may go either way: from there on the two
    texts are different ones, and there is nothing left to compare.
    """
    start = len(reference.prompt) + len(reference.forced) + len(reference.second)
    # The logits of the last fixed position chose greedy[0]; each generated token's logits choose the next one.
    for step, token in enumerate(reference.greedy[:-1]):
        row = start + step
        got = kv.append([int(token)])[None]
        worst.see(_logit_errors(got, reference, row), lambda _, at=row: _position_name(reference, at), tolerance)  # type: ignore[misc]
        if int(got[0].argmax()) != int(reference.greedy[step + 1]):
            if _is_tie(reference, row, tolerance):
                return step + 1, None, 1
            return (
                step + 1,
                f"free generation: token {step + 1} is {int(got[0].argmax())}, not {int(reference.greedy[step + 1])}",
                0,
            )
    return len(reference.greedy), None, 0


# ------------------------------------------------------------------------------------------------ of a bundle


@dataclass(frozen=True)
class ProofReport:
    """The outcome of `verify_bundle`: digests held (or opening had failed), fidelity replayed here, quality as recorded."""

    bundle: str
    backend: str
    fidelity: Fidelity
    quality: Quality

    @property
    def passed(self) -> bool:
        """Whether the backend computes what the original computes."""
        return self.fidelity.failure is None

    def lines(self) -> list[str]:
        """For people."""
        return [f"{self.bundle}: digests ok", f"backend {self.backend}", *self.fidelity.lines(), *quality_lines(self.quality)]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "bundle": self.bundle,
            "backend": self.backend,
            "passed": self.passed,
            "fidelity": fidelity_dict(self.fidelity),
            "quality": quality_dict(self.quality),
        }


def fidelity_dict(fidelity: Fidelity) -> dict[str, Any]:
    """For machines."""
    return {**asdict(fidelity), "passed": fidelity.failure is None, "tolerance": msgspec.to_builtins(fidelity.tolerance)}


def quality_dict(quality: Quality) -> dict[str, Any]:
    """For machines."""
    found: dict[str, Any] = msgspec.to_builtins(quality)
    return found


def quality_lines(quality: Quality) -> list[str]:
    """For people: what was measured at export, against the original weights."""
    q = quality
    return [
        f"quantization quality, as measured at export on {q.tokens} tokens against the original weights:",
        f"  mean KL {q.mean_kl:.4f} nats (limit {q.limit_kl:g}), perplexity {q.perplexity:.2f} = "
        f"{q.perplexity_ratio:.3f} x the original's, "
        f"greedy match {q.greedy_match} of {q.greedy_length} tokens",
    ]


def read_proof(bundle: Bundle) -> tuple[Proof, Reference]:
    """The proof of an open bundle. BundleError where it is not one."""
    path = bundle.manifest.proof
    proof = decode_json(read_bounded(bundle, path, MAX_PROOF_BYTES), Proof, path)
    return proof, Reference.from_bytes(read_bounded(bundle, proof.reference, MAX_REFERENCE_BYTES))


def verify(bundle: Bundle, session: "Session", variant: str, backend: str) -> ProofReport:
    """Replay the proof of an open bundle on a session of its decoder.

    Raises:
        BundleError: the proof is damaged, or does not fit the graph.
    """
    proof, reference = read_proof(bundle)
    arithmetic = proof.arithmetic.get(variant)
    if arithmetic is None or arithmetic not in proof.tolerances:
        raise BundleError(f"the proof says nothing of the variant {variant!r}; export the model again")
    try:
        fidelity = replay(session, reference, variant, arithmetic, proof.tolerances[arithmetic])
    except (InputError, IndexError, ValueError) as error:
        raise BundleError(f"the proof does not fit the graph: {error}") from error
    return ProofReport(str(bundle.path), backend, fidelity, proof.quality)


def replay_bundle(bundle: Bundle, backend: str, **options: Any) -> ProofReport:
    """Replay the proof of an open bundle on a backend of this machine."""
    variant = variant_for(backend, bundle, GRAPH)
    with open_session(backend, bundle, GRAPH, **options) as session:
        return verify(bundle, session, variant, backend)


def require(fidelity: Fidelity) -> None:
    """Raise ProofError with what differs and where, unless it passed."""
    if fidelity.failure is not None:
        raise ProofError(f"the {fidelity.variant} graph does not compute what PyTorch computes: {fidelity.failure}")


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(1e-3, 2e-4, 1e-3, "float32 sums in another order, through all layers"),
    "float16": Tolerance(3e-2, 5e-3, 3e-2, "activations rounded to 11 bits after every operator, through all layers"),
    "int8-activations": Tolerance(
        0.15, 0.04, 0.12, "the integer kernels round activations to 8 bits, in blocks of 32, before every product"
    ),
}
