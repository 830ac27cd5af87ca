"""Any number of images through a graph that takes some: each result is its own image's."""

import threading

import numpy as np
import pytest

from edgegen.backends.fake import FakeSession
from edgegen.errors import InputError
from edgegen.pipelines import batches
from edgegen.pipelines.batches import BatchedGraph
from edgegen.tensors import Axis, TensorSpec

SIZES, FED = [], []


def graph(least, most):
    def double(feed, _state):
        SIZES.append(len(feed["x"]))
        FED.append(feed["x"])
        return {"y": feed["x"] * 2, "z": feed["x"] + 1}

    axis = least if least == most else "batch"
    spec = TensorSpec("x", "float32", (axis, 3))
    axes = {"batch": Axis(least, least, most)}
    SIZES.clear()
    FED.clear()
    return BatchedGraph(FakeSession(double, [spec], [TensorSpec(n, "float32", (axis, 3)) for n in ("y", "z")], axes=axes), axes)


@pytest.mark.parametrize(
    ("least", "most", "count", "sizes"),
    [(1, 4, 3, [3]), (1, 4, 9, [4, 4, 1]), (2, 4, 5, [4, 2]), (3, 3, 1, [3]), (3, 3, 7, [3, 3, 3]), (1, 500, 70, [64, 6])],
)
def test_a_feed_is_split_and_filled_up_to_what_fits(least, most, count, sizes):
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    made = graph(least, most).run({"x": x})
    np.testing.assert_array_equal(made["y"], x * 2)
    np.testing.assert_array_equal(made["z"], x + 1)
    assert sizes == SIZES


@pytest.mark.parametrize(
    ("row_bytes", "free", "sizes"),
    [
        (1 << 27, 1 << 30, [4, 4, 1]),  # half a GiB, four times an eighth of one
        (1 << 27, 3 << 27, [1] * 9),
        (1 << 30, 0, [1] * 9),  # fewer than the graph takes cannot be run
        (1 << 30, None, [8, 1]),  # nobody tells
        (1 << 20, 0, [8, 1]),  # a small run needs no look
        (0, 0, [8, 1]),
    ],
)
def test_a_batch_larger_than_memory_is_split(monkeypatch, row_bytes, free, sizes):
    monkeypatch.setattr(batches, "available_bytes", lambda: free)
    monkeypatch.setattr(batches, "_TIMES", 1)
    doubling = graph(1, 8)
    doubling.row_bytes = row_bytes
    x = np.arange(27, dtype=np.float32).reshape(9, 3)
    np.testing.assert_array_equal(doubling.run({"x": x})["y"], x * 2)
    assert sizes == SIZES


def test_what_a_row_takes_is_counted_at_the_longest_sides(monkeypatch):
    monkeypatch.setattr(batches, "available_bytes", lambda: 1 << 30)
    spec = TensorSpec("x", "float32", ("batch", 3, "height", "width"))
    axes = {"batch": Axis(1, 2, 32), "height": Axis(8, 16, 32), "width": Axis(8, 16, 32)}
    session = FakeSession(lambda feed, _: {}, [spec], [], axes=axes)
    monkeypatch.setattr(batches, "_TIMES", 1)
    assert BatchedGraph(session, axes, 1 << 25).size() == 4  # 32 MiB at 16 x 16, 128 at 32 x 32; half a GiB is taken
    monkeypatch.setattr(batches, "_TIMES", 2)
    assert BatchedGraph(session, axes, 1 << 25).size() == 2


def test_results_outlive_the_next_run():
    doubling = graph(1, 4)
    first = doubling.run({"x": np.ones((1, 3), np.float32)})["y"]
    doubling.run({"x": np.zeros((1, 3), np.float32)})
    assert (first == 2).all()


@pytest.mark.parametrize(
    ("axes", "least", "most"),
    [
        ({}, 1, 64),
        ({"batch": Axis(1, 1, 4)}, 1, 4),
        ({"batch": Axis(2, 8, 500)}, 2, 64),
        ({"batch": Axis(100, 100, 500)}, 100, 100),
        ({"batch": Axis(0, 1, 3)}, 1, 3),
    ],
)
def test_the_bounds_of_a_run_follow_one_rule(axes, least, most):
    session = FakeSession(lambda feed, _: {}, [TensorSpec("x", "float32", ("batch", 3))], [])
    bounded = BatchedGraph(session, axes)
    assert (bounded.least, bounded.most) == (least, most)


@pytest.mark.parametrize(("asked", "sizes"), [(None, [4, 3]), (1, [1] * 7), (3, [3, 3, 1]), (9, [4, 3])])
def test_fewer_may_be_asked_for_but_never_more_than_the_graph_takes(asked, sizes):
    x = np.arange(21, dtype=np.float32).reshape(7, 3)
    np.testing.assert_array_equal(graph(1, 4).run({"x": x}, asked)["y"], x * 2)
    assert sizes == SIZES
    with pytest.raises(InputError, match="batch_size is 0; it must be at least 1"):
        graph(1, 4).run({"x": x}, 0)


def test_arrays_that_fit_are_fed_as_they_are():
    x = np.ones((7, 3), np.float32)
    graph(1, 4).run({"x": x})
    assert all(np.shares_memory(fed, x) for fed in FED)
    graph(8, 9).run({"x": x})
    assert not np.shares_memory(FED[0], x)
    turned = np.ones((3, 7), np.float32).T
    graph(1, 9).run({"x": turned})
    assert FED[0].flags.c_contiguous


def test_several_threads_each_get_their_own_results():
    doubling, found = graph(2, 4), {}

    def work(number):
        x = np.full((9, 3), number, np.float32)
        found[number] = all((doubling.run({"x": x})["y"] == 2 * number).all() for _ in range(20))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


def test_sides_are_bounded_by_the_tighter_of_two_axes():
    spec = TensorSpec("image", "float32", ("batch", 3, "h", 32))
    session = FakeSession(lambda feed, _: {}, [spec], [])
    assert BatchedGraph(session, {"h": Axis(8, 16, 64)}).sides("image") == (32, 32)
    assert BatchedGraph(session, {}).sides("image") == (32, 32)
    free = FakeSession(lambda feed, _: {}, [TensorSpec("image", "float32", ("batch", 3, "h", "w"))], [])
    assert BatchedGraph(free, {}).sides("image") == (1, None)
    assert BatchedGraph(free, {"h": Axis(8, 16, 64), "w": Axis(4, 16, 48)}).sides("image") == (8, 48)
