"""The pieces of a run on a GPU. Each has a process of its own: what hangs or dies takes nothing with it."""

import contextlib
import functools
import statistics
import sys
import tempfile
from pathlib import Path

from images.rounds import get_ready, measure, rounds_for
from on_gpu.contract import WITHOUT_TF32, run_tests
from on_gpu.hardware import copy_bandwidth, gpus
from peers.workers import Worker, WorkerError

PARTS = Path(__file__).parent
CPU = "onnxruntime"  # the backend of a rehearsal
REHEARSED = "tests/backends/ort/test_device.py"  # the way of the GPUs, with the CPU as the device
CONTEXT = 512  # entries of a language model's cache, of every engine that has to know it: a masked one is read whole
PROMPT, NEW_TOKENS = "The river had been low all summer.", 16


def backends(plan):
    """The backends that are measured: those asked for, else all for GPUs that are installed; in a rehearsal the CPU's.

    What is not installed is named in the piece "machine".
    """
    from edgegen.backends import present_backends

    if plan["rehearse"]:
        return [CPU]
    return [name for name in plan["backends"] or present_backends() if name != CPU]


def pieces(plan, prepared):
    """The names of all pieces, in the order in which they are carried out: first what proves, then what measures."""
    names = backends(plan)
    bundles = list(dict.fromkeys(item["bundle"] for item in prepared["items"]))
    found = ["machine", "contract"]
    found += [f"proof:{bundle}:{backend}" for bundle in bundles for backend in names]
    found += [f"{item['kind']}:{item['name']}:{item['precision']}" for item in prepared["items"]]
    return found + [f"cold:{bundle}:{backend}" for bundle in bundles for backend in names]


def carry_out(plan, prepared, name):
    """The result of one piece, for JSON."""
    kind, _, rest = name.partition(":")
    return _KINDS[kind](plan, prepared, rest)


def _machine(plan, _prepared, _rest):
    from edgegen.backends import BACKENDS, fault, install_hint, present_backends
    from edgegen.bench.machine import describe

    found, reason = gpus()
    present = present_backends()
    states = {
        name: "not installed: " + install_hint(backend)
        if name not in present
        else _tried(lambda name=name: fault(name) or "works")
        for name, backend in BACKENDS.items()
    }
    return {
        "cpu": _tried(describe),
        "gpus": found,
        "no_gpu": reason,
        "backends": states,
        "libraries": _libraries(),
        "bandwidth_bytes_per_s": _bandwidth(plan),
        "table_bandwidth_bytes_per_s": _tried(functools.partial(_of_table, plan)),
    }


def _libraries():
    from importlib.metadata import distributions

    wanted = ("onnxruntime", "tensorrt", "torch", "triton", "nvidia-", "cuda-", "diffusers", "transformers", "edgegen")
    named = ((each.metadata["Name"] or "", each.version) for each in distributions())
    return {name: version for name, version in sorted(named) if name.lower().startswith(wanted)}


def _bandwidth(plan):
    from edgegen.bench.machine import read_bandwidth

    return read_bandwidth(plan["threads"]) if plan["rehearse"] else _tried(copy_bandwidth)


def _of_table(plan):
    from edgegen.devices.table import lookup

    return lookup(plan["device"]).bandwidth_bytes_s


def _tried(read):
    try:
        return read()
    except Exception as error:  # it is only a part of the piece
        return {"missing": f"{type(error).__name__}: {error}"}


def _contract(plan, _prepared, _rest):
    if plan["rehearse"]:
        return run_tests(marker="not gpu", tests=[REHEARSED])
    return run_tests()


def _proof(plan, _prepared, rest):
    from edgegen.proof import verify_bundle

    bundle, _, backend = rest.rpartition(":")
    report = verify_bundle(str(Path(plan["bundles"]) / bundle), backend)
    return {"passed": report.passed, "report": {**report.as_dict(), "bundle": bundle}}  # without a path of this machine


def _cold(plan, prepared, rest):
    """The first process builds what there is to build, in an empty cache; the second finds it."""
    bundle, _, backend = rest.rpartition(":")
    item = max((item for item in prepared["items"] if item["bundle"] == bundle), key=lambda item: item["steps"])
    path = str((Path(plan["bundles"]) / bundle).resolve())
    with tempfile.TemporaryDirectory() as cache, _environment(XDG_CACHE_HOME=cache):
        return {state: _first_output(plan, item, path, backend) for state in ("cache_cold", "cache_hot")}


def _first_output(plan, item, path, backend):
    """Seconds from the start of a process: importing, loading (with what is built then), the first output."""
    from edgegen.bench.cold import measure_cold, measure_cold_call

    if item["kind"] == "text":
        return measure_cold(path, backend, plan["threads"], PROMPT, NEW_TOKENS)
    options = {"count": 1, "seed": 0} | ({"steps": item["steps"], "stepper": "ddim"} if item["steps"] else {})
    return measure_cold_call(path, backend, plan["threads"], "generate", [], options)


@contextlib.contextmanager
def _environment(**values):
    import os

    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _race(plan, prepared, rest, kind):
    """Every engine on one item, in turns; an engine that cannot start is named, and the others race on."""
    name, _, precision = rest.rpartition(":")
    item = next(
        each for each in prepared["items"] if (each["kind"], each["name"], each["precision"]) == (kind, name, precision)
    )
    failed = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for engine, script, settings in engines(plan, prepared, item):
            worker = _started(engine, PARTS / script, settings, failed)
            if worker is not None:
                workers[engine] = stack.enter_context(worker)
        facts = {engine: {**worker.facts, "pid": None} for engine, worker in workers.items()}
        rows = [_row(plan, item, batch, workers, failed) for batch in item["batches"]]
    roofline = _tried(lambda: _roofline(plan, item, rows)) if item["kind"] == "text" and backends(plan) else None
    return {"item": item, "engines": facts, "failed": failed, "rows": rows} | ({"roofline": roofline} if roofline else {})


