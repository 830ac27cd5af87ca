"""The plan of one bundle or several on one device: parts, verdicts, limits, bounds, and what to change."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from edgegen.errors import InputError
from edgegen.planner import fit, memory
from edgegen.planner.fit import Change, Limits
from edgegen.planner.graphs import Ask, PlannedBundle
from edgegen.planner.memory import Part, Usage
from edgegen.planner.roofline import Roof, roofs
from edgegen.planner.target import Target

_IN_TURNS = "load one after the other, and close each before the next"
_ON_CARD = ("weights", "cache", "activations")  # the parts that lie in a card's own memory


@dataclass(frozen=True)
class BundlePlan:
    """One bundle alone on the device. `size_bytes` is the most that its process takes, what runs it included."""

    bundle: PlannedBundle
    ask: Ask
    runtime: Part
    usage: Usage
    size_bytes: int
    fits: bool
    limits: Limits
    roofs: tuple[Roof, ...]
    change: Change | None

    @property
    def is_estimated(self) -> bool:
        """Whether `size_bytes`, and all that follows from it, rests on estimates."""
        return any(part.estimated for part in (self.runtime, *self.usage.parts))


@dataclass(frozen=True)
class Plan:
    """All bundles on one device.

    Attributes:
        together_bytes: the most that they take in one process, loaded one by one in the order given, and kept.
        order: places of the bundles in the order of loading that needs least.
        ordered_bytes: the most that they take in that order.
        in_turns_bytes: the most that they take where each is closed before the next is loaded.
        change: what makes the set fit; None where it does, or where nothing found does.
    """

    target: Target
    bundles: tuple[BundlePlan, ...]
    together_bytes: int
    order: tuple[int, ...]
    ordered_bytes: int
    in_turns_bytes: int
    fits: bool
    change: Change | None

    @property
    def names(self) -> tuple[str, ...]:
        """What each bundle is called."""
        return _names(self.bundles)

    def as_dict(self) -> dict[str, Any]:
        """Say it for machines."""
        device, mode = self.target.device, self.target.mode
        return {
            "device": {
                "name": device.name,
                "memory_bytes": device.memory_bytes,
                "reserved_bytes": device.reserved_bytes,
                "confidence": device.confidence,
            },
            "mode": msgspec.to_builtins(mode),
            "backend": self.target.backend,
            "budget_bytes": self.target.budget_bytes,
            "cache_bytes": self.target.cache_bytes,
            "fits": self.fits,
            "estimated": any(one.is_estimated for one in self.bundles),
            "together_bytes": self.together_bytes,
            "load_order": [self.bundles[place].bundle.path for place in self.order],
            "ordered_bytes": self.ordered_bytes,
            "in_turns_bytes": self.in_turns_bytes,
            "change": None if self.change is None else vars(self.change),
            "bundles": [_bundle_dict(one) for one in self.bundles],
        }


def plan(bundles: Sequence[PlannedBundle], target: Target, ask: Ask) -> Plan:
    """Plan `bundles` on `target`.

    Raises:
        InputError: a context beyond what a bundle was exported for, or a question that is for no bundle.
    """
    _check(bundles, ask)
    planned = tuple(_plan_bundle(bundle, target, ask) for bundle in bundles)
    runtime = max((one.runtime.size_bytes for one in planned), default=0)
    usages = [one.usage for one in planned]
    order = memory.best_order(usages)
    as_given = runtime + memory.together(usages)
    ordered = runtime + memory.together([usages[place] for place in order])
    in_turns = runtime + memory.one_after_the_other(usages)
    fits = as_given <= target.budget_bytes
    change = None if fits else _change_of_set(planned, target, runtime, ordered, in_turns)
    return Plan(target, planned, as_given, tuple(order), ordered, in_turns, fits, change)


def _names(bundles: Sequence[BundlePlan]) -> tuple[str, ...]:
    """Of each its name, but its path where others have the same."""
    names = [one.bundle.name for one in bundles]
    return tuple(one.bundle.path if names.count(one.bundle.name) > 1 else one.bundle.name for one in bundles)


def _check(bundles: Sequence[PlannedBundle], ask: Ask) -> None:
    """Refuse what was asked of no bundle: it would be left out in silence."""
    of_images = [name for name in ("height", "width", "tile") if getattr(ask, name) is not None]
    if of_images and all(bundle.is_text for bundle in bundles):
        raise InputError(f"{', '.join(of_images)}: asked of images, and no bundle here makes any; leave it out")
    if ask.context is not None and not any(bundle.is_text for bundle in bundles):
        raise InputError("context: asked of language models, and there is none here; leave it out")


def _plan_bundle(bundle: PlannedBundle, target: Target, ask: Ask) -> BundlePlan:
    asked, budget = bundle.settled(ask), target.budget_bytes
    runtime = _runtime(bundle, target)

    def measure(question: Ask) -> int:
        return fit.total(runtime, _usage(bundle, question, target))

    used = _usage(bundle, asked, target)
    size = fit.total(runtime, used)
    change = None if size <= budget else fit.cheapest_change(bundle, asked, budget, measure, runtime.size_bytes)
    return BundlePlan(
        bundle,
        asked,
        runtime,
        used,
        size,
        size <= budget,
        fit.limits(bundle, asked, budget, measure),
        tuple(roofs(bundle, asked, target.peaks(bundle.manifest.precision))),
        change,
    )


def _runtime(bundle: PlannedBundle, target: Target) -> Part:
    """What runs a bundle; on a card that is in what the system keeps (`Device.reserved_bytes`), and the rest is the host's."""
    if target.is_card:
        return Part("runtime", 0, "a CUDA context is in what the system keeps; the host's memory is not counted")
    return memory.runtime(target.backend, bundle.manifest.family)


