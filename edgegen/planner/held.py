"""What the weights of a graph take in memory: as a backend holds them, not as they lie in the file.

onnxruntime on the CPU and edgegen's kernels pack the weights of products and convolutions into forms of their own and let go of
the file's pages; what they only look up (embeddings, rotary tables) is read where it is mapped. TensorRT keeps weights as the
graph has them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from edgegen.backends.ort.image_nodes import DOMAIN
from edgegen.graphs.nodes import Constant, Node
from edgegen.graphs.walk import ELEMENT_BITS
from edgegen.planner.blocked import BLOCK
from edgegen.planner.shapes import Form

_ROWS = 8  # native/kernels.h, WINOGRAD_ROWS: output channels are rounded up to it
_TILE = 16  # native/kernels.h, TILE: rows of a product; lanes of a vector
_FEW = 8  # native/conv_transpose_op.c: so few output channels are not rounded
_FLOAT = 4  # bytes

Packed = Callable[[Node, Constant], int]


class Held(NamedTuple):
    """Bytes of weights: packed by the backend into memory of its own, and read from the mapped file (or its copy)."""

    packed_bytes: int
    mapped_bytes: int

    @property
    def size_bytes(self) -> int:
        """Both."""
        return self.packed_bytes + self.mapped_bytes


def file_bytes(constant: Constant) -> int:
    """Of a tensor, as the file has it."""
    return -(-math.prod(constant.shape) * ELEMENT_BITS.get(constant.dtype, 32) // 8)


def as_in_file(nodes: Sequence[Node], constants: Mapping[bytes, Constant]) -> Held:
    """Every constant that a node reads, as it is: how TensorRT holds them."""
    used = {name for node in nodes for name in node.inputs if name in constants}
    return Held(0, sum(file_bytes(constants[name]) for name in used))


def on_cpu(nodes: Sequence[Node], constants: Mapping[bytes, Constant], made: Mapping[bytes, Form]) -> Held:
    """As onnxruntime and edgegen's kernels hold them on the CPU.

    Args:
        nodes: as they run: those of edgegen's kernels are in their domain.
        constants: of the file, and `made`: what onnxruntime computes from them once, when it loads the graph.
        made: the forms of the latter; they are memory of its own.
    """
    packed, looked_up = 0, set[bytes]()
    for node in nodes:
        own = _packed_bytes(node, constants)
        packed += own
        taken = set(node.inputs[1:2] if own else ())
        if own and node.operator == b"MatMulNBits":
            taken |= {*node.inputs[1:3]}
        looked_up |= {name for name in node.inputs if name in constants} - taken
    own_copies = sum(form.size_bytes for name, form in made.items() if name in looked_up)
    mapped = sum(file_bytes(constants[name]) for name in looked_up - made.keys())
    return Held(packed + own_copies, mapped)


def _packed_bytes(node: Node, constants: Mapping[bytes, Constant]) -> int:
    """What a node's weights take once they are packed; 0 for a node that reads them where they are."""
    weights = constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    pack = _PACKED.get((DOMAIN if node.domain == DOMAIN else b"", node.operator))
    return pack(node, weights) if pack is not None and weights is not None and _is_float_matrix(node, weights) else 0


def _is_float_matrix(node: Node, weights: Constant) -> bool:
    return node.operator == b"MatMulNBits" or (weights.dtype == 1 and len(weights.shape) >= 2)  # 1: float32


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _winograd(node: Node, weights: Constant) -> int:  # noqa: ARG001
    outputs, inputs = weights.shape[:2]
    return _up(outputs, _ROWS) * inputs * 36 * _FLOAT  # native/winograd_op.c: 36 points for 9 weights


def _doubling(node: Node, weights: Constant) -> int:
    inputs, outputs = weights.shape[:2]
    direct = _conv_transpose(node, weights) if node.attributes.get(b"direct_below") else 0
    return _up(outputs, _ROWS) * inputs * 16 * 4 * _FLOAT + direct  # native/doubling_op.c: 16 points in each of 4 phases


def _conv_transpose(node: Node, weights: Constant) -> int:
    is_turned = bool(node.attributes.get(b"convolution"))
    inputs, outputs = weights.shape[is_turned], weights.shape[not is_turned]
    kept = outputs if outputs <= _FEW else _up(outputs, _TILE)
    return inputs * kept * math.prod(weights.shape[2:]) * _FLOAT


def _products_in_bits(node: Node, weights: Constant) -> int:  # noqa: ARG001
    rows, columns, bits = (_number(node, name) for name in (b"N", b"K", b"bits"))
    # native/kernels.h, record_bytes: of 16 rows and 32 columns, their codes and a 16-bit scale for each row
    return _up(rows, _TILE) // _TILE * (columns // 32) * (_TILE * 32 * bits // 8 + 2 * _TILE)


def _products_by_library(node: Node, weights: Constant) -> int:
    """Onnxruntime's own: packed to about what codes and float scales take."""
    blocks = -(-_number(node, b"K") // max(_number(node, b"block_size"), 1))
    return file_bytes(weights) + _number(node, b"N") * blocks * _FLOAT


def _matrix(node: Node, weights: Constant) -> int:
    """MLAS packs the right-hand matrix, columns rounded up to whole vectors."""
    is_turned = bool(node.attributes.get(b"transB"))
    *batch, rows, columns = weights.shape
    rows, columns = (columns, rows) if is_turned else (rows, columns)
    return math.prod(batch) * rows * _up(columns, _TILE) * _FLOAT


def _convolution(node: Node, weights: Constant) -> int:
    """In blocks of channels (see `blocked`)."""
    if len(weights.shape) != 4 or node.attributes.get(b"group", 1) != 1:
        return file_bytes(weights)
    outputs, inputs, *window = weights.shape
    return _up(outputs, BLOCK) * (inputs if inputs < BLOCK else _up(inputs, BLOCK)) * math.prod(window) * _FLOAT


def _number(node: Node, name: bytes) -> int:
    value = node.attributes.get(name)
    return value if isinstance(value, int) else 0


_PACKED: Mapping[tuple[bytes, bytes], Packed] = {
    (DOMAIN, b"Conv"): _winograd,
    (DOMAIN, b"DoublingConvTranspose"): _doubling,
    (DOMAIN, b"ConvTranspose"): _conv_transpose,
    (DOMAIN, b"MatMulNBits"): _products_in_bits,
    (b"", b"MatMulNBits"): _products_by_library,
    (b"", b"MatMul"): _matrix,
    (b"", b"FusedMatMul"): _matrix,
    (b"", b"Gemm"): _matrix,
    (b"", b"Conv"): _convolution,
    (b"", b"FusedConv"): _convolution,
}