def _started(engine, script, settings, failed):
    """The engine's worker; None where it cannot start, and `failed` says why."""
    try:
        return Worker(engine, sys.executable, script, settings, {"HF_HUB_OFFLINE": "1", **WITHOUT_TF32})
    except (WorkerError, OSError) as error:
        failed[engine] = str(error)
        return None


def engines(plan, prepared, item):
    """Name, script and settings of each engine: edgegen's backends, CUDA with graphs, and PyTorch's ways."""
    folder = Path(plan["bundles"])
    common = {"kind": item["kind"], "threads": plan["threads"], "precision": item["precision"], "steps": item["steps"]}
    ours = common | {
        "context": CONTEXT,
        "bundle": str(folder / item["bundle"]),
        "graph": item["graph"],
        "feeds": str(folder / item.get("feeds", "")),
    }
    for backend in backends(plan):
        yield f"edgegen {backend}", "edgegen_engine.py", ours | {"name": f"edgegen {backend}", "backend": backend}
        if backend == "onnxruntime-cuda":
            graphs = f"edgegen {backend}, CUDA graphs"
            yield graphs, "edgegen_engine.py", ours | {"name": graphs, "backend": backend, "options": {"cuda_graphs": True}}
    theirs = common | {"device": "cpu" if plan["rehearse"] else "cuda", "subject": item["name"], "context": CONTEXT}
    if item["kind"] == "text":
        theirs |= {"source": str(folder / prepared["text"]["path"])}
    for way in plan["ways"]:
        yield f"torch {way}", "torch_engine.py", theirs | {"name": f"torch {way}", "way": way}


def _row(plan, item, batch, workers, failed):
    """Medians of the rounds in seconds by engine, and the ratios of PyTorch's best to each of edgegen's within the rounds."""
    ready = {}
    for name in list(workers):
        ready |= _ready(workers, name, batch, failed)
    medians = _measured(plan, workers, batch, ready, failed)
    return {
        "batch": batch,
        "unit": "tokens" if item["kind"] == "text" else "images",
        "rounds_s": medians,
        "median_s": {name: statistics.median(times_s) for name, times_s in medians.items()},
        "torch_over_edgegen": ratios(medians),
    }


def _measured(plan, workers, batch, ready, failed):
    """Medians of the rounds by engine; an engine that dies meanwhile is named, and the others begin again without it."""
    if not workers:
        return {}
    try:
        return measure(workers, batch, ready, rounds_for(plan["rounds"], ready), ())
    except (WorkerError, BrokenPipeError) as error:
        dead = [name for name, worker in workers.items() if not worker.is_alive]
        if not dead:
            raise
        for name in dead:
            failed[f"{name}, batch {batch}"] = str(error)
            workers.pop(name)
            ready.pop(name)
    return _measured(plan, workers, batch, ready, failed)


def _ready(workers, name, batch, failed):
    """The seconds of a run of one engine; nothing, and no such worker any more, where it dies at this batch."""
    try:
        return get_ready({name: workers[name]}, batch)
    except (WorkerError, BrokenPipeError) as error:
        failed[f"{name}, batch {batch}"] = str(error)
        workers.pop(name)
        return {}


def ratios(medians):
    """By engine of edgegen: median, least and most of PyTorch's best way over it, round by round; more than 1 is faster."""
    theirs = {name: times_s for name, times_s in medians.items() if name.startswith("torch ")}
    if not theirs:
        return {}
    best = min(theirs.values(), key=statistics.median)
    found = {}
    for name, times_s in medians.items():
        if name.startswith("edgegen "):
            each = [their_s / our_s for their_s, our_s in zip(best, times_s, strict=True)]
            found[name] = {"median": statistics.median(each), "spread": [min(each), max(each)]}
    return found


def _roofline(plan, item, rows):
    """For a language model: what share of the memory's speed a decode step reaches, by engine."""
    from edgegen.backends import variant_for
    from edgegen.bench.text import state_bytes_per_entry
    from edgegen.bundle import Bundle

    bandwidth = _bandwidth(plan)
    with Bundle.open(Path(plan["bundles"]) / item["bundle"]) as bundle:
        graph = bundle.manifest.graphs[item["graph"]]
        variant = graph.variants[variant_for(backends(plan)[0], bundle, item["graph"])]
        weights_bytes = sum(bundle.manifest.files[path].size_bytes for path in variant.weights)
    if not isinstance(bandwidth, float):
        return bandwidth
    state_bytes = 64 * state_bytes_per_entry(variant)  # 32 tokens of prompt, and the middle of what follows
    least_s = (weights_bytes + state_bytes) / bandwidth
    decode = next(row for row in rows if row["batch"] == 1)
    shares = {name: least_s / median_s for name, median_s in decode["median_s"].items() if name.startswith("edgegen ")}
    return {
        "weights_bytes": weights_bytes, "state_bytes": state_bytes, "bandwidth_bytes_per_s": bandwidth,
        "least_s": least_s, "share": shares,
    }  # fmt: skip


_KINDS = {
    "machine": _machine,
    "contract": _contract,
    "proof": _proof,
    "cold": _cold,
    "text": functools.partial(_race, kind="text"),
    "image": functools.partial(_race, kind="image"),
}
