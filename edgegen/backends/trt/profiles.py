"""Which shapes an engine is built for: optimization profiles, from the manifest's named axes.

A graph without state has one profile: every axis as the manifest bounds it. A language model has two: TensorRT chooses other
kernels for one token than for a prompt.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from edgegen.backends.context import growing_axes
from edgegen.errors import InputError
from edgegen.manifest import Variant
from edgegen.tensors import Axis, Tensors, TensorSpec

SEQUENCE = "sequence"  # the axis of the tokens that one run of a language model takes
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # smallest, most usual, and largest


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for, beyond its graph.

    Attributes:
        compute_capabilities: of the GPUs, such as 89; the one that is present (TensorRT), or every one that the library
            supports (TensorRT-RTX), if empty.
        cache_length: entries of a language model's cache, which an engine fixes; the longest that was exported if None.
        prefill: the most tokens that one run takes.
        workspace_bytes: the most scratch memory that a kernel may ask for; as much as there is if None.
    """

    compute_capabilities: tuple[int, ...] = ()
    cache_length: int | None = None
    prefill: int = 512
    workspace_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a key or a report: plain JSON values."""
        return asdict(self) | {"compute_capabilities": list(self.compute_capabilities)}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "BuildOptions":
        """What `as_dict` gave."""
        return cls(**{**said, "compute_capabilities": tuple(said["compute_capabilities"])})


def settled(variant: Variant, axes: Mapping[str, Axis], options: BuildOptions) -> BuildOptions:
    """The same options in one way of saying them, so that nobody builds one engine under two names.

    Pieces of a prompt are no longer than the cache, and the longest cache that was exported is said as None.
    """
    growing = growing_axes(variant)
    most = max((axes[name].max for name in growing), default=0)
    if not growing or SEQUENCE not in axes:
        return replace(options, prefill=BuildOptions.prefill)
    length = options.cache_length if options.cache_length != most else None
    return replace(options, cache_length=length, prefill=min(options.prefill, axes[SEQUENCE].max, length or most))


class Profile(NamedTuple):
    """The ranges of the named axes that one optimization profile covers; those that the engine fixes have one size."""

    name: str
    axes: Mapping[str, Axis]

    def shapes(self, spec: TensorSpec) -> Range:
        """The range of an input's shape."""
        bounds = [Axis(axis, axis, axis) if isinstance(axis, int) else self.axes[axis] for axis in spec.axes]
        return _range(bounds)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the axes may have these sizes."""
        return all(self.axes[name].holds(size) for name, size in sizes.items() if name in self.axes)

    def __str__(self) -> str:
        free = ", ".join(f"{name} {axis}" for name, axis in self.axes.items() if axis.min < axis.max)
        return f"{self.name} ({free or 'one shape'})"


class Plan(NamedTuple):
    """What an engine is built for.

    Attributes:
        sizes: the named axes whose size the engine fixes.
        axes: the ranges of all named axes, over all profiles; of a cache, how many entries of it may be asked for.
        profiles: the first that fits a feed is taken.
        counted: the axes that only outputs have: their sizes are values, which a shape-tensor input says.
    """

    sizes: Mapping[str, int]
    axes: Mapping[str, Axis]
    profiles: tuple[Profile, ...]
    counted: tuple[str, ...]

    def values(self, profile: Profile, spec: TensorSpec) -> Range:
        """The range of the values of a shape-tensor input: the sizes of the axes that only outputs have."""
        names = self.counted or tuple(profile.axes)
        found = [profile.axes[name] for name in names] or [Axis(0, 1, 1)]
        bounds = Axis(min(axis.min for axis in found), min(axis.opt for axis in found), max(axis.max for axis in found))
        count = next((axis for axis in spec.axes if isinstance(axis, int)), 1)
        return _range([bounds] * count)

    def choose(self, specs: Mapping[str, TensorSpec], feed: Tensors, values: Mapping[str, TensorSpec]) -> int:
        """The place of the first profile that fits a feed.

        Args:
            specs: the inputs that are fed.
            feed: what they are fed; its shapes have been checked against `axes`.
            values: those of them that are shape tensors.

        Raises:
            InputError: no profile fits; it names the ranges.
        """
        sizes = {
            axis: size
            for name, array in feed.items()
            for axis, size in zip(specs[name].axes, array.shape, strict=True)
            if isinstance(axis, str)
        }
        for place, profile in enumerate(self.profiles):
            if profile.holds(sizes) and all(_within(feed[name], self.values(profile, spec)) for name, spec in values.items()):
                return place
        asked = sizes | {name: feed[name].tolist() for name in values}
        said = ", ".join(f"{name} {size}" for name, size in asked.items())
        built = "; ".join(map(str, self.profiles))
        raise InputError(f"the engine is not built for {said}; it is for {built}")


def plan(variant: Variant, axes: Mapping[str, Axis], options: BuildOptions) -> Plan:
    """What an engine of a graph is to be built for. InputError where an option is out of the range that was exported."""
    if options.prefill < 1:
        raise InputError(f"prefill is {options.prefill}; it must be at least 1")
    growing = growing_axes(variant)
    fed = {axis for spec in variant.inputs for axis in spec.axes if isinstance(axis, str)}
    counted = {axis for spec in variant.outputs for axis in spec.axes if isinstance(axis, str)} - fed
    bounds = {name: axes[name] for name in axes if name in fed | counted}
    bounds |= {name: _cache(name, bounds[name], options) for name in bounds.keys() & growing}
    sizes = {name: axis.max for name, axis in bounds.items() if axis.min == axis.max or name in growing}
    every = {name: Axis(sizes[name], sizes[name], sizes[name]) if name in sizes else axis for name, axis in bounds.items()}
    profiles: tuple[Profile, ...] = (Profile("all", every),)
    if variant.state and SEQUENCE in every.keys() - sizes.keys():
        longest = min(options.prefill, every[SEQUENCE].max, *(sizes[name] for name in growing))
        profiles = _for_tokens(every, {SEQUENCE, *counted}, longest)
    caches = {name: bounds[name] for name in bounds.keys() & growing}
    return Plan(sizes, {**profiles[-1].axes, **caches}, profiles, tuple(sorted(counted - sizes.keys())))


def _for_tokens(axes: Mapping[str, Axis], tokens: Set[str], longest: int) -> tuple[Profile, Profile]:
    """A profile for one token, and one for a piece of a prompt; `tokens` are the axes that count them."""
    decode = {name: _clipped(axis, 1, 1) if name in tokens else axis for name, axis in axes.items()}
    # Halfway: the last piece of a prompt is shorter than the others, and a short prompt has no other.
    usual = {name: max(1, longest // 2) if name == SEQUENCE else 1 for name in tokens}
    prefill = {name: _clipped(axis, longest, usual[name]) if name in tokens else axis for name, axis in axes.items()}
    return Profile("decode", decode), Profile("prefill", prefill)


def _cache(name: str, axis: Axis, options: BuildOptions) -> Axis:
    length = axis.max if options.cache_length is None else options.cache_length
    if not axis.min <= length <= axis.max:
        raise InputError(f"a cache of {length} entries was asked for; axis {name!r} was exported for {axis}")
    return Axis(axis.min, length, length)


def _clipped(axis: Axis, largest: int, usual: int) -> Axis:
    most = max(axis.min, min(axis.max, largest))
    return Axis(axis.min, max(axis.min, min(most, usual)), most)


def _range(bounds: Sequence[Axis]) -> Range:
    return tuple(a.min for a in bounds), tuple(a.opt for a in bounds), tuple(a.max for a in bounds)


def _within(array: Any, bounds: Range) -> bool:
    smallest, _, largest = bounds
    return bool((array >= smallest).all() and (array <= largest).all())
