"""The proof of a pipeline that makes tensors: what PyTorch gave at each named point, replayed through the pipeline.

A pipeline's `replay` takes the recorded inputs (latents, noise, labels) and yields named tensors in the order in which they are
computed; PyTorch's were recorded under the same names. So the first that differs says where it went wrong: which graph, which
denoising step.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from edgegen.backends import open_session, variant_for
from edgegen.bundle import Bundle
from edgegen.errors import BundleError, InputError, ProofError
from edgegen.pipelines import pipeline_class
from edgegen.proof.files import MAX_PROOF_BYTES, MAX_REFERENCE_BYTES, decode_json, read_bounded
from edgegen.proof.npz import read_npz
from edgegen.tensors import Tensor, Tensors

Arithmetic = Literal["float32", "float16"]


class TensorTolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest error of a number, and their mean, as shares of the largest absolute number in the recorded tensor."""

    largest: float
    mean: float
    reason: str


class TensorProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`proof/proof.json`. `inputs` and `outputs` are `.npz` files; `arithmetic` says, by variant, what the graphs compute with.

    `quality`: PSNR in dB of each recorded tensor, made with the weights of the bundle, against the original weights'; none
    where they are the same numbers.
    """

    inputs: str
    outputs: str
    arithmetic: dict[str, Arithmetic]
    tolerances: dict[str, TensorTolerance]
    quality: dict[str, float] = {}


TOLERANCES: Mapping[str, TensorTolerance] = {
    "float32": TensorTolerance(1e-3, 1e-4, "float32 sums in another order, through all layers and steps"),
    "float16": TensorTolerance(5e-2, 1e-2, "activations rounded to 11 bits after every operator, through all layers and steps"),
}


@dataclass(frozen=True)
class TensorError:
    """How far one tensor is from the recorded one: shares of its largest number; PSNR in dB with that number as the peak."""

    name: str
    largest: float
    mean: float
    psnr_db: float

    @classmethod
    def between(cls, name: str, got: Tensor, wanted: Tensor) -> "TensorError":
        """Compare two tensors of one shape; NaN and infinity count as infinitely far."""
        difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
        if not np.isfinite(difference).all():
            return cls(name, float("inf"), float("inf"), float("-inf"))
        peak = max(float(np.abs(wanted.astype(np.float64)).max(initial=0.0)), 1e-6)
        power = float(np.square(difference / peak).mean()) if difference.size else 0.0
        largest, mean = float(difference.max(initial=0.0)) / peak, float(difference.mean() if difference.size else 0.0) / peak
        return cls(name, largest, mean, 10 * float(np.log10(1 / power)) if power else float("inf"))


@dataclass(frozen=True)
class TensorFidelity:
    """How one variant did: the error of each tensor in the order of computing; `failure` names the first that is too far."""

    variant: str
    arithmetic: str
    errors: tuple[TensorError, ...]
    tolerance: TensorTolerance
    failure: str | None

    @property
    def worst(self) -> TensorError:
        """The tensor with the largest error."""
        return max(self.errors, key=lambda error: error.largest)

    def lines(self) -> list[str]:
        """For people."""
        worst, last = self.worst, self.errors[-1]
        return [
            f"execution fidelity of {self.variant} ({self.arithmetic}): {'ok' if self.failure is None else 'FAILED'}",
            f"  {len(self.errors)} tensors; the worst is {worst.name}: {worst.largest:.1e} at most, {worst.mean:.1e} on "
            f"average; allowed {self.tolerance.largest:g} and {self.tolerance.mean:g}",
            f"  the last, {last.name}: PSNR {last.psnr_db:.1f} dB; why this tolerance: {self.tolerance.reason}",
            *([f"  {self.failure}"] if self.failure is not None else []),
        ]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "passed": self.failure is None, "tolerance": msgspec.to_builtins(self.tolerance)}


@dataclass(frozen=True)
class TensorReport:
    """What `edgegen verify` found."""

    bundle: str
    backend: str
    fidelity: TensorFidelity
    quality: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether the backend computes what the original computes."""
        return self.fidelity.failure is None

    def lines(self) -> list[str]:
        """For people."""
        head = [f"{self.bundle}: digests ok", f"backend {self.backend}", *self.fidelity.lines()]
        return head + quality_lines(self.quality)

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        facts = {"bundle": self.bundle, "backend": self.backend, "passed": self.passed}
        return {**facts, "fidelity": self.fidelity.as_dict(), "quality": dict(self.quality)}


