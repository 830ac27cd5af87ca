"""Numbers that a user gives: their kind and range, in one line."""

import numpy as np
import pytest

from edgegen.errors import InputError
from edgegen.ranges import check_kind, check_range


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_python_and_numpy_are_whole(value):
    check_kind("n", value, whole=True)
    check_range("n", value, 3, 3, whole=True)


@pytest.mark.parametrize("value", [2.5, np.float32(2.5), 3, None])
def test_what_is_not_given_and_what_is_a_number_passes(value):
    check_kind("x", value)


@pytest.mark.parametrize("value", ["3", 2.5, True, [3], np.zeros(1), float("nan")])
def test_what_is_no_whole_number_is_told_in_one_line(value):
    with pytest.raises(InputError, match=r"^n is .*; give a whole number$") as caught:
        check_kind("n", value, whole=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, 11, float("nan"), "5", True])
def test_a_range_is_told_with_its_ends_and_nan_is_in_none(value):
    with pytest.raises(InputError, match=r"^x is .*; give a number from 0 to 10$"):
        check_range("x", value, 0, 10)
