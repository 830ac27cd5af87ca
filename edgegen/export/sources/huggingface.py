"""A Hugging Face directory: `config.json` decides, weights in safetensors only, and never any code from the directory."""

import json
import re
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.errors import SourceError
from edgegen.export.sources.base import (
    MAX_TEMPLATE_BYTES,
    PICKLES,
    Checkpoint,
    check_loading,
    read_bounded,
    read_json,
    reading,
    refuse_pickle,
    weights_sha256,
)

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token")


def open_checkpoint(path: Path, weights: Path | None) -> Checkpoint:
    """Open a directory as `save_pretrained` writes it; `weights`, a .safetensors file, replaces its weights.

    Raises:
        SourceError: A file is missing or damaged, the weights are pickles, or the architecture needs code of its own.
    """
    raw = read_json(path / "config.json")
    if "vision_config" in raw or "audio_config" in raw:
        raise SourceError(f"{path} is a multi-modal model; edgegen reads text-only checkpoints so far")
    files = [weights] if weights is not None else _weight_files(path)
    for file in files:
        check_safetensors(file)
    tokenizer_config = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    generation = read_json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    config = _config(path, raw)
    eos = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
    return Checkpoint(
        kind="huggingface",
        name=path.resolve().name,
        config=config,
        load=partial(_load, path, config, weights),
        tokenizer_files=_tokenizer_files(path, tokenizer_config),
        chat_template=_chat_template(path, tokenizer_config),
        sha256=weights_sha256(files),
        licence=_licence(path),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
        bos_token_id=generation.get("bos_token_id", getattr(config, "bos_token_id", None)),
        pad_token_id=generation.get("pad_token_id", getattr(config, "pad_token_id", None)),
        special_tokens=_special_tokens(path, tokenizer_config),
    )


def check_safetensors(path: Path) -> None:
    """Check a safetensors file's header against its size, as the format's specification asks.

    Raises:
        SourceError: The file is cut, or its header is damaged.
    """
    damaged = f"{path} is not a whole safetensors file: "
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise SourceError(f"{damaged}it has {size} bytes and claims a header of {length}")
            tensors = json.loads(file.read(length))
        ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{damaged}its header cannot be read ({type(error).__name__})") from error
    if not ends or needed != size:
        raise SourceError(f"{damaged}its header describes {needed} bytes, the file has {size}")


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if index.is_file():
        parts = read_json(index).get("weight_map")
        names = sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
        strange = [name for name in names if name != Path(name).name]
        missing = [name for name in names if not (path / name).is_file()]
        if not names or strange or missing:
            raise SourceError(f"{index} lists weight files that are not there: {(strange or missing or ['none at all'])[:4]}")
        return [path / name for name in names]
    for pickle in sorted(file for file in path.iterdir() if file.suffix in PICKLES):
        refuse_pickle(pickle)
    raise SourceError(f"{path} has no model.safetensors; edgegen reads weights in safetensors only")


def _config(path: Path, raw: dict[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = raw.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        own_code = "; it brings code of its own, which edgegen does not run" if "auto_map" in raw else ""
        raise SourceError(f"{path}: model_type {kind!r} is no decoder language model that transformers knows{own_code}")
    with reading(path):
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _load(path: Path, config: Any, weights: Path | None) -> "torch.nn.Module":
    import torch
    from safetensors.torch import load_file
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    with reading(weights or path):
        if weights is None:
            options |= {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, **options)
        else:  # the class itself, because the Auto class insists on a place
            model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            loaded = model_class.from_pretrained(None, state_dict=load_file(weights), **options)
    model, info = loaded
    check_loading(weights or path, info)
    module: torch.nn.Module = model.eval()
    return module


def _tokenizer_files(path: Path, config: dict[str, Any]) -> dict[str, bytes]:
    text = json.dumps(config, ensure_ascii=False, indent=1, sort_keys=True).encode()
    if (path / "tokenizer.json").is_file():
        raw = read_bounded(path / "tokenizer.json")
        check_tokenizer(path / "tokenizer.json", raw)
        return {"tokenizer.json": raw, "tokenizer_config.json": text}
    from transformers import AutoTokenizer

    with reading(path):  # vocab.json and merges.txt, or a sentencepiece tokenizer.model
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        converted = getattr(tokenizer, "backend_tokenizer", None)
        if converted is None:
            raise ValueError("it has no tokenizer.json, and its tokenizer cannot be converted to one")
        return {"tokenizer.json": converted.to_str().encode(), "tokenizer_config.json": text}


def check_tokenizer(path: Path, raw: bytes) -> None:
    """Raise SourceError where `raw` is no tokenizer.json that the tokenizers library reads."""
    from tokenizers import Tokenizer

    # The library raises plain `Exception` for everything, so nothing narrower can be caught here.
    try:
        Tokenizer.from_buffer(raw)
    except Exception as error:
        raise SourceError(f"cannot read {path}: {str(error)[:200]}") from error


def _chat_template(path: Path, config: dict[str, Any]) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return read_bounded(path / "chat_template.jinja", MAX_TEMPLATE_BYTES).decode("utf-8", errors="replace")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(path: Path, config: dict[str, Any]) -> dict[str, str]:
    older = read_json(path / "special_tokens_map.json") if (path / "special_tokens_map.json").is_file() else {}
    found = {key: config.get(key) or older.get(key) for key in _SPECIAL}
    texts = {key: token.get("content") if isinstance(token, dict) else token for key, token in found.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _licence(path: Path) -> str:
    """Read `license:` from the front matter of the model card."""
    card = path / "README.md"
    if not card.is_file():
        return "unknown"
    text = read_bounded(card).decode("utf-8", errors="replace")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    line = re.search(r"^license:\s*['\"]?([\w.+-]+)", front.group(1), re.MULTILINE) if front else None
    return line.group(1) if line else "unknown"
