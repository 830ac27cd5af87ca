"""Which nodes of a graph edgegen's own CPU kernels take.

A graph in a bundle knows only operators that ONNX Runtime has; nodes that the kernels can take are exchanged when a session is
made, in memory. Without the kernels the same graph runs as it is.
"""

from collections.abc import Mapping

from edgegen.backends.ort.image_nodes import DOMAIN, ImageNodes
from edgegen.graphs.nodes import Node, read, with_domain, write

BLOCK, MAX_HEAD, MAX_GROUP = 32, 256, 32  # native/kernels.h: BLOCK, MAX_HEAD, MAX_ROWS

_MICROSOFT = b"com.microsoft"
_ATTENTION_ATTRIBUTES = {
    b"num_heads", b"kv_num_heads", b"do_rotary", b"rotary_interleaved", b"scale", b"softcap", b"local_window_size"
}  # fmt: skip
_OURS = (b"MatMulNBits", b"GroupQueryAttention", b"GroupNormalization", b"ConvTranspose", b"Conv", b"Attention")


def exchange(model: bytes, head_sizes: Mapping[str, int]) -> tuple[bytes, int]:
    """Give the nodes that the kernels can take to them.

    Args:
        model: a serialized ONNX graph that `graphs.walk.check` has passed.
        head_sizes: the last axis of each state input, by name.

    Returns:
        The graph, and how many nodes the kernels have in it. A graph that cannot be read comes back as it was.
    """
    if not any(name in model for name in _OURS):
        return model, 0
    try:
        graph = read(model)
        changed = ImageNodes(graph).changed
        changed |= {place: new for place, node in enumerate(graph.nodes) if (new := _text_node(node, head_sizes))}
        return (write(model, changed, {DOMAIN: 1}), sum(map(bool, changed.values()))) if changed else (model, 0)
    except (IndexError, ValueError):
        return model, 0


def _text_node(node: Node, head_sizes: Mapping[str, int]) -> bytes:
    """The node of a language model that a kernel computes instead; empty where none does."""
    is_ours = (node.operator == b"MatMulNBits" and _is_product(node)) or (
        node.operator == b"GroupQueryAttention" and _is_attention(node, head_sizes)
    )
    return with_domain(node, DOMAIN) if is_ours and node.domain == _MICROSOFT else b""


def _is_product(node: Node) -> bool:
    """A graph that asks for exact arithmetic (accuracy_level below 4) keeps it."""
    form = [node.attributes.get(name, 0) for name in (b"bits", b"block_size", b"accuracy_level")]
    columns = node.attributes.get(b"K")
    fits = isinstance(columns, int) and columns % BLOCK == 0 and len(node.inputs) <= 6 and not any(node.inputs[3:5])
    return fits and form in ([4, BLOCK, 4], [8, BLOCK, 4])


def _is_attention(node: Node, head_sizes: Mapping[str, int]) -> bool:
    size = head_sizes.get(node.inputs[3].decode(), 0) if len(node.inputs) > 4 else 0
    heads, kv_heads = node.attributes.get(b"num_heads"), node.attributes.get(b"kv_num_heads")
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or kv_heads < 1:
        return False
    return (
        node.attributes.keys() <= _ATTENTION_ATTRIBUTES
        and not node.attributes.get(b"rotary_interleaved")
        and 0 < size <= MAX_HEAD
        and size % 16 == 0
        and 0 < heads // kv_heads <= MAX_GROUP
        and 7 <= len(node.inputs) <= 9
    )
