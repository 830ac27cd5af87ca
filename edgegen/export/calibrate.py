"""Which inputs of a linear layer carry large activations: their weights must be rounded with more care.

The text is the model's own: sampled from the original at temperature 1, from random first tokens. It needs no data set, is in
the languages that the model knows, and has nothing in common with the text on which quality is measured.
(Williams et al., "Self-calibration for Language Model Quantization and Pruning", NAACL 2025.)
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

ROWS, LENGTH = 16, 64


@torch.inference_mode()
def importance(model: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """For every linear layer's weight, by parameter name: float32 [in], the root mean square of each input, relative to all."""
    tokens = _sampled_text(model, seed)
    squares: dict[str, torch.Tensor] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = [module for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]

    def count(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        name = names[id(module.weight)]
        squares[name] = inputs[0].float().square().flatten(0, -2).sum(dim=0)

    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        model(tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / total.mean().clamp_min(1e-30)).sqrt() for name, total in squares.items()}


def _sampled_text(model: Any, seed: int) -> torch.Tensor:
    """int64 [row, token]."""
    generator = torch.Generator().manual_seed(seed)
    length = min(LENGTH, int(model.config.max_position_embeddings))
    current = torch.randint(0, int(model.config.vocab_size), (ROWS, 1), generator=generator)
    cache, text = DynamicCache(config=model.config), [current]
    for _ in range(length - 1):
        logits = model(current, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        current = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)
        text.append(current)
    return torch.cat(text, dim=1)
