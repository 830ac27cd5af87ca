"""Numbers that a user gives, held to their kind and range: one line, instead of a TypeError from deep inside."""

import numbers
from typing import Any

from edgegen.errors import InputError


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or numpy; a bool is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or numpy; a bool is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_range(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """Raise InputError unless `value` is a number, or a whole one, from `low` to `high`."""
    # The comparison comes last: NaN is in no range.
    if not (is_whole(value) if whole else is_number(value)) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; give {_kind(whole)} from {low:.12g} to {high:.12g}")


def check_kind(name: str, value: Any, *, whole: bool = False) -> None:
    """Raise InputError where `value` is given and is no number, or no whole one; its range is the caller's business."""
    if value is not None and not (is_whole(value) if whole else is_number(value)):
        raise InputError(f"{name} is {str(value)[:60]!r}; give {_kind(whole)}")


def _kind(whole: bool) -> str:
    return "a whole number" if whole else "a number"