def quality_lines(quality: Mapping[str, float]) -> list[str]:
    """For people: what the weights' precision costs, as measured at export."""
    if not quality:
        return []
    name, psnr_db = list(quality.items())[-1]
    return [f"quality of the weights against the original ones, as measured at export: {name} has PSNR {psnr_db:.1f} dB"]


def replay(bundle: Bundle, backend: str, variant: str | None = None, **options: Any) -> TensorReport:
    """Replay the proof of an open bundle on a backend; `variant` None: of each graph the one that suits the backend.

    `options` are those of `edgegen.backends.open_session`.

    Raises:
        BundleError: the proof is damaged, or does not fit the pipeline.
    """
    manifest = bundle.manifest
    proof = decode_json(read_bounded(bundle, manifest.proof, MAX_PROOF_BYTES), TensorProof, manifest.proof)
    inputs = read_npz(read_bounded(bundle, proof.inputs, MAX_REFERENCE_BYTES))
    wanted = read_npz(read_bounded(bundle, proof.outputs, MAX_REFERENCE_BYTES))
    chosen = variant or variant_for(backend, bundle, next(iter(manifest.graphs)))
    arithmetic = proof.arithmetic.get(chosen)
    if arithmetic is None or arithmetic not in proof.tolerances or not wanted:
        raise BundleError(f"the proof says nothing of the variant {chosen!r}; export the model again")
    opener = functools.partial(open_session, backend, bundle, variant=variant, **options)
    pipeline = pipeline_class(manifest.family).from_bundle(bundle, opener)
    pipeline.bundle = None  # it is the caller's
    try:
        with pipeline:
            fidelity = compare(pipeline.replay(inputs), wanted, chosen, arithmetic, proof.tolerances[arithmetic])
    except (InputError, KeyError, IndexError, ValueError) as error:
        raise BundleError(f"the proof does not fit the pipeline: {error}") from error
    return TensorReport(str(bundle.path), backend, fidelity, proof.quality)


def replay_bundle(bundle: Bundle, backend: str, **options: Any) -> TensorReport:
    """As `replay`, on the variants that suit the backend."""
    return replay(bundle, backend, **options)


def compare(got: Any, wanted: Tensors, variant: str, arithmetic: str, tolerance: TensorTolerance) -> TensorFidelity:
    """Hold named tensors, as they come, to the recorded ones. BundleError where names or shapes are others."""
    errors, failure = [], None
    for (name, array), expected in zip(got, wanted, strict=True):
        if name != expected or array.shape != wanted[expected].shape:
            raise BundleError(f"the proof has {expected}{list(wanted[expected].shape)}, not {name}{list(array.shape)}")
        error = TensorError.between(name, array, wanted[name])
        errors.append(error)
        if failure is None and not (error.largest <= tolerance.largest and error.mean <= tolerance.mean):
            failure = (
                f"{name} differs by {error.largest:.1e} at most and {error.mean:.1e} on average, "
                f"allowed {tolerance.largest:g} and {tolerance.mean:g}"
            )
    return TensorFidelity(variant, arithmetic, tuple(errors), tolerance, failure)


def require(fidelity: TensorFidelity) -> None:
    """Raise ProofError with what differs and where, unless it passed."""
    if fidelity.failure is not None:
        raise ProofError(f"the {fidelity.variant} graphs do not compute what PyTorch computes: {fidelity.failure}")
