"""Is edgegen faster than its neighbours? Same weights, same threads, in one run, alternating: see README.md beside this file.

Prints tables; `--json FILE` also writes one object with every figure of every round and how it was got.
"""

import contextlib
import datetime
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from peers import prepare
from peers.disturbance import Disturbance
from peers.figures import DECODE, FIRST, GREEDY, OURS, SAMPLED, Sample, compare, sampling_cost, spread, targets
from peers.report import report
from peers.workers import Worker, WorkerError
from rich.console import Console

from edgegen.backends import choose, variant_for
from edgegen.backends.threads import default_threads
from edgegen.bench.cold import measure_cold, measure_import
from edgegen.bench.machine import describe, read_bandwidth
from edgegen.bench.text import prompt_of
from edgegen.bundle import Bundle
from edgegen.export.recipe import load_recipe
from edgegen.tokenizers import Tokenizer

ROOT = Path(__file__).parent.parent
SAMPLING = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 1}
MOST_OTHERS_SHARE = 0.03  # of all processors' time: with more, the machine was not quiet
METHOD = (
    "Persistent processes, one engine each, one working at a time; every round asks all of them, in an order that rotates. All "
    "get the same prompt token ids and make exactly the same number of tokens, past any end of text. Decode tokens/s: tokens "
    "after the first over the time from the first id known to Python to the last. Time to first token: for edgegen from the "
    "call with text, so with tokenizing, cache allocation and detokenizing; for the peers from the call with ids, their caches "
    "made before. The peer compared with is the one with the best median. Cold: fresh processes, files in the page cache."
)


@dataclass(frozen=True)
class Plan:
    """What is asked of whom. threads None is edgegen's own choice, which the peers then get too."""

    bundle: Path
    recipe: Path
    threads: int | None
    rounds: int
    warmup: int
    new_tokens: int
    prompt_tokens: tuple
    pause_s: float
    cold_processes: int


@dataclass(frozen=True)
class Prompt:
    """One text and its ids, which every engine gets."""

    text: str
    ids: tuple


@dataclass(frozen=True)
class Subject:
    """What is known of the bundle: its name, its tokenizer, and the bytes of the weights that generation reads."""

    name: str
    source_sha256: str
    weights_bytes: int
    tokenizer: Tokenizer


def open_subject(path):
    """Read the bundle's facts and close it again."""
    with Bundle.open(path) as bundle:
        manifest = bundle.manifest
        variant = manifest.graphs["decoder"].variants[variant_for(choose("auto"), bundle, "decoder")]
        weights_bytes = sum(manifest.files[name].size_bytes for name in variant.weights)
        tokenizer = Tokenizer.from_bytes(bundle.read(manifest.settings["tokenizer"]))
        return Subject(manifest.name, manifest.source.sha256, weights_bytes, tokenizer)


