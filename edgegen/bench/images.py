"""Image models: latency of an image, images and steps per second, which graph the time goes to, cold start and memory."""

import dataclasses
import inspect
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.backends import AUTO, choose, open_session, variant_for
from edgegen.backends.base import Session, State
from edgegen.backends.graph_session import GraphSession
from edgegen.bench.cold import measure_cold_call, measure_import
from edgegen.bench.machine import describe
from edgegen.bench.measure import Clock, measure, summarize
from edgegen.bench.metrics import spread
from edgegen.bundle import Bundle
from edgegen.errors import InputError
from edgegen.pipelines import pipeline_class
from edgegen.pipelines.images import draws
from edgegen.tensors import Axis, Tensor, Tensors

_COLD_REPEATS = 3
_PROMPT = "a photograph of a red fox in the snow"
_IMAGE_METHODS = ("translate", "reconstruct")
METHOD = (
    "Times are of the whole pipeline, from the call to uint8 images. Per image: a call's time over its batch. Graphs: time "
    "inside the inference library's run, by graph, median of the repeats; the rest is what the pipeline adds. Cold: fresh "
    "processes, one image."
)


class TimedSession(GraphSession):
    """A session that writes down how often it ran, and for how long; all else is the inner one's (`backends.base.Session`)."""

    def __init__(self, inner: Session, clock: Clock) -> None:
        super().__init__("the graph", inner.inputs.values(), inner.outputs.values(), axes=inner.axes)
        self._inner, self._clock = inner, clock
        self._runs, self._seconds = 0, 0.0

    def take(self) -> tuple[int, float]:
        """Runs, and seconds in them, since this was last asked."""
        taken = self._runs, self._seconds
        self._runs, self._seconds = 0, 0.0
        return taken

    @property
    def details(self) -> Mapping[str, str]:
        """Of the inner session."""
        return self._inner.details

    def new_state(self, capacity: int) -> State:
        """Of the inner session."""
        return self._inner.new_state(capacity)

    def run(self, inputs: Tensors, *, state: State | None = None, outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run the inner session, timed."""
        start = self._clock()
        try:
            return self._inner.run(inputs, state=state, outputs=outputs)
        finally:
            self._seconds += self._clock() - start
            self._runs += 1

    def close(self) -> None:
        """Close the inner session."""
        self._inner.close()


def bench_images(
    bundle: str | os.PathLike[str],
    *,
    backend: str = AUTO,
    threads: int | None = None,
    batches: Sequence[int] = (),
    steps: int | None = None,
    warmup: int = 1,
    repeats: int = 5,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Measure an image model's bundle on this machine.

    Args:
        bundle: its path.
        backend: a backend's name, or "auto".
        threads: CPU threads; the default of the backend if None.
        batches: images in a call; 1 and the batch that was exported as the usual one, if none are given.
        steps: denoising steps; the model's own if None.
        warmup: calls for each batch that are not counted.
        repeats: calls for each batch that are.
        clock: monotonic, in seconds.

    Returns:
        One object for JSON: bundle, machine, method, settings, sessions (how each graph ran), cold, and one entry of `batches`
        for each.

    Raises:
        InputError: an option out of its range, or that the family does not have. And all that `edgegen.load` raises.
    """
    if any(batch < 1 for batch in batches) or repeats < 1 or warmup < 0:
        raise InputError(f"batches {list(batches)}, warmup {warmup}, repeats {repeats}; at least 1, 0 and 1")
    chosen = choose(backend)
    sessions: dict[str, TimedSession] = {}

    def opener(graph: str) -> TimedSession:
        sessions[graph] = TimedSession(open_session(chosen, opened, graph, threads=threads), clock)
        return sessions[graph]

    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
        with pipeline_class(manifest.family).from_bundle(opened, opener) as pipeline:
            call = _call_of(pipeline, sessions, steps)
            usual = _usual_batch(opened, sessions)
            entries = [
                _bench_batch(pipeline, call, n, sessions, (warmup, repeats, clock)) for n in batches or sorted({1, usual})
            ]
            details = {name: dict(session.details) for name, session in sessions.items()}
        variants = [graph.variants[variant_for(chosen, opened, name)] for name, graph in manifest.graphs.items()]
        weights = sum(manifest.files[path].size_bytes for path in {p for variant in variants for p in variant.weights})
    facts = {"name": manifest.name, "family": manifest.family, "precision": manifest.precision, "weights_bytes": weights}
    given = {"method": call.method, "options": call.options, "warmup": warmup, "repeats": repeats}
    return {
        "bundle": facts,
        "machine": describe(),
        "method": METHOD,
        "settings": {"backend": chosen, "threads": threads} | given,
        "sessions": details,
        "cold": _cold(str(Path(bundle).resolve()), chosen, threads, call),
        "batches": entries,
    }


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is called: `image` is the size [height, width, channel] of what goes in, None where images come of seeds."""

    method: str
    image: tuple[int, ...] | None
    options: dict[str, Any]
    takes: frozenset[str]
    classes: int

    def options_for(self, count: int) -> dict[str, Any]:
        """What is asked for in a call of so many images."""
        ids = {"class_ids": [i % self.classes for i in range(count)]} if self.classes and "class_ids" in self.takes else {}
        return self.options | ids | ({"count": count, "seed": 0} if self.image is None else {})


def _call_of(pipeline: Any, sessions: Mapping[str, Session], steps: int | None) -> _Call:
    settings = pipeline.settings
    seeded = draws(pipeline.bundle.manifest)
    method = next((name for name in (("generate",) if seeded else _IMAGE_METHODS) if hasattr(pipeline, name)), None)
    if method is None:
        raise InputError("this bundle makes no images: there is no generate, translate or reconstruct to measure")
    takes = frozenset(inspect.signature(getattr(pipeline, method)).parameters)
    options: dict[str, Any] = {}
    if steps is not None:
        if "steps" not in takes:
            raise InputError(f"steps is {steps}, but {method} of this bundle takes no steps")
        options["steps"] = steps
    if getattr(settings, "text", None) is not None:
        options["prompt"] = _PROMPT
    image = None if method == "generate" else _image_size(pipeline, sessions)
    return _Call(method, image, options, takes, int(getattr(settings, "classes", None) or 0))


def _image_size(pipeline: Any, sessions: Mapping[str, Session]) -> tuple[int, ...]:
    """[height, width, channel] of an image of the usual size."""
    name = next(graph for graph, session in sessions.items() if "image" in session.inputs)
    axes = sessions[name].inputs["image"].axes
    bounds = pipeline.bundle.manifest.graphs[name].axes
    channels, height, width = (axis if isinstance(axis, int) else bounds[axis].opt for axis in axes[1:])
    return height, width, channels


def _usual_batch(bundle: Bundle, sessions: Mapping[str, Session]) -> int:
    """The batch that every graph was exported for as the usual one: the least of theirs."""
    usual = []
    for name, session in sessions.items():
        axis = next(iter(session.inputs.values())).axes[0]
        usual.append(Axis(axis, axis, axis).opt if isinstance(axis, int) else bundle.manifest.graphs[name].axes[axis].opt)
    return min(usual)


def _bench_batch(
    pipeline: Any, call: _Call, count: int, sessions: Mapping[str, TimedSession], plan: tuple[int, int, Clock]
) -> dict[str, Any]:
    warmup, repeats, clock = plan
    told: list[int] = []
    options = call.options_for(count)
    if {"progress", "steps"} <= call.takes:
        options["progress"] = lambda _done, total: told.append(total)
    arguments = [] if call.image is None else [np.zeros((count, *call.image), np.uint8)]
    function = getattr(pipeline, call.method)

    calls: list[dict[str, tuple[int, float]]] = []  # of each: runs and seconds by graph

    def once() -> None:
        function(*arguments, **options)
        calls.append({name: session.take() for name, session in sessions.items()})

    samples_s = measure(once, warmup=warmup, repeats=repeats, clock=clock)
    del calls[:warmup]
    median_s = statistics.median(samples_s)
    rest_s = statistics.median(
        sample - sum(seconds for _, seconds in taken.values()) for sample, taken in zip(samples_s, calls, strict=True)
    )
    share = 1 / median_s if median_s else 0.0
    return {
        "batch": count,
        "call": dataclasses.asdict(summarize(samples_s)),
        "per_image": dataclasses.asdict(summarize([sample / count for sample in samples_s])),
        "images_per_s": count / median_s if median_s else None,
        "spread": spread(samples_s),
        "steps_per_s": told[-1] / median_s if told and median_s else None,
        "graphs": {name: _graph(name, calls, share) for name in sessions if calls[0][name][0]},
        "rest_s": rest_s,
        "rest_share": rest_s * share,
    }


def _graph(name: str, calls: Sequence[Mapping[str, tuple[int, float]]], share: float) -> dict[str, float]:
    runs, seconds = (statistics.median(taken[name][place] for taken in calls) for place in (0, 1))
    return {"runs": runs, "seconds": seconds, "share": seconds * share}


def _cold(bundle: str, backend: str, threads: int | None, call: _Call) -> dict[str, Any]:
    arguments = [] if call.image is None else [{"image": call.image}]
    options = call.options_for(1)
    runs = [measure_cold_call(bundle, backend, threads, call.method, arguments, options) for _ in range(_COLD_REPEATS)]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0] if runs[0][key] is not None}
    import_s = statistics.median(measure_import("edgegen") for _ in range(_COLD_REPEATS))
    return {"processes": _COLD_REPEATS, "import_s": import_s} | medians
