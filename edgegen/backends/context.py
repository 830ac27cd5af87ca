"""A context that is shorter than what was exported: state of fewer entries, which takes less memory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgegen.errors import InputError

if TYPE_CHECKING:
    from edgegen.bundle import Bundle
    from edgegen.manifest import Variant
    from edgegen.tensors import Axis


def with_context(bundle: "Bundle", variant: "Variant", axes: "Mapping[str, Axis]", context: int) -> "Mapping[str, Axis]":
    """The axes of a graph whose state has at most `context` entries.

    Raises InputError where the graph keeps no state, or was not exported for so many.
    """
    from edgegen.tensors import Axis  # brings numpy, which looking for backends has no use for

    if not variant.state:
        raise InputError(f"{bundle.path} keeps no cache: a context is for language models; leave it out")
    if isinstance(context, bool) or not isinstance(context, int):
        raise InputError(f"context is {context!r}; give a number of tokens")
    growing = growing_axes(variant)
    for name in growing:
        axis = axes[name]
        if not axis.min <= context <= axis.max:
            raise InputError(f"a context of {context} was asked for; {bundle.path} was exported for {axis}")
    return {
        name: Axis(axis.min, min(axis.opt, context), context, axis.step) if name in growing else axis
        for name, axis in axes.items()
    }


def growing_axes(variant: "Variant") -> set[str]:
    """The named axes that count the entries of a graph's state."""
    specs = {spec.name: spec for spec in variant.inputs}
    return {str(specs[pair.input].axes[pair.axis]) for pair in variant.state}
