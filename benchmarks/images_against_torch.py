"""Is edgegen faster than PyTorch at its best, on image models? Same weights, same threads, in one run, alternating.

PyTorch runs in four ways (eager, eager channels_last, torch.compile, torch.compile with freezing), each in its own process; the
fastest for a figure is what edgegen is compared with. onnxruntime alone, on edgegen's own graph, shows what edgegen adds.
"""

import contextlib
import datetime
import importlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "images"))

from peers.disturbance import Disturbance  # noqa: E402
from peers.workers import Worker  # noqa: E402
from subjects import SUBJECTS, feeds, make  # noqa: E402

from edgegen.backends.threads import default_threads  # noqa: E402
from edgegen.bench.machine import describe  # noqa: E402

OURS, BARE = "edgegen", "onnxruntime alone"
WAYS = {  # of PyTorch: its worker's setting, and its environment
    "eager": ("eager", {}),
    "channels_last": ("channels_last", {}),
    "compile": ("compile", {}),
    "compile, frozen": ("compile", {"TORCHINDUCTOR_FREEZING": "1"}),
}
MOST_OTHERS_SHARE = 0.03
# Ratios of PyTorch's best to edgegen, at batch 1, that are wanted; everywhere else more than 1.
WANTED = {"dcgan": 1.4, "vae-128": 1.05, "vae-512": 1.05, "unet-step": 1.15}
MOST_OVERHEAD = 0.03
SLOW_S = 0.3  # a run that takes longer is repeated less


def export(name, folder):
    """The subject's bundle in `folder`."""
    from edgegen.export.families import FAMILIES
    from edgegen.export.parts import Modules, parse_spec
    from edgegen.export.request import Request
    from edgegen.tensors import Axis

    subject = make(name)
    parsed = [
        {graph: tuple(map(parse_spec, texts)) for graph, texts in part.items()} for part in (subject.inputs, subject.outputs)
    ]
    axes = {axis: Axis(*sizes) for axis, sizes in subject.axes.items()}
    modules = {graph: module.eval() for graph, module in subject.modules.items()}
    source = Modules("module", name, "0" * 64, "none", modules, *parsed, axes, subject.settings)
    module, _, function = FAMILIES[subject.family].partition(":")
    request = Request(source, folder / f"{name}.bundle", "fp32", name)
    getattr(importlib.import_module(module), function)(request, lambda *_: None)
    arrays = {f"{batch}:{key}": t.numpy() for batch in subject.batches for key, t in feeds(subject, batch).items()}
    np.savez(folder / f"{name}.npz", **arrays)
    return subject


def open_workers(stack, subject, folder, threads):
    """Every engine, ready, by name."""
    bundle, found = folder / f"{subject.name}.bundle", {}
    own = {
        "feeds": str(folder / f"{subject.name}.npz"),
        "bundle": str(bundle),
        "model": str(bundle / "graphs" / f"{subject.graph}.onnx"),
        "graph": subject.graph,
        "threads": threads,
    }
    for name, bare in ((OURS, False), (BARE, True)):
        settings = own | {"bare": bare}
        found[name] = stack.enter_context(Worker(name, sys.executable, ROOT / "images/edgegen_worker.py", settings))
    for name, (way, environment) in WAYS.items():
        settings = {"subject": subject.name, "way": way, "threads": threads}
        worker = Worker(name, sys.executable, ROOT / "images/torch_worker.py", settings, environment)
        found[name] = stack.enter_context(worker)
    return found


def measure(workers, batch, rounds):
    """Seconds of a run, by engine: the median of each round, in an order that rotates."""
    runs = {}
    for name, worker in workers.items():  # compiles, and tells how long a run takes
        worker.request(batch=batch, runs=3)
        took_s = statistics.median(worker.request(batch=batch, runs=2)["times_s"])
        runs[name] = 3 if took_s > SLOW_S else max(5, min(100, int(0.5 / took_s)))
    medians = {name: [] for name in workers}
    order = list(workers)
    for place in range(rounds):
        turn = place % len(order)
        for name in order[turn:] + order[:turn]:
            time.sleep(0.2)  # the threads of the engine before go to sleep
            times_s = workers[name].request(batch=batch, runs=runs[name] + 1)["times_s"][1:]
            medians[name].append(statistics.median(times_s))
    return medians


def summarize(name, batch, medians):
    """The medians of the rounds, PyTorch's best way, and the two ratios, each the median of those within a round."""
    found = {engine: statistics.median(times_s) for engine, times_s in medians.items()}
    best = min(WAYS, key=found.__getitem__)
    ratios = [theirs / ours for theirs, ours in zip(medians[best], medians[OURS], strict=True)]
    overheads = [ours / bare - 1 for ours, bare in zip(medians[OURS], medians[BARE], strict=True)]
    wanted = WANTED.get(name, 1.0) if batch == 1 else 1.0
    return {
        "subject": name,
        "batch": batch,
        "median_s": found,
        "rounds_s": medians,
        "best_of_torch": best,
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "wanted": wanted,
        "met": statistics.median(ratios) >= wanted,
        "overhead": statistics.median(overheads),
    }


def table(results):
    """For people."""
    shown = Table(title="Milliseconds a run; ratio: PyTorch's best / edgegen, median of rounds")
    for column in ("subject", "batch", OURS, BARE, *WAYS, "ratio", "wanted", "overhead"):
        shown.add_column(column, justify="left" if column == "subject" else "right")
    for one in results:
        times = [f"{one['median_s'][name] * 1e3:.2f}" for name in (OURS, BARE, *WAYS)]
        ratio = f"{one['ratio']:.2f} ({one['ratio_spread'][0]:.2f}-{one['ratio_spread'][1]:.2f})"
        shown.add_row(one["subject"], str(one["batch"]), *times, ratio, f"{one['wanted']:.2f}", f"{one['overhead']:+.1%}")
    return shown


@click.command()
@click.option("--subject", "names", type=click.Choice(list(SUBJECTS)), multiple=True, help="Only these.  [default: all]")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="For all.  [default: edgegen's own choice]")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure there.")
def main(names, rounds, threads, json_file):
    """Compare edgegen with PyTorch on image models."""
    threads, results, shares = threads or default_threads(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or SUBJECTS:
            subject = export(name, Path(folder))
            with contextlib.ExitStack() as stack:
                workers = open_workers(stack, subject, Path(folder), threads)
                for batch in subject.batches:
                    disturbance = Disturbance([worker.facts["pid"] for worker in workers.values()])
                    results.append(summarize(name, batch, measure(workers, batch, rounds)))
                    shares.append(disturbance.share())
                    click.echo(f"{name}, batch {batch}: {results[-1]['ratio']:.2f}", err=True)
                versions = {engine: worker.facts["versions"] for engine, worker in workers.items()}
    Console(width=150).print(table(results))
    quiet = max(shares) <= MOST_OTHERS_SHARE
    click.echo(f"others took up to {max(shares):.1%} of the processor" + ("" if quiet else ": these figures do not count"))
    if json_file is not None:
        measured = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        found = {"measured": measured, "machine": describe(), "threads": threads, "versions": versions, "quiet": quiet}
        json_file.write_text(
            json.dumps(found | {"others_share": shares, "results": results}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