def _usage(bundle: PlannedBundle, ask: Ask, target: Target) -> Usage:
    used = memory.usage(bundle, ask, threads=target.threads)
    if not target.is_card:
        return used
    return replace(used, parts=tuple(part for part in used.parts if part.name in _ON_CARD), loading_bytes=0)


def _change_of_set(planned: Sequence[BundlePlan], target: Target, runtime: int, ordered: int, in_turns: int) -> Change | None:
    """What makes a set fit: another order of loading, one after the other, or a change to the bundle that needs most."""
    budget = target.budget_bytes
    if len(planned) == 1:
        return planned[0].change
    if ordered <= budget:
        return Change("load them in another order", ordered)
    largest_first = sorted(zip(_names(planned), planned, strict=True), key=lambda named: -named[1].usage.size_bytes)
    for name, one in largest_first:

        def measure(question: Ask, one: BundlePlan = one) -> int:
            """What the set takes, in the order given, where this bundle is asked for something else."""
            changed = _usage(one.bundle, question, target)
            return runtime + memory.together([changed if other is one else other.usage for other in planned])

        change = fit.cheapest_option(one.bundle, one.ask, budget, measure)
        if change is not None:
            return Change(f"{name}: {change.what}", change.size_bytes)
    if in_turns <= budget:
        return Change(_IN_TURNS, in_turns)
    changed = [one.size_bytes if one.fits else one.change.size_bytes if one.change is not None else None for one in planned]
    sizes = [size for size in changed if size is not None]
    return Change(f"each as said above, and {_IN_TURNS}", max(sizes)) if len(sizes) == len(planned) else None


def _bundle_dict(one: BundlePlan) -> dict[str, Any]:
    return {
        "path": one.bundle.path,
        "name": one.bundle.name,
        "family": one.bundle.manifest.family,
        "precision": one.bundle.manifest.precision,
        "asked": {name: value for name, value in vars(one.ask).items() if value is not None},
        "parts": [part._asdict() for part in (one.runtime, *one.usage.parts)],
        "loading_bytes": one.usage.loading_bytes,
        "size_bytes": one.size_bytes,
        "estimated": one.is_estimated,
        "fits": one.fits,
        "unknown_shapes": one.usage.unknown,
        "values": one.usage.values,
        "limits": vars(one.limits),
        "change": None if one.change is None else vars(one.change),
        "roofline": [
            {
                "name": roof.name,
                "unit": roof.unit,
                "count": roof.count,
                "most_per_s": roof.per_s,
                "least_s": roof.seconds,
                "bound": roof.bound,
                **roof.work._asdict(),
            }
            for roof in one.roofs
        ],
    }
