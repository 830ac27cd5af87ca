"""The files with which onnxruntime-genai loads a decoder's bundle: `genai_config.json` and the tokenizer, at the top.

Every key must be one that it knows: an unknown one is fatal there.
"""

import json
from typing import Any

from edgegen.manifest import Variant
from edgegen.pipelines.decoder_lm import DecoderLMSettings


def genai_config(settings: DecoderLMSettings, variant: Variant, layers: int, kv_heads: int, head_dim: int, heads: int) -> bytes:
    """`genai_config.json`: type `decoder` takes any decoder with separate keys and values."""
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    outputs = {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    decoder: dict[str, Any] = {
        "filename": variant.path,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": head_dim,
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "inputs": inputs,
        "outputs": outputs,
    }
    model: dict[str, Any] = {
        "type": "decoder",
        "context_length": settings.context_length,
        "vocab_size": settings.vocab_size,
        "eos_token_id": list(settings.eos_token_ids),
        "decoder": decoder,
    }
    if settings.bos_token_id is not None:
        model["bos_token_id"] = settings.bos_token_id
    pad = settings.pad_token_id if settings.pad_token_id is not None else next(iter(settings.eos_token_ids), 0)
    model["pad_token_id"] = pad
    search = {"max_length": settings.context_length, "past_present_share_buffer": True, "do_sample": False, "temperature": 1.0}
    return json.dumps({"model": model, "search": search}, indent=2).encode() + b"\n"
