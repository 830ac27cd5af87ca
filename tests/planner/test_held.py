"""What weights take, packed as each backend packs them."""

import pytest
from graphs import FLOAT, forms, node

from edgegen.backends.ort.image_nodes import DOMAIN
from edgegen.graphs.nodes import Constant
from edgegen.planner import held, scratch
from edgegen.planner.shapes import Form

OURS = DOMAIN.decode()


def packed(one, **constants):
    return held.on_cpu([one], {name.encode(): constant for name, constant in constants.items()}, {})


def matrix(*shape, dtype=FLOAT):
    return Constant(dtype, shape)


@pytest.mark.parametrize(
    ("one", "weights", "size"),
    [
        (node("Conv", "x w", "y", OURS), matrix(60, 32, 3, 3), 64 * 32 * 36 * 4),  # 36 points for 9 weights; rows of 8
        (node("DoublingConvTranspose", "x w", "y", OURS), matrix(32, 60, 4, 4), 64 * 32 * 64 * 4),  # four phases of 16 points
        (node("ConvTranspose", "x w", "y", OURS), matrix(32, 3, 4, 4), 32 * 3 * 16 * 4),  # few outputs as they are
        (node("ConvTranspose", "x w", "y", OURS), matrix(32, 20, 4, 4), 32 * 32 * 16 * 4),  # others in tiles of 16
        (node("ConvTranspose", "x w", "y", OURS, convolution=1), matrix(3, 32, 5, 5), 32 * 3 * 25 * 4),
        (node("Conv", "x w", "y"), matrix(20, 3, 3, 3), 32 * 3 * 9 * 4),  # blocks of 16 channels; an image of 3 as it is
        (node("MatMul", "x w", "y"), matrix(100, 40), 100 * 48 * 4),
        (node("FusedMatMul", "x w", "y", transB=1), matrix(40, 100), 100 * 48 * 4),
    ],
)
def test_a_node_packs_its_weights(one, weights, size):
    assert packed(one, w=weights) == (size, 0)


@pytest.mark.parametrize(("bits", "size"), [(4, 64 * 3 * (16 + 2)), (8, 64 * 3 * (32 + 2))])
def test_a_product_in_bits_keeps_codes_and_scales_of_two_bytes(bits, size):
    one = node("MatMulNBits", "x codes scales", "y", OURS, N=60, K=96, bits=bits, block_size=32)
    assert packed(one, codes=matrix(60, 3, 16, dtype=2), scales=matrix(60, 3)) == (size, 0)


def test_a_table_is_read_where_it_is():
    assert packed(node("Gather", "table ids", "y"), table=matrix(1000, 64)) == (0, 256_000)


def test_a_table_that_is_also_a_matrix_is_held_twice():
    constants = {b"w": matrix(64, 64)}
    nodes = [node("Gather", "w ids", "y"), node("MatMul", "y w", "z")]
    assert held.on_cpu(nodes, constants, {}) == (64 * 64 * 4, 64 * 64 * 4)


def test_what_the_library_computes_from_constants_is_memory_of_its_own():
    made = {b"half": Form(FLOAT, (10,))}
    assert held.on_cpu([node("Add", "x half", "y")], {b"half": matrix(10)}, made) == (40, 0)


def test_an_engine_holds_weights_as_the_graph_has_them():
    nodes = [node("DequantizeLinear", "codes scales", "w"), node("MatMul", "x w", "y"), node("MatMul", "y w", "z")]
    constants = {b"codes": matrix(64, 64, dtype=22), b"scales": matrix(64, 2, dtype=10), b"unused": matrix(9)}
    assert held.as_in_file(nodes, constants).size_bytes == 64 * 64 // 2 + 64 * 2 * 2


def test_attention_without_a_kernel_keeps_a_table_of_scores_and_ours_does_not():
    shapes = forms(q=(2, 4, 50, 16), k=(2, 2, 70, 16), v=(2, 2, 70, 16), y=(2, 4, 50, 16))
    plain, ours = node("Attention", "q k v", "y"), node("Attention", "q k v", "y", OURS)
    assert scratch.scores_bytes(plain, shapes) == 2 * 4 * 50 * 70 * 4
    assert scratch.scores_bytes(ours, shapes) == 0
    packed_bytes = 2 * 2 * (2 * 70 * 16) * 4  # keys and values
    assert scratch.kernel_bytes([ours], shapes, threads=2) == 3 * packed_bytes  # a piece that is kept, and one for each thread


def test_a_piece_that_is_too_large_to_keep_counts_once():
    shapes = forms(q=(1, 1, 16, 64), k=(1, 1, 32768, 64), v=(1, 1, 32768, 64), y=(1, 1, 16, 64))
    assert scratch.kernel_bytes([node("Attention", "q k v", "y", OURS)], shapes, threads=2) == 16 << 20
