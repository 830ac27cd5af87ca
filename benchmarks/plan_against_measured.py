"""Does a bundle take the memory that `edgegen plan` says, and is its bound on speed never beaten?

Each row runs in a process of its own, as an application would, three times, for the second run of a graph takes memory that
the first did not; its peak resident memory (VmHWM) is held against the plan's, and the best time of each kind of run against
its bound. Arithmetic is bounded by the processor's clock times what its instructions do in one, or by what numpy's product of
float32 matrices reaches, where a virtual machine tells a clock that is too low; times four for int8, as AVX-512 VNNI has it.
Bandwidth is measured: reading a buffer as large as what a run reads, so that caches count for both; the best of all tries.
"""

import json
import subprocess
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from images.bundles import bundle_of
from images.record import commit
from images.subjects import make

from edgegen.backends.threads import default_threads
from edgegen.bench.machine import describe, read_bandwidth
from edgegen.devices.detect import detect
from edgegen.planner import memory
from edgegen.planner.graphs import CPU, Ask, read_bundle
from edgegen.planner.here import product_flops
from edgegen.planner.roofline import Peaks, roofs

WORKER = Path(__file__).parent / "plans" / "worker.py"
MOST_OFF = 0.15
LEAST_BUFFER_BYTES = 8 << 20
INT8_PER_FP32 = 4
TRIES = 5
BEST = {}  # peaks by what they are of: "flops", or the bytes of a buffer


def _translated(side, **more):
    """A job of the upscaler, and what is asked of the plan."""
    asked = {"batch": 1, "height": side, "width": side, **more}
    return "esrgan-slim", {"kind": "translate", **asked}, asked


JOBS = (  # of the image models: the subject, the job, what is asked of the plan
    *(("dcgan", {"kind": "generate", "batch": batch}, {"batch": batch}) for batch in (1, 8)),
    *(("vae-128", {"kind": "reconstruct", "batch": batch, "side": 128}, {"batch": batch}) for batch in (1, 8)),
    ("vae-512", {"kind": "reconstruct", "batch": 1, "side": 512}, {"batch": 1}),
    *(("unet-step", {"kind": "generate", "batch": batch, "steps": 4}, {"batch": batch}) for batch in (1, 8)),
    *(("stylegan2-synthesis", {"kind": "generate", "batch": batch}, {"batch": batch}) for batch in (1, 8)),
    *(_translated(side) for side in (128, 256, 512)),
    _translated(512, tile=128),
)
PROMPTS = (16, 512, 1500)  # of the language models, in tokens, as far as their contexts go
NEW_TOKENS = 24


@click.command()
@click.argument("bundles", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write one JSON object.")
@click.option("--images/--no-images", default=True, show_default=True, help="Measure the image models, too.")
def main(bundles, output, images):
    """Measure the language models BUNDLES and the image models, whose bundles are made where they are not there yet."""
    rows = [row for bundle in bundles for row in _text_rows(bundle)]
    for name, job, asked in JOBS if images else ():
        rows.append(row_of(bundle_of(make(name)), name, job, Ask(**asked)))
        _show(rows[-1])
    found = {"commit": commit(), "machine": describe(), "most_off": MOST_OFF, "rows": rows}
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Console().print(_table(rows))
    if not all(row["is_within"] and not row["beaten"] for row in rows):
        sys.exit(1)


def _text_rows(bundle):
    """One for each prompt that the context has room for."""
    context = read_bundle(bundle, CPU).settled(Ask()).context
    for prompt in PROMPTS:
        if prompt + NEW_TOKENS > context:
            continue
        job = {"kind": "text", "prompt": prompt, "new": NEW_TOKENS}
        yield row_of(bundle, bundle.name.removesuffix(".bundle"), job, None)


def row_of(bundle, name, job, ask):
    """Run a job, and hold it against the plan. `ask` is None for text: how many tokens it was is known afterwards."""
    measured = _run(bundle, job)
    ask = ask or Ask(context=measured["tokens"])
    planned = read_bundle(bundle, CPU)
    used = memory.usage(planned, ask, threads=default_threads())
    runtime = memory.runtime(CPU, planned.manifest.family)
    predicted = runtime.size_bytes + used.size_bytes
    speeds = list(_speeds(planned, ask, measured["times_s"]))
    return {
        "name": name,
        "precision": planned.manifest.precision,
        "job": job,
        "predicted_bytes": predicted,
        "measured_bytes": measured["peak_bytes"],
        "ratio": predicted / measured["peak_bytes"],
        "is_within": abs(predicted / measured["peak_bytes"] - 1) <= MOST_OFF,
        "parts": {part.name: part.size_bytes for part in (runtime, *used.parts)},
        "unknown_shapes": used.unknown,
        "speeds": speeds,
        "beaten": any(speed["share_of_bound"] > 1 for speed in speeds),
    }


def _speeds(planned, ask, times_s):
    """Each bound beside the best time of that kind of run, which is known by its graph and its first input's rows."""
    read_bytes = max(
        (roof.work.weights_bytes + roof.work.state_bytes for roof in roofs(planned, ask, Peaks(1.0, 1.0, 1.0))), default=0
    )
    peaks = _peaks(max(read_bytes, LEAST_BUFFER_BYTES))
    for roof in roofs(planned, ask, peaks):
        taken = [taken_s for name, taken_s in times_s.items() if _is_run(name, roof, planned)]
        if taken:
            yield {
                "name": roof.name,
                "bound": roof.bound,
                "least_s": roof.seconds,
                "best_s": min(taken),
                "share_of_bound": roof.seconds / min(taken),
                "peaks": peaks._asdict(),
            }


def _is_run(name, roof, planned):
    path, shape = name.split()
    if planned.is_text:
        tokens = int(shape.split("x")[1])
        return tokens == roof.count
    graph = next(graph for graph in planned.graphs if graph.variant.path == path)
    return graph.name == roof.name


def _peaks(size_bytes):
    """The best of all tries so far: what else the machine does only makes them worse."""
    threads = default_threads()
    told = detect().device()
    flops = [product_flops() for _ in range(TRIES)] + ([told.fp16_flops] if told is not None else [])
    bandwidths = [read_bandwidth(threads, size_bytes) for _ in range(TRIES)]
    BEST["flops"] = max(*flops, BEST.get("flops", 0))
    BEST[size_bytes] = max(*bandwidths, BEST.get(size_bytes, 0))
    return Peaks(BEST[size_bytes], BEST["flops"], INT8_PER_FP32 * BEST["flops"])


def _run(bundle, job):
    command = [sys.executable, str(WORKER), str(bundle), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{bundle}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _show(row):
    click.echo(f"{row['name']} {row['job']}: {row['ratio']:.3f}", err=True)


def _table(rows):
    table = Table(title="Peak memory, and the share of the bound that was reached")
    for column in ("model", "job", "predicted MiB", "measured MiB", "ratio", "of the bound"):
        table.add_column(column)
    for row in rows:
        job = ", ".join(f"{key} {value}" for key, value in row["job"].items() if key != "kind")
        speeds = ", ".join(f"{speed['name']} {speed['share_of_bound']:.2f}" for speed in row["speeds"])
        sizes = [f"{row[name] / (1 << 20):.1f}" for name in ("predicted_bytes", "measured_bytes")]
        table.add_row(f"{row['name']} {row['precision']}", job, *sizes, f"{row['ratio']:.2f}", speeds)
    return table


if __name__ == "__main__":
    main()
