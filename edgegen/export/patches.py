"""Standard operators in place of what a Hugging Face decoder spells out, for as long as it is captured.

Every replacement is checked against what it replaces before it is used: a normalisation or a rotary table that does not give
the same numbers is left as the model has it.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F
from torch.onnx import ops as onnx_ops
from transformers.pytorch_utils import Conv1D

# Placeholder, domain::operator: (x [.., in], weight [out, in], bias [out]?) -> [.., out]; transposed: weight is [in, out].
LINEAR = "edgegen::Linear"

# fp32 on unit-variance input: a re-ordered sum of a few thousand squares moves the last two digits.
_SAME = 1e-5


class Positions:
    """What the step that is being captured shares with functions too deep to be handed it.

    Kept outside of any module: `torch.export` restores what a forward assigns to one. `ids` are the position ids, `windows`
    those of the attention layers, in the order in which they ran.
    """

    def __init__(self) -> None:
        self.ids: torch.Tensor | None = None
        self.windows: list[int | None] = []


@contextlib.contextmanager
def standard_operators(model: torch.nn.Module, positions: Positions, context_length: int) -> Iterator[None]:
    """Let RMS norms become `RMSNormalization` and rotary embeddings `RotaryEmbedding` inside the block."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                stack.enter_context(_fused_norm(module))
            elif isinstance(module, (torch.nn.Linear, Conv1D)):
                stack.enter_context(_swapped(module, "forward", _linear_forward(module)))
        tables = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
        if tables and all(_is_half_split(module) for module in tables):
            for module in tables:
                stack.enter_context(_swapped(module, "forward", _table_forward(module, context_length)))
            for name in sorted({type(module).__module__ for module in model.modules()}):
                space = sys.modules[name]
                if hasattr(space, "apply_rotary_pos_emb"):
                    stack.enter_context(_swapped(space, "apply_rotary_pos_emb", _apply_rotary(positions)))
        yield


@contextlib.contextmanager
def _swapped(owner: Any, name: str, value: object) -> Iterator[None]:
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _fused_norm(module: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    """`weight * x / rms(x)`, or Gemma's `(1 + weight) * x / rms(x)`: whichever gives the module's own numbers."""
    weight = getattr(module, "weight", None)
    eps = next((float(getattr(module, n)) for n in ("variance_epsilon", "eps", "epsilon") if hasattr(module, n)), None)
    if weight is None or eps is None:
        return contextlib.nullcontext()
    probe = torch.randn(3, weight.numel(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = module(probe)
        for scale in (weight.detach(), 1.0 + weight.detach()):
            if torch.allclose(F.rms_norm(probe, weight.shape, scale, eps), wanted, rtol=_SAME, atol=_SAME):
                return _swapped(
                    module, "forward", _norm_forward(weight if scale.data_ptr() == weight.data_ptr() else scale, eps)
                )
    return contextlib.nullcontext()


def _linear_forward(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """One placeholder for a whole linear layer: how its weight is stored is decided later, by name and precision."""
    transposed = isinstance(module, Conv1D)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        # Read from the module, not from this closure: so the exporter knows the parameters by their names.
        weight: Any = module.weight
        inputs: Any = (hidden, weight) if module.bias is None else (hidden, weight, module.bias)
        size = weight.shape[1] if transposed else weight.shape[0]
        attributes: dict[str, Any] = {"transposed": int(transposed)}
        return onnx_ops.symbolic(LINEAR, inputs, attributes, dtype=hidden.dtype, shape=(*hidden.shape[:-1], size), version=1)

    return forward


def _norm_forward(scale: torch.Tensor, eps: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, scale.shape, scale, eps)

    return forward


def _cos_sin(module: torch.nn.Module, count: int, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Cos and sin for the positions 0..count-1: [position, rotary_dim] each, float32."""
    with torch.no_grad():
        cos, sin = type(module).forward(module, torch.zeros(1, 1, 1), torch.arange(count)[None], *rest)
    return cos[0], sin[0]


def _is_half_split(module: torch.nn.Module) -> bool:
    """Whether the two halves of the table are equal (rotate-half), as RotaryEmbedding with `interleaved=0` expects."""
    kinds = getattr(module, "layer_types", None)
    for rest in [(kind,) for kind in kinds] if kinds else [()]:
        try:
            cos, sin = _cos_sin(module, 8, *rest)
        except TypeError:  # a rotary module with a signature of its own stays as it is
            return False
        half = cos.shape[-1] // 2
        if not (torch.equal(cos[:, :half], cos[:, half:]) and torch.equal(sin[:, :half], sin[:, half:])):
            return False
    return True


def _table_forward(module: torch.nn.Module, count: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    cache: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}
    kinds = getattr(module, "layer_types", None)
    for rest in [(kind,) for kind in kinds] if kinds else [()]:
        cos, sin = _cos_sin(module, count, *rest)
        half = cos.shape[-1] // 2
        cache[rest] = cos[:, :half].contiguous(), sin[:, :half].contiguous()

    def forward(
        hidden: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del hidden, position_ids  # the whole table is handed on; `_apply_rotary` picks the positions
        return cache[() if layer_type is None else (layer_type,)]

    return forward


def _apply_rotary(positions: Positions) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def apply_rotary(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q: [batch, heads, sequence, head_dim]; k: [batch, kv_heads, ...]; cos, sin: [position, rotary_dim / 2]."""
        rotary_dim = 2 * cos.shape[-1]
        dim = 0 if rotary_dim == q.shape[-1] else rotary_dim
        # 4-D input carries its heads; num_heads is needed only by a partial rotation.
        q_heads, k_heads = (q.shape[1], k.shape[1]) if dim else (0, 0)
        return (
            onnx_ops.rotary_embedding(q, cos, sin, positions.ids, num_heads=q_heads, rotary_embedding_dim=dim),
            onnx_ops.rotary_embedding(k, cos, sin, positions.ids, num_heads=k_heads, rotary_embedding_dim=dim),
        )

    return apply_rotary
