"""Memory that a node needs while it runs, beside its inputs and outputs.

edgegen's kernels borrow theirs outside onnxruntime's arena and keep it (native/operators.c); onnxruntime's attention keeps a
table of scores, which theirs do not.
"""

import math
from collections.abc import Mapping, Sequence

from edgegen.backends.ort.image_nodes import DOMAIN
from edgegen.graphs.nodes import Node
from edgegen.planner.shapes import Form

_FLOAT = 4  # bytes
_FEW_BLOCKS = 16  # native/winograd_op.c, doubling_op.c: below, the values of all blocks exist at once
_LANES = 16
_POINTS = {b"Conv": (36, 4), b"DoublingConvTranspose": (16, 6)}  # of a tile, and its side
_FEW_CHANNELS = 8  # native/conv_transpose_op.c
_SPARE_BYTES = 8 << 20  # native/operators.c: a larger piece is not kept

_ATTENTIONS = (b"Attention", b"GroupQueryAttention", b"MultiHeadAttention")


def kernel_bytes(nodes: Sequence[Node], forms: Mapping[bytes, Form], threads: int) -> int:
    """What edgegen's kernels borrow at most: the largest node's pieces, or what they keep between the nodes.

    A borrower takes any spare piece, and exchanges one that is too small: in time all that are in use at once are as large as
    the largest that is kept.
    """
    borrowed = [_borrowed(node, forms, threads) for node in nodes if node.domain == DOMAIN]
    at_once = max((sum(pieces) for pieces in borrowed), default=0)
    kept = max((piece for pieces in borrowed for piece in pieces if piece <= _SPARE_BYTES), default=0)
    return max(at_once, kept * (threads + 1))


def scores_bytes(node: Node, forms: Mapping[bytes, Form], threads: int = 1) -> int:  # noqa: ARG001
    """The table of scores that an attention without a kernel of its own computes, with its softmax in place."""
    if node.operator not in _ATTENTIONS or node.domain == DOMAIN:
        return 0
    query, key = forms.get(node.inputs[0]), forms.get(node.inputs[1] or node.inputs[3])
    heads = node.attributes.get(b"q_num_heads") or node.attributes.get(b"num_heads")
    if query is None or key is None:
        return 0
    count = heads if isinstance(heads, int) else query.shape[1]
    return _FLOAT * query.shape[0] * count * query.shape[-2] * key.shape[-2]


def _borrowed(node: Node, forms: Mapping[bytes, Form], threads: int) -> list[int]:
    """The pieces that a node needs at once."""
    given = [forms[name] for name in node.inputs if name in forms]
    result = forms.get(node.outputs[0])
    if not given or result is None:
        return []
    if node.operator in _POINTS and len(result.shape) == 4:
        return _by_tiles(*_POINTS[node.operator], given[0].shape, result.shape, threads)
    count = math.prod(given[0].shape)
    piece = {
        # a copy with a rim of zeros, where it is not copied piece by piece
        b"ConvTranspose": 0 if len(result.shape) < 2 or result.shape[1] <= _FEW_CHANNELS else given[0].size_bytes,
        b"Attention": sum(form.size_bytes for form in given[1:3]),  # keys and values, packed
        b"MatMulNBits": count + count // 32 * 8,  # codes; scales and sums of blocks
        b"GroupQueryAttention": given[0].size_bytes,
    }.get(node.operator, 0)
    return [piece]


def _by_tiles(points: int, side: int, image: Sequence[int], result: Sequence[int], threads: int) -> list[int]:
    """Minimal filtering: the points of 32 tiles of all input channels, for each thread or, where tiles are few, for all."""
    tiles = image[0] * math.prod(-(-size // side) for size in result[2:])
    blocks = max(-(-tiles // (2 * _LANES)), 1)
    values = points * (image[1] * 2 * _LANES + _LANES) * _FLOAT
    sums = points * 8 * 2 * _LANES * _FLOAT
    return [blocks * values, *[sums] * threads] if blocks < _FEW_BLOCKS else [values + sums] * threads
