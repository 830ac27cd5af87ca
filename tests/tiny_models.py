"""Tiny random checkpoints in the layout of real ones: one for each architecture that export promises.

`make_tiny("qwen3", directory)` writes config.json, model.safetensors, generation_config.json and a byte-level BPE tokenizer
with a chat template, all deterministic in the seed. Weights are drawn wider than usual, and biases and norms are moved off
their neutral start: flat logits or a zero bias would let a wrong graph pass.
"""

import json
from pathlib import Path
from typing import Any

VOCAB_SIZE = 300
CONTEXT_LENGTH = 256
HIDDEN_SIZE = 64
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# name: (transformers' model_type, what differs from the common sizes)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama_untied": ("llama", {"tie_word_embeddings": False, "num_hidden_layers": 3}),
    "llama_scaled_rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),  # q, k and v have a bias
    "qwen3": ("qwen3", {"head_dim": 32}),  # q and k are normalized; heads x head_dim is not hidden_size
    "mistral": ("mistral", {"sliding_window": 8}),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 3,
            "head_dim": 32,
            "initializer_range": 0.1,  # embeddings are scaled by sqrt(hidden_size): wider, and the layers would not matter
            "query_pre_attn_scalar": 24,  # the scale is not 1 / sqrt(head_dim)
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 100_000.0},
            },
        },
    ),
    "gpt2": (
        "gpt2",
        {
            "n_embd": HIDDEN_SIZE,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": CONTEXT_LENGTH,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "phi3": ("phi3", {"num_hidden_layers": 2, "tie_word_embeddings": False}),  # q, k, v in one matrix, gate and up in one
    "phi3_partial_rope": (
        "phi3",
        {
            "partial_rotary_factor": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        },
    ),
}

# GPT-2's config has names of its own for what the others call hidden_size, num_hidden_layers, ...
_GPT2_OWN_NAMES = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
}


def tiny_config(architecture: str) -> Any:
    """Return the transformers config of a tiny `architecture`."""
    from transformers import AutoConfig

    model_type, changes = ARCHITECTURES[architecture]
    common = {k: v for k, v in _COMMON.items() if model_type != "gpt2" or k not in _GPT2_OWN_NAMES}
    return AutoConfig.for_model(model_type, **(common | changes))


def tiny_model(architecture: str, seed: int = 0) -> Any:
    """Return the model itself: fp32, in eval mode, its weights a function of the seed only."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def make_tiny(architecture: str, directory: Path, seed: int = 0) -> Path:
    """Write a tiny checkpoint with its tokenizer into `directory` (made where missing) and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    tiny_model(architecture, seed).save_pretrained(directory, safe_serialization=True)
    for name, text in tokenizer_files().items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def tokenizer_files() -> dict[str, str]:
    """Return a byte-level BPE of VOCAB_SIZE tokens as the texts of its three files."""
    start, _, end = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        "pad_token": start,
        "unk_token": start,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_LENGTH,
    }
    return {
        "tokenizer.json": tiny_tokenizer().to_str(),
        "tokenizer_config.json": json.dumps(config, indent=1),
        "chat_template.jinja": CHAT_TEMPLATE,
    }


def tiny_tokenizer() -> Any:
    """Return the `tokenizers.Tokenizer`: all 256 bytes, the special tokens (ids 0 to 2), and a few English merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = "the quick brown fox and the lazy dog were there then; another morning they were running in the rain again. "
    tokenizer.train_from_iterator([text * 4, "user system assistant hello world " * 4], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def make_tiny_gguf(path: Path, seed: int = 0, more_tensors: dict[str, Any] | None = None) -> Path:
    """Write the tiny "llama" as a GGUF file in float32, with the names and the q/k row order of llama.cpp's converter."""
    import gguf

    model = tiny_model("llama", seed)
    writer = gguf.GGUFWriter(path, "llama")
    _write_gguf_metadata(writer)
    heads = {"q_proj": 4, "k_proj": 2}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        array = tensor.numpy()
        count = heads.get(name.split(".")[-2])
        if count is not None:  # rotated pairs lie beside each other, not half a head apart
            array = array.reshape(count, 2, array.shape[0] // count // 2, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array.copy())
    for name, array in (more_tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_gguf_metadata(writer: Any) -> None:
    tokenizer = json.loads(tiny_tokenizer().to_str())["model"]
    config = tiny_config("llama")
    writer.add_name("tiny")
    writer.add_license("mit")
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(HIDDEN_SIZE)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(HIDDEN_SIZE // config.num_attention_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    vocabulary = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
