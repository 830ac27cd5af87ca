"""Any number of images through a graph that takes some: each result is its own image's."""

import numpy as np
import pytest

from edgegen.backends.fake import FakeSession
from edgegen.pipelines.batches import BatchedGraph
from edgegen.tensors import Axis, TensorSpec

SIZES = []


def graph(least, most):
    def double(feed, _state):
        SIZES.append(len(feed["x"]))
        return {"y": feed["x"] * 2, "z": feed["x"] + 1}

    axis = least if least == most else "batch"
    spec = TensorSpec("x", "float32", (axis, 3))
    axes = {"batch": Axis(least, least, most)}
    SIZES.clear()
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


def test_results_outlive_the_next_run():
    doubling = graph(1, 4)
    first = doubling.run({"x": np.ones((1, 3), np.float32)})["y"]
    doubling.run({"x": np.zeros((1, 3), np.float32)})
    assert (first == 2).all()


def test_sides_are_bounded_by_the_tighter_of_two_axes():
    spec = TensorSpec("image", "float32", ("batch", 3, "h", 32))
    session = FakeSession(lambda feed, _: {}, [spec], [])
    assert BatchedGraph(session, {"h": Axis(8, 16, 64)}).sides("image") == (32, 32)
    assert BatchedGraph(session, {}).sides("image") == (32, 32)
    free = FakeSession(lambda feed, _: {}, [TensorSpec("image", "float32", ("batch", 3, "h", "w"))], [])
    assert BatchedGraph(free, {}).sides("image") == (1, None)
    assert BatchedGraph(free, {"h": Axis(8, 16, 64), "w": Axis(4, 16, 48)}).sides("image") == (8, 48)
