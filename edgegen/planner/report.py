"""A plan as text, for people."""

import textwrap
from collections.abc import Iterator

from edgegen.planner.memory import MIB
from edgegen.planner.plan import BundlePlan, Plan
from edgegen.planner.roofline import Roof

_INDENT = " " * 12


def lines(plan: Plan, width: int) -> list[str]:
    """Say it in lines of at most `width` characters."""
    target = plan.target
    device, mode = target.device, target.mode
    named = device.title if len(device.modes) == 1 else f"{device.title}, {mode.name}"
    head = f"{named}, {target.backend}: {_mib(target.budget_bytes)} MiB free of {_mib(device.memory_bytes)}"
    found = [
        head,
        f"{_mib(device.reserved_bytes)} MiB are the system's; figures of the device: {device.confidence} confidence",
        "",
    ]
    for name, one in zip(plan.names, plan.bundles, strict=True):
        found += [*_bundle_lines(name, one, plan), ""]
    if len(plan.bundles) > 1:
        found += [*_set_lines(plan), ""]
    return [piece for line in found[:-1] for piece in _wrapped(line, width)]


def _bundle_lines(name: str, one: BundlePlan, plan: Plan) -> Iterator[str]:
    budget = plan.target.budget_bytes
    manifest = one.bundle.manifest
    verdict = "fits" if one.fits else "DOES NOT FIT"
    yield f"{name} ({manifest.family}, {manifest.precision}): {verdict}, {_mib(one.size_bytes)} of {_mib(budget)} MiB"
    for part in (one.runtime, *one.usage.parts):
        yield f"  {part.name:<12}{_mib(part.size_bytes):>8} MiB  {part.note}".rstrip()
    if one.usage.loading_bytes:
        yield f"  {'loading':<12}{_mib(one.usage.loading_bytes):>8} MiB  while the engine is read, beside the weights"
    if one.usage.unknown:
        yield f"  not counted: {one.usage.unknown} of {one.usage.values} values have unknown shapes"
    limits = _limits(one)
    if limits:
        yield f"  at most:    {limits}"
    for place, roof in enumerate(one.roofs):
        yield f"  {'bounds:' if place == 0 else '':<12}{roof.name} {_speed(roof)}, by {_why(roof, plan.target.cache_bytes)}"
    if not one.fits:
        yield f"  change:     {_change(one)}"


def _limits(one: BundlePlan) -> str:
    limits, is_text = one.limits, one.bundle.is_text
    said = []
    if limits.context is not None:
        said.append(f"context {limits.context}" if limits.context else "no context")
    if limits.batch is not None:
        said.append(f"{limits.batch} conversations" if is_text else f"batch {limits.batch}")
    if limits.side is not None:
        said.append(f"{limits.side} x {limits.side} in one piece" if limits.side else "no size in one piece")
    return ", ".join(said)


def _set_lines(plan: Plan) -> Iterator[str]:
    budget = _mib(plan.target.budget_bytes)
    yield f"all together: {'fits' if plan.fits else 'DOES NOT FIT'}, {_mib(plan.together_bytes)} of {budget} MiB"
    if plan.ordered_bytes < plan.together_bytes:
        names = ", ".join(plan.names[place] for place in plan.order)
        yield f"  loaded in the order {names}: {_mib(plan.ordered_bytes)} MiB"
    yield f"  one after the other, each closed before the next: {_mib(plan.in_turns_bytes)} MiB"
    if not plan.fits:
        yield "  change:     " + (f"{plan.change.what}: {_mib(plan.change.size_bytes)} MiB" if plan.change else _HOPELESS)


_HOPELESS = "none found that makes it fit: take a smaller model, or a device with more memory"


def _change(one: BundlePlan) -> str:
    return f"{one.change.what}: {_mib(one.change.size_bytes)} MiB" if one.change is not None else _HOPELESS


def _speed(roof: Roof) -> str:
    if roof.per_s >= 1:
        return f"at most {_number(roof.per_s)} {roof.unit}s/s"
    return f"at least {_number(1 / roof.per_s)} s for one {roof.unit}"


def _why(roof: Roof, cache_bytes: int) -> str:
    """Which limit binds, and from what it follows; of the bytes read, caches may hold some from the run before."""
    work = roof.work
    read_bytes = work.weights_bytes + work.state_bytes
    kept = f", {_mib(min(cache_bytes, read_bytes))} of them perhaps from caches" if roof.bound == "bandwidth" else ""
    read = f"{_mib(read_bytes)} MiB read{kept}"
    ops = f"{_number(work.ops / 1e9)} GFLOP"
    return f"{roof.bound} ({read}, {ops} a run)"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.0f}" if size_bytes >= 10 * MIB else f"{size_bytes / MIB:.1f}"


def _wrapped(line: str, width: int) -> list[str]:
    indent = _INDENT + "  " if line.startswith(" ") else "  "
    return textwrap.wrap(
        line, max(width, 40), subsequent_indent=indent, drop_whitespace=True, break_on_hyphens=False, break_long_words=False
    ) or [""]
