"""What fits: the longest context, largest batch and image, and the cheapest change that makes a thing fit that does not."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from edgegen.planner.graphs import CPU, ENGINES, Ask, PlannedBundle
from edgegen.planner.memory import Part, Usage, usage

_WEIGHT_BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 8.5, "int4": 4.5}  # scales of blocks of 32 included
_VALUE_BITS = {"fp32": 32, "fp16": 16, "int8": 16, "int4": 16}  # of state and activations, on a GPU
_MOST_CONVERSATIONS = 256
_USEFUL_CONTEXT = 4  # a context of less than a quarter of what was asked for is worse than another precision

Measure = Callable[[Ask], int]


@dataclass(frozen=True)
class Limits:
    """The most of each that fits while all else stays as asked; None where a bundle has no such thing, 0 where none fits.

    `side` is of a square image in one piece; larger ones are made in tiles where the family can.
    """

    context: int | None
    batch: int | None
    side: int | None


@dataclass(frozen=True)
class Change:
    """What to change, as one would say it, and what the bundle then takes."""

    what: str
    size_bytes: int


def largest(low: int, high: int, step: int, fits: Callable[[int], bool]) -> int:
    """The largest multiple of `step` from `low` to `high` that fits, by bisection; 0 where even `low` does not."""
    low, high = -(-low // step), high // step
    if low > high or not fits(low * step):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * step):
            low = middle
        else:
            high = middle - 1
    return low * step


def limits(bundle: PlannedBundle, ask: Ask, budget_bytes: int, measure: Measure) -> Limits:
    """Find them. `measure` tells what a question takes in all."""
    asked = bundle.settled(ask)
    axes = {name: axis for graph in bundle.graphs for name, axis in graph.axes.items()}

    def fits(**changes: int) -> bool:
        return measure(replace(asked, **changes)) <= budget_bytes

    context = batch = side = None
    if bundle.is_text and "cache" in axes:
        context = largest(axes["cache"].min, axes["cache"].max, 1, lambda size: fits(context=size))
    if bundle.is_text:
        batch = largest(1, _MOST_CONVERSATIONS, 1, lambda count: fits(batch=count))
    elif "batch" in axes and axes["batch"].max > axes["batch"].min:
        batch = largest(axes["batch"].min, axes["batch"].max, axes["batch"].step, lambda count: fits(batch=count))
    bounds = sides(bundle)
    if bounds is not None:
        least, most, step = bounds
        side = largest(least, most, step, lambda size: fits(height=size, width=size))
    return Limits(context, batch, side)


def sides(bundle: PlannedBundle) -> tuple[int, int, int] | None:
    """Least, most and step of the image's sides that all graphs can have in one piece; None where they are fixed."""
    found = [
        (axis.min, axis.max, axis.step)
        for graph in bundle.graphs
        for name, axis in graph.axes.items()
        if name in ("height", "width") and axis.min < axis.max
    ]
    if not found:
        return None
    least, most, step = zip(*found, strict=True)
    return max(least), min(most), max(step)


def cheapest_change(bundle: PlannedBundle, ask: Ask, budget_bytes: int, measure: Measure, base: int) -> Change | None:
    """The change that costs least and makes it fit; None where no single one does.

    What an option can do comes before what needs another export; among options those that only take longer come first: tiles,
    then smaller batches, then a shorter context that is still of use. Then precision, then whatever context there is room for.

    Args:
        bundle: what does not fit.
        ask: as asked.
        budget_bytes: what there is.
        measure: what a question takes in all.
        base: the part of that which is not the bundle's.
    """
    asked = bundle.settled(ask)
    found = limits(bundle, asked, budget_bytes, measure)
    if (change := _first_option(bundle, asked, found, budget_bytes, measure)) is not None:
        return change
    for precision, size in at_lower_precisions(bundle, usage(bundle, asked)):
        if base + size <= budget_bytes:
            return Change(f"export it with --precision {precision}", base + size)
    if found.context:
        return Change(f"--context {found.context}", measure(replace(asked, context=found.context)))
    return None


def cheapest_option(bundle: PlannedBundle, ask: Ask, budget_bytes: int, measure: Measure) -> Change | None:
    """As `cheapest_change`, of the changes that need no other weights and leave the bundle of use; None where none fits."""
    asked = bundle.settled(ask)
    return _first_option(bundle, asked, limits(bundle, asked, budget_bytes, measure), budget_bytes, measure)


def _first_option(bundle: PlannedBundle, asked: Ask, found: Limits, budget_bytes: int, measure: Measure) -> Change | None:
    sizes = ((what, measure(question)) for what, question in _options(bundle, asked, found))
    return next((Change(what, size) for what, size in sizes if size <= budget_bytes), None)


def _options(bundle: PlannedBundle, asked: Ask, found: Limits) -> Iterator[tuple[str, Ask]]:
    bounds, is_engine = sides(bundle), bundle.backend in ENGINES
    if bounds is not None and found.side:
        what = f"export it for sides of at most {found.side}, and make larger images in tiles"
        yield what if is_engine else f"--tile {found.side}", replace(asked, tile=found.side)
    if found.batch and asked.batch is not None and found.batch < asked.batch:
        name = "--batch" if bundle.is_text else "--batch-size"
        is_built = is_engine and not bundle.is_text
        what = f"export it for a batch of at most {found.batch}" if is_built else f"{name} {found.batch}"
        yield what, replace(asked, batch=found.batch)
    if bounds is not None:
        what = f"export it for sides of at most {bounds[0]} and a batch of 1"
        yield what if is_engine else f"--tile {bounds[0]} --batch-size 1", replace(asked, tile=bounds[0], batch=1)
    if found.context and asked.context is not None and asked.context <= _USEFUL_CONTEXT * found.context:
        yield f"--context {found.context}", replace(asked, context=found.context)


def at_lower_precisions(bundle: PlannedBundle, used: Usage) -> Iterator[tuple[str, int]]:
    """What it would take in each precision below its own that its family is exported in, the nearest first."""
    now = bundle.manifest.precision
    offered = ("fp16", "int8", "int4") if bundle.is_text else ("fp16",)
    for precision in offered:
        if _WEIGHT_BITS[precision] >= _WEIGHT_BITS[now] or (bundle.backend == CPU and precision == "fp16"):
            continue  # on a CPU float16 runs as float32
        scale = _scales(now, precision, bundle.backend)
        yield precision, sum(round(part.size_bytes * scale.get(part.name, 1.0)) for part in used.parts)


def _scales(before: str, after: str, backend: str) -> Mapping[str, float]:
    weights = _WEIGHT_BITS[after] / (32.0 if backend == CPU and before == "fp16" else _WEIGHT_BITS[before])
    values = 1.0 if backend == CPU else _VALUE_BITS[after] / _VALUE_BITS[before]
    return {"weights": weights, "cache": values, "activations": values}


def total(runtime: Part, used: Usage) -> int:
    """What a process with this one bundle takes at most."""
    return runtime.size_bytes + used.peak_bytes
