"""A Hugging Face decoder becomes one standard ONNX graph (opset 24) with an in-place cache.

Nothing is written by hand for an architecture: attention is caught at transformers' attention interface, the cache at its
`Cache.update`, and the rest is `torch.export`.

inputs:  input_ids int64 [batch, sequence], position_ids int64 [batch, sequence], write_indices int64 [batch],
         logits_to_keep int64 [] (optional, 1), past_key_values.{i}.{key,value} float32 [batch, kv_heads, cache, head_dim]
outputs: logits float32 [batch, kept, vocab], present.{i}.{key,value} (the same memory as the past)
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch.onnx import ops as onnx_ops
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from edgegen.errors import CaptureError
from edgegen.export.explain import capture_error, not_attended
from edgegen.export.patches import Positions, standard_operators
from edgegen.export.quiet import quiet_exporter

OPSET = 24
_ATTENTION = "edgegen_onnx"


class _ScatterLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's cache: new keys and values are written in place at `start`."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, start: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.start, self.is_initialized = start, True

    def _scatter(self, past: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        attributes: dict[str, Any] = {"axis": 2, "mode": "linear"}
        inputs = (past, update, self.start)
        return onnx_ops.symbolic("TensorScatter", inputs, attributes, dtype=past.dtype, shape=past.shape, version=OPSET)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = self._scatter(self.keys, key_states), self._scatter(self.values, value_states)
        return self.keys, self.values

    def lazy_initialization(self, *_: Any, **__: Any) -> None: ...

    def get_mask_sizes(self, _: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length


class _Step(torch.nn.Module):
    """Prefill and decode in one graph."""

    def __init__(self, model: torch.nn.Module, positions: Positions) -> None:
        super().__init__()
        self.model = model
        self._positions = positions
        self._start: torch.Tensor | None = None
        self._masks: dict[int | None, torch.Tensor] = {}

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        write_indices: torch.Tensor,
        kept: torch.Tensor,
        past: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self._positions.ids, self._start, self._masks = position_ids, write_indices, {}
        self._positions.windows.clear()
        layers: list[Any] = [_ScatterLayer(past[i], past[i + 1], write_indices) for i in range(0, len(past), 2)]
        logits = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            past_key_values=Cache(layers=layers),
            use_cache=True,
            logits_to_keep=kept,
        ).logits
        return logits, [tensor for layer in layers for tensor in (layer.keys, layer.values)]

    def mask(self, queries: int, keys: int, window: int | None) -> torch.Tensor:
        """Which slots a query may see: bool [batch, 1, query, slot]. Causal; within `window` tokens where one is given."""
        if window not in self._masks:
            assert self._start is not None
            slots = torch.arange(keys)[None, None, None, :]
            own = self._start[:, None, None, None] + torch.arange(queries)[None, None, :, None]
            seen = slots <= own
            self._masks[window] = seen if window is None else seen & (slots > own - window)
        return self._masks[window]

    def attention(
        self, module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _mask: object, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """q: [batch, heads, sequence, head_dim]; k, v: [batch, kv_heads, cache, head_dim]."""
        window = options.get("sliding_window")
        self._positions.windows.append(window)
        if options.get("s_aux") is not None:
            name = next((n for n, m in self.model.named_modules() if m is module), "an attention layer")
            raise CaptureError(
                f"{name} ({type(module).__name__}) uses attention sinks, which the ONNX Attention operator has not"
            )
        mask = self.mask(q.shape[2], k.shape[2], window)
        out, *_ = onnx_ops.attention(q, k, v, mask, scale=options.get("scaling"), softcap=options.get("softcap") or 0.0)
        return out.transpose(1, 2), None


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Layers, key/value heads and head dimension of a decoder's cache, from its config."""
    heads = config.num_attention_heads
    return (
        config.num_hidden_layers,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


@dataclass
class Captured:
    """The graph, and what its attention layers are: `windows` in the order of the layers, None for full attention."""

    model: ir.Model
    windows: tuple[int | None, ...]
    cache_shape: tuple[int, int, int]
    heads: int
    vocab_size: int


def require_attention(model: torch.nn.Module) -> None:
    """Raise CaptureError, naming the module, unless every layer calls transformers' attention interface: one token tells."""
    config: Any = model.config
    if any(getattr(config, name, None) is None for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")):
        raise not_attended(model, [])
    names = {id(module): name for name, module in model.named_modules()}
    attended: list[str] = []

    def note(module: torch.nn.Module, q: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        attended.append(names[id(module)])
        return q.transpose(1, 2), None

    with _attention_interface(note, config), torch.inference_mode():
        try:
            model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=False)
        except Exception as error:  # anything may happen in a model that is not a decoder
            raise capture_error(model, error) from error
    if len(attended) != config.num_hidden_layers:
        raise not_attended(model, attended)


def capture(model: torch.nn.Module, context_length: int) -> Captured:
    """Capture a causal language model (float32, eval mode).

    Raises CaptureError naming the module, the operator and the cure where a part cannot be captured.
    """
    config: Any = model.config
    positions = Positions()
    step = _Step(model, positions).eval()
    layers, heads, dim = cache_shape(config)
    names = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
    example, dynamic = _example(heads, dim, len(names))
    with (
        _attention_interface(step.attention, config),
        standard_operators(model, positions, context_length),
        quiet_exporter(),
        torch.no_grad(),
    ):
        try:
            program = torch.onnx.export(
                step,
                example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                input_names=["input_ids", "position_ids", "write_indices", "kept", *(f"past_key_values.{n}" for n in names)],
                output_names=["logits", *(f"present.{n}" for n in names)],
                verbose=False,
            )
        except CaptureError:
            raise
        except Exception as error:  # the exporter has no error class of its own for what a model may contain
            raise capture_error(model, error) from error
    assert program is not None
    return Captured(
        program.model, tuple(positions.windows), (layers, heads, dim), config.num_attention_heads, int(config.vocab_size)
    )


def _example(heads: int, dim: int, count: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of a step, and which axes are free: sizes that occur nowhere else, so that no axis is taken for another."""
    queries, slots = 5, 57
    past = [torch.zeros(1, heads, slots, dim) for _ in range(count)]
    start, last = torch.zeros(1, dtype=torch.int64), torch.tensor([queries - 1])
    example = (torch.zeros(1, queries, dtype=torch.int64), torch.arange(queries)[None], start, last, past)
    free = torch.export.Dim.DYNAMIC
    return example, ({1: free}, {1: free}, None, {0: free}, [{2: free}] * count)


@contextlib.contextmanager
def _attention_interface(function: Callable[..., Any], config: Any) -> Iterator[None]:
    AttentionInterface.register(_ATTENTION, function)
    before = config._attn_implementation
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
