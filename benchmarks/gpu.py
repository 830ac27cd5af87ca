"""Everything that needs an NVIDIA GPU, in one run, on whatever is there: one JSON object for benchmarks/results.

First, on any machine with the exporter:  gpu.py --prepare DIR        (no GPU)
Then, on the machine with the GPU:        gpu.py --bundles DIR -o results/NAME.json        (no network)

A piece that fails, hangs or lacks something is written down with its reason, and the next one starts. Without a GPU nothing is
measured and the exit code is 3. --rehearse walks the same way with the CPU in place of the GPU; its figures mean nothing.
"""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
from images import record
from on_gpu.hardware import clocks, gpus, throttled
from on_gpu.pieces import carry_out, pieces
from on_gpu.prepare import IMAGE_PRECISIONS, SUBJECTS, TEXT_PRECISIONS, prepare

NO_GPU = 3
ANSWER = "result: "  # how the line begins in which a piece tells its result
WAYS = ("eager", "compile")


def run(plan, wanted, output):
    """Carry out the pieces whose names begin as wanted; write the file after each. Returns the whole record."""
    prepared = json.loads((Path(plan["bundles"]) / "prepared.json").read_text(encoding="utf-8"))
    found = {
        "question": "edgegen on an NVIDIA GPU: is it right, how fast, and beside PyTorch?",
        "rehearsal": plan["rehearse"],
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": record.commit(),
        "plan": {**plan, "bundles": Path(plan["bundles"]).name},
        "not_prepared": prepared["failed"],
        "pieces": {},
    }
    names = [name for name in pieces(plan, prepared) if not wanted or name.startswith(tuple(wanted))]
    for name in names:
        piece = found["pieces"][name] = one(plan, name)
        click.echo(f"{name}: {piece['status']}, {piece['took_s']:.0f} s{': ' + piece['why'] if piece['why'] else ''}", err=True)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(without_places(found, plan) + "\n", encoding="utf-8")
    return found


def without_places(found, plan):
    """JSON of it all, without the names of this machine's folders."""
    text = json.dumps(found, indent=1)
    for place, name in (
        (plan["bundles"], "BUNDLES"),
        (str(Path(__file__).parents[1].resolve()), "EDGEGEN"),
        (sys.prefix, "VENV"),
    ):
        text = text.replace(json.dumps(place)[1:-1], name)
    return text


def one(plan, name):
    """One piece in a process of its own, with its time limit, and the clocks before and after."""
    before, start_s = clocks(), time.monotonic()
    status, why, result = in_process(plan, name)
    after = clocks()
    return {
        "status": status, "why": why, "took_s": time.monotonic() - start_s, "clocks": {"before": before, "after": after},
        "throttled": throttled(before, after), "result": result,
    }  # fmt: skip


def in_process(plan, name):
    """Status ("ok", "failed" or "timeout"), reason and result."""
    command = [sys.executable, str(Path(__file__).resolve()), "--piece", name, "--plan", json.dumps(plan)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        said, errors = process.communicate(timeout=plan["limit_s"])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.communicate()
        return "timeout", f"it took longer than {plan['limit_s']:g} s (--limit)", None
    if process.returncode == 0 and (answer := answer_in(said)) is not None:
        return "ok", "", answer
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return "failed", f"{last} (exit status {process.returncode})", None


def answer_in(said):
    """The result among what a piece printed: native libraries print, too, before it and after it. None where there is none."""
    for line in reversed(said.splitlines()):
        if line.startswith(ANSWER):
            return json.loads(line.removeprefix(ANSWER))
    return None


def failures(found):
    """Pieces that did not go well, proofs and tests that failed included."""
    bad = [name for name, piece in found["pieces"].items() if piece["status"] != "ok"]
    for name, piece in found["pieces"].items():
        result = piece["result"] or {}
        if result.get("passed") is False or (name == "contract" and result.get("failed")):
            bad.append(name)
    return bad


@click.command(help=__doc__)
@click.option("--prepare", "prepare_in", type=click.Path(path_type=Path, file_okay=False), help="Make the bundles there.")
@click.option("--bundles", type=click.Path(path_type=Path, exists=True, file_okay=False), help="What --prepare made.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The JSON file.")
@click.option("--pieces", "wanted", multiple=True, help="Only those whose names begin so; may be given several times.")
@click.option("--limit", "limit_s", type=float, default=600, show_default=True, help="Seconds for each piece.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=4, show_default=True, help="CPU threads of every engine.")
@click.option("--backend", "backends", multiple=True, help="Only these.  [default: all for GPUs]")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), help="Of PyTorch.  [default: all]")
@click.option("--device", default="", help="The GPU's row in the device table, whose bandwidth is put beside the measured one.")
@click.option(
    "--subject", "subjects", multiple=True, type=click.Choice([*SUBJECTS, "none"]), help="With --prepare: only these."
)
@click.option("--source", help="With --prepare: the language model; SmolLM2's recipe or random weights of its shape if none.")
@click.option("--rehearse", is_flag=True, help="The CPU in place of the GPU; with --prepare a tiny language model.")
@click.option("--piece", hidden=True)
@click.option("--plan", "plan_json", hidden=True)
@click.pass_context
def main(context, prepare_in, bundles, output, wanted, subjects, source, piece, plan_json, **options):
    if piece:
        plan = json.loads(plan_json)
        prepared = json.loads((Path(plan["bundles"]) / "prepared.json").read_text(encoding="utf-8"))
        click.echo(f"\n{ANSWER}{json.dumps(carry_out(plan, prepared, piece), default=str)}")
        return
    if prepare_in is not None:
        chosen = [name for name in subjects or SUBJECTS if name != "none"]
        texts = ("fp32",) if options["rehearse"] else TEXT_PRECISIONS
        images = ("fp32",) if options["rehearse"] else IMAGE_PRECISIONS
        made = prepare(
            prepare_in, subjects=chosen, texts=texts, images=images, source=source, tiny=options["rehearse"], say=_say
        )
        context.exit(int(bool(made["failed"])))
    if bundles is None:
        raise click.UsageError("give --prepare DIR on a machine with the exporter, or --bundles DIR on the one with the GPU")
    _there, reason = gpus()
    if reason and not options["rehearse"]:
        click.echo(f"no GPU here ({reason}): nothing was measured; --rehearse walks the way on the CPU", err=True)
        context.exit(NO_GPU)
    plan = {
        **options,
        "bundles": str(bundles.resolve()),
        "ways": list(options["ways"] or WAYS),
        "backends": list(options["backends"]),
    }
    found = run(plan, wanted, output)
    if output is None:
        click.echo(without_places(found, plan))
    bad = failures(found)
    click.echo(f"{len(found['pieces']) - len(set(bad))} of {len(found['pieces'])} pieces went well", err=True)
    context.exit(int(bool(bad)))


def _say(line):
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
