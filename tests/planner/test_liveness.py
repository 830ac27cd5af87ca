"""The liveness walk, against cases known by hand and an interpreter that holds every value by its name."""

import random

import pytest
from graphs import forms, graph, node

from edgegen.planner.liveness import events, peak, runtime_order

KIB = 256  # floats


def most(cut, shapes, **options):
    return peak(events(cut.nodes, forms(**shapes), cut.outputs, **options)).size_bytes


def test_a_chain_holds_two_values_at_once():
    chain = graph(node("Conv", "x w", "a"), node("Conv", "a w", "b"), node("Conv", "b w", "c"), outputs=["c"])
    assert most(chain, {"a": (KIB,), "b": (2 * KIB,), "c": (KIB,)}) == 3 << 10


def test_a_shortcut_is_held_until_it_is_added():
    cut = graph(
        node("Conv", "x w", "a"), node("Conv", "a w", "b"), node("Conv", "b w", "c"), node("MatMul", "c a", "d"), outputs=["d"]
    )
    assert most(cut, {"a": (KIB,), "b": (KIB,), "c": (KIB,), "d": (KIB,)}) == 3 << 10


def test_an_activation_is_written_over_its_input():
    cut = graph(node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b w", "c"), outputs=["c"])
    assert most(cut, {"a": (4 * KIB,), "b": (4 * KIB,), "c": (KIB,)}) == 5 << 10


def test_an_activation_of_a_value_that_is_read_again_is_not():
    cut = graph(node("Conv", "x w", "a"), node("Sigmoid", "a", "b"), node("Mul", "a b", "c"), node("Conv", "c w", "d"))
    assert most(cut, {"a": (KIB,), "b": (KIB,), "c": (KIB,), "d": (KIB,)}) == 2 << 10


def test_a_view_takes_nothing_and_keeps_what_it_views():
    cut = graph(
        node("Conv", "x w", "a"), node("Reshape", "a s", "v"), node("Conv", "x w", "b"), node("Conv", "v b", "c"), outputs=["c"]
    )
    assert most(cut, {"a": (KIB,), "v": (1, KIB), "b": (KIB,), "c": (KIB,)}) == 3 << 10


def test_state_is_written_where_it_lies():
    cut = graph(node("TensorScatter", "past new at", "present"), node("Conv", "present w", "y"), outputs=["present", "y"])
    shapes = {"present": (100 * KIB,), "y": (KIB,)}
    assert most(cut, shapes, elsewhere=frozenset([b"present"])) == 1 << 10
    assert most(cut, shapes) == 101 << 10


def test_scratch_counts_while_its_node_runs():
    cut = graph(node("Conv", "x w", "a"), node("Conv", "a w", "b"), outputs=["b"])
    scratch = lambda one: 5 << 10 if one.outputs[0] == b"a" else 0  # noqa: E731
    assert most(cut, {"a": (KIB,), "b": (KIB,)}, scratch=scratch) == 6 << 10


def test_an_output_that_nobody_reads_is_let_go():
    cut = graph(node("Split", "x", "a b"), node("Conv", "a w", "c"), outputs=["c"])
    assert most(cut, {"a": (KIB,), "b": (9 * KIB,), "c": (KIB,)}) == 10 << 10


def test_a_buffer_that_is_kept_for_a_value_of_the_same_form_is_held_in_between():
    cut = graph(
        node("Conv", "x w", "a"), node("Conv", "a w", "b"), node("Conv", "b w", "c"), node("Conv", "c w", "d"), outputs=["d"]
    )
    shapes = {"a": (8 * KIB,), "b": (KIB,), "c": (2 * KIB,), "d": (8 * KIB,)}
    names = frozenset(name.encode() for name in shapes)
    kept = events(cut.nodes, forms(**shapes), frozenset(), planned=names)
    assert [event.buffer for event in kept if event.size_bytes] == [b"a", b"b", b"c"]  # d lies in a
    assert peak(kept).size_bytes == 11 << 10
    assert most(graph(*cut.nodes), shapes) == 10 << 10


def test_a_value_whose_shape_is_not_known_beforehand_shares_no_memory():
    cut = graph(node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b w", "c"))
    shapes = {"a": (KIB,), "b": (KIB,), "c": (KIB,)}
    found = events(cut.nodes, forms(**shapes), frozenset(), planned=frozenset())
    assert [event.buffer for event in found if event.size_bytes] == [b"a", b"b", b"c"]


def a_random_graph(seed, operators):
    """Nodes of one or two outputs that read up to three earlier values, and sizes of all values."""
    drawn = random.Random(seed)
    names, nodes = ["x"], []
    for place in range(drawn.randint(1, 25)):
        outputs = [f"v{place}.{number}" for number in range(drawn.choice([1, 1, 2]))]
        inputs = drawn.sample(names, min(len(names), drawn.randint(1, 3)))
        nodes.append(node(drawn.choice(operators), " ".join(inputs), " ".join(outputs)))
        names += outputs
    inner = names[1:]
    outputs = drawn.sample(inner, min(len(inner), 2))
    return graph(*nodes, outputs=outputs), {name: (drawn.choice([1, 2, 3, 8]) * KIB,) for name in inner}


def interpret(cut, shapes):
    """Run the nodes, holding values by name; before each, and with its outputs, add up all that is still needed."""
    held, highest = set(), 0
    for place, one in enumerate(cut.nodes):
        held |= set(one.outputs)
        highest = max(highest, sum(shapes[name.decode()][0] * 4 for name in held))
        needed = {name for later in cut.nodes[place + 1 :] for name in later.inputs} | cut.outputs
        held &= needed
    return highest


@pytest.mark.parametrize("seed", range(40))
def test_the_walk_finds_what_an_interpreter_holds(seed):
    cut, shapes = a_random_graph(seed, ["Conv", "MatMul", "Concat"])
    assert most(cut, shapes) == interpret(cut, shapes)


@pytest.mark.parametrize("seed", range(20))
def test_writing_over_inputs_never_takes_more(seed):
    cut, shapes = a_random_graph(seed, ["Conv", "Add", "Relu", "Concat"])
    taken = events(cut.nodes, forms(**shapes), cut.outputs)
    assert peak(taken).size_bytes <= interpret(cut, shapes)
    freed = [event.buffer for event in taken if not event.size_bytes]
    assert len(freed) == len(set(freed)), "a buffer is let go once"


@pytest.mark.parametrize("seed", range(20))
def test_the_runtime_s_order_runs_every_node_once_and_after_what_it_reads(seed):
    cut, _ = a_random_graph(seed, ["Conv"])
    order = runtime_order(cut.nodes)
    assert sorted(map(id, order)) == sorted(map(id, cut.nodes))
    there = {b"x"}
    for one in order:
        assert set(one.inputs) <= there
        there |= set(one.outputs)


def test_the_runtime_makes_the_later_branch_first():
    branches = (
        node("Conv", "x w", "a"),
        node("Conv", "a w", "main"),
        node("Conv", "a w", "short"),
        node("Add", "main short", "y"),
    )
    assert [one.outputs[0] for one in runtime_order(branches)] == [b"a", b"short", b"main", b"y"]