def engines(plan, subject, python):
    """Each engine as (name, interpreter, script, settings, how its model was made)."""
    gguf = load_recipe(plan.recipe).source()
    threads = plan.threads or default_threads()
    room = -(-(max(plan.prompt_tokens) + plan.new_tokens) // 256) * 256
    genai = prepare.genai_directory(gguf, subject.source_sha256, python)
    own = {"model": str(plan.bundle.resolve()), "threads": plan.threads}
    theirs = {"model": str(genai.path), "threads": threads}
    yield OURS, sys.executable, "edgegen_worker.py", own, f"bundle {subject.name}"
    yield "onnxruntime-genai", python, "genai_worker.py", theirs, genai.made
    # Which of these is the fastest depends on the processor and on the prompt: all run, and the best one counts.
    for pure in (False, True):
        made = prepare.llama_file(gguf, subject.source_sha256, python, pure=pure)
        for flash in (False, True):
            name = f"llama.cpp Q4_0{' pure' * pure}{' flash' * flash}"
            settings = theirs | {"model": str(made.path), "context_length": room, "ubatch": room, "flash_attention": flash}
            yield name, python, "llama_worker.py", settings, made.made


def run_rounds(plan, workers, prompts):
    """Ask every worker in every round. Returns the samples after warm-up, and the ids of every greedy answer by worker."""
    samples, answers = [], {worker.name: {len(prompt.ids): [] for prompt in prompts} for worker in workers}
    for place in range(-plan.warmup, plan.rounds):
        for prompt in prompts:
            turn = place % len(workers)
            for worker in workers[turn:] + workers[:turn]:
                for mode in (GREEDY, SAMPLED) if worker.name == OURS else (GREEDY,):
                    answer = ask(plan, worker, prompt, mode)
                    if mode == GREEDY:
                        answers[worker.name][len(prompt.ids)].append(answer["token_ids"])
                    if place >= 0:
                        samples.append(Sample(worker.name, len(prompt.ids), mode, place, tuple(answer["token_s"])))
        click.echo(f"round {place + 1} of {plan.rounds}" if place >= 0 else "warm-up", err=True)
    return samples, answers


def ask(plan, worker, prompt, mode):
    """One request, after a pause in which the threads of the engine before go to sleep."""
    time.sleep(plan.pause_s)
    options = SAMPLING if mode == SAMPLED else {"temperature": 0.0}
    request = {"prompt": prompt.text, "prompt_ids": prompt.ids, "new_tokens": plan.new_tokens, "options": options}
    answer = worker.request(**request)
    if len(answer["token_ids"]) != plan.new_tokens:
        raise WorkerError(f"{worker.name} made {len(answer['token_ids'])} tokens of {plan.new_tokens}")
    worker.facts["peak_memory_bytes"] = answer["peak_memory_bytes"]
    return answer


def measure_start(plan, prompt):
    """Import, load and the peak of one whole generation, each in fresh processes; None where none were asked for."""
    if plan.cold_processes == 0:
        return None
    count, bundle = range(plan.cold_processes), str(plan.bundle.resolve())
    runs = [measure_cold(bundle, "auto", plan.threads, prompt.text, plan.new_tokens) for _ in count]
    imports_s = [measure_import("edgegen") for _ in count]
    return {"import_s": spread(imports_s)} | {
        key: spread([run[key] for run in runs]) for key in ("load_s", "first_generation_s", "peak_memory_bytes")
    }


def describe_engines(workers, made, answers, tokenizer):
    """Facts of each engine and the first 20 tokens that it gave, as texts: a fast engine that talks nonsense is no peer."""
    return {
        worker.name: {
            "model": made[worker.name],
            **worker.facts,
            "answers": {
                length: {
                    "tokens": [tokenizer.decode([token]) for token in given[0][:20]],
                    "same_each_round": all(ids == given[0] for ids in given),
                }
                for length, given in answers[worker.name].items()
            },
        }
        for worker in workers
    }


def compare_all(plan, python):
    """Measure everything. Returns one object for JSON."""
    subject = open_subject(plan.bundle)
    prompts = [make_prompt(subject.tokenizer, length) for length in plan.prompt_tokens]
    checkpoint_matches(plan, subject)
    machine, bandwidth = describe(), read_bandwidth(plan.threads)  # before anything runs: its load average is others' work
    made = list(engines(plan, subject, python))
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(*engine[:4])) for engine in made]
        disturbance = Disturbance([worker.facts["pid"] for worker in workers])
        samples, answers = run_rounds(plan, workers, prompts)
        others_share = disturbance.share()
        told = describe_engines(workers, {engine[0]: engine[4] for engine in made}, answers, subject.tokenizer)
    comparisons = [compare(samples, length, figure) for length in plan.prompt_tokens for figure in (DECODE, FIRST)]
    sampling = sampling_cost(samples, plan.prompt_tokens[0])
    cold = measure_start(plan, prompts[-1])
    return {
        "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "method": METHOD,
        "bundle": {"name": subject.name, "source_sha256": subject.source_sha256, "weights_bytes": subject.weights_bytes},
        "machine": machine,
        "read_bandwidth_bytes_per_s": bandwidth,
        "others_share": others_share,
        "quiet": others_share <= MOST_OTHERS_SHARE,
        "settings": asdict(plan)
        | {"bundle": plan.bundle.name, "recipe": plan.recipe.name, "sampling": SAMPLING}
        | {"threads": plan.threads or default_threads(), "threads_given": plan.threads is not None},
        "engines": told,
        "comparisons": comparisons,
        "sampling": sampling,
        "cold": cold,
        "targets": targets(comparisons, sampling, cold, subject.weights_bytes),
    }


def make_prompt(tokenizer, length):
    """A text of exactly `length` tokens."""
    text = prompt_of(tokenizer, length)
    ids = tuple(tokenizer.encode(text))
    if len(ids) != length:
        raise click.ClickException(f"no text of exactly {length} tokens was found; the nearest has {len(ids)}")
    return Prompt(text, ids)


def checkpoint_matches(plan, subject):
    """Stop where the bundle was not made from the checkpoint that the peers are made from."""
    from edgegen.export.sources.base import file_sha256

    found = file_sha256(load_recipe(plan.recipe).source())
    if found != subject.source_sha256:
        raise click.ClickException(f"{plan.bundle} was made from other weights than {plan.recipe}: compare like with like")


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--recipe", type=click.Path(exists=True, path_type=Path), default=ROOT / "export" / "smollm2_135m.py")
@click.option("--peer-python", help="An interpreter that has llama-cpp-python and onnxruntime-genai; made if not given.")
@click.option("--threads", type=click.IntRange(min=1), help="For every engine. Default: edgegen's own choice.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Rounds that do not count.")
@click.option("--new-tokens", type=click.IntRange(min=2), default=200, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(min=2), multiple=True, default=(18, 539), show_default=True)
@click.option("--pause", "pause_s", default=0.3, show_default=True, help="Seconds before each request.")
@click.option("--cold", "cold_processes", type=click.IntRange(min=0), default=5, show_default=True, help="Fresh processes.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here as JSON.")
def main(peer_python, json_path, **options):
    try:
        result = compare_all(Plan(**options), prepare.peer_python(peer_python))
    except WorkerError as error:
        raise click.ClickException(str(error)) from error
    Console().print(report(result))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
