"""A .gguf file: weights, tokenizer and chat template all come from the file itself.

Our own reader checks the header first; transformers then dequantizes the weights to float32 (it needs accelerate and gguf).
What it is known to leave out (scaled rope, some sizes) is checked here, so that a model is refused and never quietly worse.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.errors import SourceError
from edgegen.export.sources.base import MAX_TEMPLATE_BYTES, Checkpoint, check_loading, reading, weights_sha256
from edgegen.export.sources.gguf_header import GgufHeader, read_header
from edgegen.export.sources.gguf_tokenizer import convert_tokenizer, token_texts
from edgegen.export.sources.huggingface import check_tokenizer

if TYPE_CHECKING:
    import torch

_SCALED_ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_END_TOKENS = ("eos", "eot", "eom")  # of text, of a turn, of a message: generation ends at any of them
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# config attribute: the GGUF key that must agree with it, where both are there
_SAME = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "max_position_embeddings": "context_length",
}


def open_checkpoint(path: Path, weights: Path | None) -> Checkpoint:
    """Open one GGUF file; `weights` is refused, the file has its own.

    Raises:
        SourceError: The file is damaged or cut, or holds something that cannot be taken over exactly.
    """
    if weights is not None:
        raise SourceError(f"{path} holds its own weights; --checkpoint {weights} goes with a Hugging Face directory")
    header = read_header(path)
    metadata = header.metadata
    _check_supported(path, header)
    tokenizer = convert_tokenizer(metadata)
    check_tokenizer(path, tokenizer)
    config = _config(path, metadata)
    special_tokens = _special_tokens(metadata)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and (not isinstance(template, str) or len(template) > MAX_TEMPLATE_BYTES):
        raise SourceError(f"{path}: its chat template is no text of at most {MAX_TEMPLATE_BYTES} bytes")
    ends = [_token_id(metadata, name) for name in _END_TOKENS]
    return Checkpoint(
        kind="gguf",
        name=path.stem,
        config=config,
        load=partial(_load, path, config),
        tokenizer_files={"tokenizer.json": tokenizer, "tokenizer_config.json": _tokenizer_config(special_tokens, config)},
        chat_template=template,
        sha256=weights_sha256([path]),
        licence=str(metadata.get("general.license", "unknown")),
        eos_token_ids=tuple(dict.fromkeys(index for index in ends if index is not None)),
        bos_token_id=_token_id(metadata, "bos"),
        pad_token_id=_token_id(metadata, "padding"),
        special_tokens=special_tokens,
    )


def _check_supported(path: Path, header: GgufHeader) -> None:
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise SourceError(f"{path} does not say its architecture (general.architecture); is it a language model?")
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    scaled = [name for name in _SCALED_ROPE if name in header.tensors] or ([scaling] if scaling != "none" else [])
    if scaled:
        raise SourceError(
            f"{path} scales its rope ({scaled[0]}), which is not read from GGUF; export the Hugging Face directory"
        )
    if header.metadata.get("split.count", 0) > 1:
        raise SourceError(f"{path} is one part of several; join them with llama-gguf-split --merge")


def _config(path: Path, metadata: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    with reading(path):
        config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    architecture = metadata["general.architecture"]
    for attribute, key in _SAME.items():
        said, got = metadata.get(f"{architecture}.{key}"), getattr(config, attribute, None)
        if None not in (said, got) and said != got:
            raise SourceError(
                f"{path}: {architecture}.{key} is {said}, and was read as {attribute} = {got}; use the Hugging Face directory"
            )
    if config.vocab_size < len(token_texts(metadata)):
        raise SourceError(f"{path}: {len(token_texts(metadata))} tokens, and embeddings for {config.vocab_size}")
    return config


def _load(path: Path, config: Any) -> "torch.nn.Module":
    import torch
    from transformers import AutoModelForCausalLM

    with reading(path), _without_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    model, info = loaded
    check_loading(path, info)
    module: torch.nn.Module = model.eval()
    return module


@contextmanager
def _without_bar() -> Iterator[None]:
    """Hide the one bar of transformers that its own switch does not reach: it takes tqdm's class as it is."""
    from transformers import modeling_gguf_pytorch_utils

    module: Any = modeling_gguf_pytorch_utils
    bar = getattr(module, "tqdm", None)
    if bar is None:  # then it has become one of those with a switch
        yield
        return
    module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        module.tqdm = bar


def _token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    index = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if index is not None and not (isinstance(index, int) and 0 <= index < len(token_texts(metadata))):
        raise SourceError(f"the GGUF file's {name}_token_id is {index!r}, outside its vocabulary")
    return index


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = token_texts(metadata)
    found = {name: _token_id(metadata, key) for name, key in _SPECIAL.items()}
    return {name: tokens[index] for name, index in found.items() if index is not None}


def _tokenizer_config(special_tokens: Mapping[str, str], config: Any) -> bytes:
    """Write the tokenizer_config.json that goes with `convert_tokenizer`'s tokenizer.json."""
    limit = getattr(config, "max_position_embeddings", None)
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": limit}
    return json.dumps(common | dict(special_tokens), ensure_ascii=False, indent=1, sort_keys=True).encode()
