"""Prompts become what a denoiser takes: tokens, one or several text encoders, and their outputs joined."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from edgegen.errors import InputError
from edgegen.pipelines.batches import BatchedGraph
from edgegen.pipelines.diffusion_settings import Text, TextEncoder
from edgegen.tensors import Tensor, Tensors
from edgegen.tokenizers import Tokenizer

_log = logging.getLogger("edgegen")


class TextConditioner:
    """Text encoders with their tokenizers, by the encoder's graph name."""

    def __init__(self, settings: Text, graphs: Mapping[str, BatchedGraph], tokenizers: Mapping[str, Tokenizer]) -> None:
        self.settings, self._graphs, self._tokenizers = settings, dict(graphs), dict(tokenizers)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`encoder_hidden_states` float32 [prompt, token, width] and, where there is one, `pooled` float32 [prompt, width].

        Raises InputError for a text that cannot be tokenized.
        """
        distinct = list(dict.fromkeys(prompts))  # often all images share one
        encoded = self.join({encoder.graph: self.token_ids(encoder, distinct) for encoder in self.settings.encoders})
        rows = [distinct.index(prompt) for prompt in prompts]
        return {name: array[rows] for name, array in encoded.items()}

    def token_ids(self, encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
        """Int64 [prompt, encoder.length]."""
        ids = np.full((len(prompts), encoder.length), encoder.pad_id, np.int64)
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise InputError(f"a prompt is text, not {str(prompt)[:60]}")
            tokens = self._tokenizers[encoder.graph].encode(prompt)
            if len(tokens) > encoder.length:
                _log.warning("the prompt has %d tokens; %s reads the first %d", len(tokens), encoder.graph, encoder.length)
                tokens = [*tokens[: encoder.length - 1], tokens[-1]]  # the last one says that the text ends
            ids[row, : len(tokens)] = tokens
        return ids

    def join(self, token_ids: Tensors) -> dict[str, Tensor]:
        """The same from token ids by graph."""
        sides: list[Tensor] = []
        rows: list[Tensor] = []
        pooled: list[Tensor] = []
        for encoder in self.settings.encoders:
            made = self._graphs[encoder.graph].run({"token_ids": token_ids[encoder.graph]})
            if encoder.hidden != "no":
                (sides if encoder.hidden == "side" else rows).append(made["hidden"])
            if encoder.pooled:
                pooled.append(made["pooled"])
        joined = {"encoder_hidden_states": self._hidden(sides, rows)}
        return joined | ({"pooled": np.concatenate(pooled, axis=-1)} if pooled else {})

    def _hidden(self, sides: list[Tensor], rows: list[Tensor]) -> Tensor:
        parts, width = list(rows), self.settings.width
        if sides:
            side = np.concatenate(sides, axis=-1)
            fill = max(width - side.shape[-1], 0)
            parts.insert(0, np.pad(side, ((0, 0), (0, 0), (0, fill))) if fill else side)
        if self.settings.zero_rows:
            parts.append(np.zeros((len(parts[0]), self.settings.zero_rows, parts[0].shape[-1]), np.float32))
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
