"""onnxruntime's allocator on cases known by hand."""

from edgegen.planner.arena import Arena, block_bytes, replay, touched_bytes
from edgegen.planner.liveness import Event

KIB, MIB = 1 << 10, 1 << 20


def run(*steps):
    """Events of "+name size" and "-name"."""
    return [
        Event(place, step[1:].split()[0].encode(), int(step.split()[1]) * KIB if step[0] == "+" else 0)
        for place, step in enumerate(steps)
    ]


def test_memory_that_was_let_go_is_used_again():
    arena = Arena()
    replay(run("+a 100", "-a", "+b 100", "-b"), arena)
    assert arena.touched_bytes() == 100 * KIB


def test_regions_double_and_what_spans_two_is_in_neither():
    arena = Arena()
    replay(run("+a 600", "+b 600", "-a", "-b", "+c 1100"), arena)
    assert arena.touched_bytes() == (600 + 1100) * KIB  # b and c in the second region, of two MiB
    assert arena.regions == 2


def test_a_piece_is_not_split_for_less_than_half_of_it():
    arena = Arena()
    taken = arena.take(600 * KIB)
    assert (taken.size_bytes, arena.free) == (MIB, [])


def test_free_neighbours_become_one():
    arena = Arena()
    pieces = [arena.take(100 * KIB) for _ in range(3)]
    for piece in (pieces[0], pieces[2], pieces[1]):
        arena.give(piece)
    assert [piece.size_bytes for piece in arena.free] == [MIB]


def test_the_block_puts_a_value_into_the_smallest_gap_that_holds_it():
    steps = run("+a 4", "+b 1", "+c 2", "+d 1", "-a", "-c", "+e 2", "+f 4")
    assert block_bytes(steps) == 8 * KIB  # e where c was, f where a was


def test_a_gap_that_is_too_small_makes_the_block_larger():
    assert block_bytes(run("+a 1", "+b 1", "-a", "+c 2")) == 4 * KIB


def test_the_second_run_takes_a_block_beside_what_the_first_left():
    steps = run("+a 700", "+b 700", "-a", "-b")
    assert touched_bytes(steps, frozenset(), has_pattern=False) == 1400 * KIB
    # the block of 1400 lies in the second region, of which b has touched 700
    assert touched_bytes(steps, frozenset(), has_pattern=True) == 2100 * KIB


def test_a_block_that_fits_into_what_is_there_costs_nothing():
    steps = run("+a 100", "+b 100", "-a", "-b")
    assert touched_bytes(steps, frozenset(), has_pattern=True) == 200 * KIB
