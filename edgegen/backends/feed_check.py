"""The check of a run's arguments, which costs nothing for a run of the same form as the last."""

from collections.abc import Mapping, Set
from typing import Any

from edgegen.errors import InputError
from edgegen.tensors import Axis, Tensors, TensorSpec, check_feed


class FeedCheck:
    """What a session may be fed and asked for.

    Args:
        fed: the inputs that are fed, state excluded.
        required: the names of those without a default.
        outputs: every output.
        axes: the ranges of the named axes.
    """

    def __init__(
        self, fed: Mapping[str, TensorSpec], required: Set[str], outputs: Mapping[str, TensorSpec], axes: Mapping[str, Axis]
    ) -> None:
        self._fed, self._required, self._outputs, self._axes = fed, required, outputs, axes
        self._last: tuple[Any, ...] | None = None

    def check(self, feed: Tensors, names: tuple[str, ...]) -> None:
        """InputError for a feed that does not fit, or an output that there is not."""
        form = (names, *((name, array.dtype, array.shape) for name, array in feed.items()))
        if form == self._last:
            return
        self._last = None
        check_feed({name: self._fed[name] for name in self._fed.keys() & feed.keys() | self._required}, feed, self._axes)
        unknown = [name for name in names if name not in self._outputs]
        if unknown:
            raise InputError(f"no output named {unknown}; there are {sorted(self._outputs)}")
        self._last = form
