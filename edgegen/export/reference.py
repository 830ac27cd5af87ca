"""What the PyTorch original answers: the reference that a proof replays, and how far quantized weights are from the original.

Runs the unpatched model with its own cache and attention: nothing here is shared with what was captured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from edgegen.proof.decoder_lm import Quality
from edgegen.proof.reference import Reference

PROMPT, FORCED, SECOND, GREEDY = 48, 32, 16, 64
QUALITY_TOKENS = 256
TOP_COLUMNS, SPREAD_COLUMNS = 32, 96
CACHE_ENTRIES = 8


@dataclass(frozen=True)
class Answers:
    """Of one set of weights on the fixed text: log-probabilities float32 [token, vocab], and a greedy continuation."""

    tokens: list[int]
    log_probs: torch.Tensor
    greedy: list[int]


@torch.inference_mode()
def answers(model: Any, tokens: Sequence[int], greedy: int = GREEDY) -> Answers:
    """Run the text once, and continue its first PROMPT tokens greedily."""
    logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float()
    return Answers(list(tokens), torch.log_softmax(logits, dim=-1), _greedy(model, tokens[:PROMPT], greedy))


def _greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    cache = DynamicCache(config=model.config)
    ids, found = torch.tensor([list(prompt)]), []
    for _ in range(count):
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        found.append(int(logits.argmax()))
        ids = torch.tensor([[found[-1]]])
    return found


def quality(original: Answers, quantized: Answers, limit_kl: float) -> Quality:
    """KL(original || quantized) of the next token in nats, perplexity on the text, length of the common greedy start."""
    kl = torch.nn.functional.kl_div(quantized.log_probs, original.log_probs, reduction="none", log_target=True).sum(dim=-1)
    before, after = _perplexity(original), _perplexity(quantized)
    same = [a == b for a, b in zip(original.greedy, quantized.greedy, strict=True)]
    match = same.index(False) if False in same else len(same)
    return Quality(len(original.tokens), float(kl.mean()), float(kl.max()), after, after / before, match, len(same), limit_kl)


def _perplexity(found: Answers) -> float:
    targets = torch.tensor(found.tokens[1:])
    return float(torch.exp(-found.log_probs[:-1].gather(1, targets[:, None]).mean()))


@torch.inference_mode()
def record(model: Any, tokens: Sequence[int], context_length: int) -> Reference:
    """Record the reference: prefill, teacher-forced steps, second prefill on the filled cache, and free greedy steps.

    Texts shorter than the fixed length are repeated; a short context shortens every part in proportion.
    """
    lengths = _lengths(context_length)
    prompt, forced, second, greedy = (int(n) for n in lengths)
    fixed = prompt + forced + second
    ids = (list(tokens) * (fixed // len(tokens) + 1))[:fixed]
    cache = DynamicCache()  # without a config every layer keeps all entries: a window is the mask's matter, as in the graph
    logits = [_run(model, cache, ids[:prompt])]
    logits += [_run(model, cache, [token]) for token in ids[prompt : prompt + forced]]
    logits.append(_run(model, cache, ids[prompt + forced :]))
    entries = np.unique(np.linspace(0, fixed - 1, CACHE_ENTRIES).round().astype(np.int64))
    keys, values = _entries(cache, entries)
    generated = [int(logits[-1][-1].argmax())]
    for _ in range(greedy):
        logits.append(_run(model, cache, [generated[-1]]))
        generated.append(int(logits[-1][-1].argmax()))
    everything = torch.cat(logits)
    columns = _columns(everything)
    best = everything.topk(2).values
    return Reference(
        prompt=np.array(ids[:prompt], np.int64),
        forced=np.array(ids[prompt : prompt + forced], np.int64),
        second=np.array(ids[prompt + forced :], np.int64),
        greedy=np.array(generated[:greedy], np.int64),
        columns=columns.numpy().astype(np.int32),
        logits=everything.gather(1, columns).numpy(),
        logsumexp=torch.logsumexp(everything.double(), dim=-1).float().numpy(),
        gap=(best[:, 0] - best[:, 1]).numpy(),
        cache_positions=entries,
        keys=keys,
        values=values,
    )


def _lengths(context: int) -> NDArray[np.int64]:
    """The parts of the sequence: prompt, forced, second, greedy."""
    wanted = np.array([PROMPT, FORCED, SECOND, GREEDY])
    if context >= wanted.sum():
        return wanted
    shortened: NDArray[np.int64] = np.maximum(wanted * context // wanted.sum(), 1)
    return shortened


def _run(model: Any, cache: DynamicCache, ids: list[int]) -> torch.Tensor:
    """Logits of all of `ids`: float32 [token, vocab]."""
    logits: torch.Tensor = model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0].float()
    return logits


def _entries(cache: DynamicCache, positions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keys and values of all layers at `positions`: float32 [layer, entry, kv_head, head_dim]."""
    picked = torch.from_numpy(positions)
    parts = [[getattr(layer, name)[0].transpose(0, 1)[picked] for layer in cache.layers] for name in ("keys", "values")]
    keys, values = (torch.stack(part).float().numpy() for part in parts)
    return keys, values


def _columns(logits: torch.Tensor) -> torch.Tensor:
    """For each position the likeliest columns, then an even spread over the vocabulary: int64 [position, column]."""
    vocab = logits.shape[1]
    top = logits.topk(min(TOP_COLUMNS, vocab)).indices
    spread = torch.linspace(0, vocab - 1, min(SPREAD_COLUMNS, vocab)).round().long()
    return torch.cat([top, spread.expand(len(logits), -1)], dim=1)
