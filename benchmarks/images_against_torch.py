"""Is edgegen faster than PyTorch at its best, on image models? Same weights, same threads, in one run, alternating.

PyTorch runs in four ways (eager, eager channels_last, torch.compile, torch.compile with freezing), each in its own process; the
fastest for a figure is what edgegen is compared with. Beside it: what edgegen adds to a bare call of onnxruntime.
"""

import contextlib
import datetime
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from images import record
from images.bundles import bundle_of, cache, graph_file, write_feeds
from images.figures import BARE, FP16, MOST_OTHERS_SHARE, OURS, PLAIN, SESSION, WAYS, summarize, target, verdict
from images.rounds import get_ready, measure, rounds_for
from images.subjects import SUBJECTS, make
from peers.disturbance import Disturbance
from peers.workers import Worker, WorkerError
from rich.console import Console

from edgegen.bench.machine import describe

PARTS = Path(__file__).parent / "images"


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    names: tuple
    rounds: int
    threads: int
    output: Path | None = None
    missing: bool = False


def open_workers(stack, subject, folder, threads):
    """Every engine, ready, by name."""
    bundle = bundle_of(subject)
    feeds = write_feeds(subject, folder / f"{subject.name}.npz")
    common = {"feeds": str(feeds), "graph": subject.graph, "steps": subject.steps, "threads": threads}
    whole = {"whole": OURS} | ({"session": SESSION} if subject.steps else {}) | {"bare": BARE}
    found = {
        OURS: common | {"bundle": str(bundle), "names": whole},
        PLAIN: common | {"model": str(graph_file(bundle, subject.graph)), "names": {"plain": PLAIN}},
    }
    if subject.fp16:
        found[FP16] = common | {"bundle": str(bundle_of(subject, "fp16")), "names": {"whole": FP16}}
    workers = {
        name: stack.enter_context(Worker(name, sys.executable, PARTS / "edgegen_worker.py", settings))
        for name, settings in found.items()
    }
    return workers | {name: stack.enter_context(torch_worker(subject, name, threads)) for name in WAYS}


def torch_worker(subject, name, threads):
    """PyTorch, in the way of that name.

    Compiled code is kept; it has its number of threads in it. Nothing is compiled in processes beside the worker's.
    """
    way, environment = WAYS[name]
    folder = cache() / f"inductor-{threads}"
    folder.mkdir(parents=True, exist_ok=True)
    environment = environment | {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    settings = {"subject": subject.name, "name": name, "way": way, "threads": threads}
    return Worker(name, sys.executable, PARTS / "torch_worker.py", settings, environment)


def prepare(plan, name):
    """Make what later runs find in the cache: the subject's bundles, and compiled code."""
    subject = make(name)
    for precision in ("fp32", "fp16")[: 1 + subject.fp16]:
        bundle_of(subject, precision)
    for way, (setting, _) in WAYS.items():
        if setting == "compile":
            with torch_worker(subject, way, plan.threads) as worker:
                for batch in subject.batches:
                    worker.request(batch=batch, runs=1)


def measure_subject(plan, name):
    """Yield the subject's row for each batch size."""
    subject = make(name)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = open_workers(stack, subject, Path(folder), plan.threads)
        facts = {engine: {key: worker.facts[key] for key in ("versions", "kernels") if key in worker.facts}
                 for engine, worker in workers.items()}  # fmt: skip
        for batch in subject.batches:
            if batch > subject.most_plain:
                workers.pop(PLAIN).close()
            took_s = get_ready(workers, batch)
            start_s, disturbance = time.monotonic(), Disturbance([worker.facts["pid"] for worker in workers.values()])
            medians = measure(workers, batch, took_s, rounds_for(plan.rounds, took_s), tuple(WAYS))
            share = disturbance.share()
            yield summarize(name, batch, medians) | {
                "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "commit": record.commit(),
                "threads": plan.threads,
                "took_s": time.monotonic() - start_s,
                "others_share": share,
                "quiet": share <= MOST_OTHERS_SHARE,
                "engines": facts,
            }


def run(plan):
    """Measure what the plan names, and write it down after each row. Returns all rows, those of earlier sittings too."""
    known = record.read(plan.output, describe())
    for name in plan.names:
        if plan.missing and record.is_done(known, name, make(name).batches):
            click.echo(f"{name}: measured already", err=True)
            continue
        with told_time(name):
            for row in measure_subject(plan, name):
                kept = record.merge(known, row)
                ratio = target(row, "torch / edgegen")["median"]
                said = f"{name}, batch {row['batch']}: {ratio:.2f}, {verdict(row)}, others took {row['others_share']:.1%}"
                click.echo(said + ("" if kept else "; the quiet row from before stays"), err=True)
                if plan.output is not None:
                    record.write(plan.output, known, list(SUBJECTS))
    return known


@contextlib.contextmanager
def told_time(name):
    """Say how long a subject took."""
    start_s = time.monotonic()
    yield
    click.echo(f"{name}: {time.monotonic() - start_s:.0f} s", err=True)


@click.command(help=__doc__)
@click.option("--subject", "names", type=click.Choice(list(SUBJECTS)), multiple=True, help="Only these.  [default: all]")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="For every engine.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON; rows it has already stay.")
@click.option("--missing", is_flag=True, help="Only subjects that have no quiet row in the output yet.")
@click.option("--prepare", "prepare_only", is_flag=True, help="Make the bundles and compile, and measure nothing.")
def main(names, prepare_only, **options):
    plan = Plan(names or tuple(SUBJECTS), **options)
    try:
        if prepare_only:
            for name in plan.names:
                with told_time(name):
                    prepare(plan, name)
            return
        Console(width=170).print(record.report(run(plan)))
    except WorkerError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
