"""What every source of a checkpoint gives, and the care they share: digests, quiet libraries, errors in one line."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.errors import SourceError

if TYPE_CHECKING:
    import torch

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})  # formats that may run code when they are read
MAX_JSON_BYTES = 64 << 20  # the largest tokenizer.json in use (Gemma 3) has 33 MB
MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A decoder language model as its publisher gave it, its weights not yet in memory.

    `load` gives the module in float32, in eval mode, on the CPU, with every parameter taken from the file.
    `tokenizer_files` has `tokenizer.json` and `tokenizer_config.json`. `sha256` is over the weight files (`weights_sha256`).
    `special_tokens` are the variables that a chat template sees: `{"bos_token": "<s>", ...}`.
    """

    kind: str
    name: str
    config: Any  # transformers.PretrainedConfig
    load: Callable[[], "torch.nn.Module"] = field(repr=False)
    tokenizer_files: Mapping[str, bytes] = field(repr=False)
    chat_template: str | None = field(repr=False)
    sha256: str
    licence: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    special_tokens: Mapping[str, str]


def refuse_pickle(path: Path) -> None:
    """Raise SourceError where `path` is a kind of file that runs code when it is read."""
    if path.suffix.lower() in PICKLES:
        raise SourceError(
            f"{path} is a pickle, which can run any code when it is read; edgegen reads safetensors: "
            "where you trust the file, convert it with torch.load(..., weights_only=True) and safetensors.torch.save_file"
        )


def read_bounded(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a small file; SourceError where it is missing, unreadable or larger than `limit` bytes."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise SourceError(f"{path} has {size} bytes; such a file may have {limit} at most")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. SourceError where it is none."""
    try:
        value = json.loads(read_bounded(path))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} is not a JSON object")
    return value


def weights_sha256(files: Sequence[Path]) -> str:
    """Digest the weight files: of one, its own sha256; of several, the sha256 of sha256sum's listing, in the order of names."""
    digests = {path.name: file_sha256(path) for path in sorted(files)}
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(listing.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Digest one file without holding it in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Run transformers without its progress bars and hints: what matters is told by edgegen, in an error or the report."""
    from transformers.utils import logging as library_logging

    log: Any = library_logging  # its functions are not typed
    bars, verbosity = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Run transformers quietly, and turn what it raises on a bad file into one SourceError line."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    # These libraries check a file's content as they use it: any of these may only mean that the content is wrong.
    wrong_content = (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        ImportError,
        SafetensorError,
        StrictDataclassError,
    )
    try:
        with quiet():
            yield
    except wrong_content as error:
        first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SourceError(f"cannot read {path}: {first_line[:300]}") from error


def check_loading(path: Path, info: Mapping[str, Any]) -> None:
    """Raise SourceError where transformers left parameters at random, or tensors unused."""
    wrong = {kind: sorted(map(str, info.get(f"{kind}_keys") or ())) for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        said = "; ".join(f"{kind}: {', '.join(keys[:4])}{', ...' * (len(keys) > 4)}" for kind, keys in wrong.items() if keys)
        raise SourceError(f"{path} does not hold exactly the weights that its config asks for; {said}")
