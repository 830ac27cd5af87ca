"""What was measured on one machine, in one file: rows of several sittings, and the tables that show them."""

import json
import subprocess
from pathlib import Path

import click
from images.figures import BARE, FP16, MOST_OTHERS_SHARE, OURS, PLAIN, SESSION, WAYS, target, verdict
from rich.console import Group
from rich.table import Table

METHOD = (
    "Seconds of a run (of ddim-20: of an image of 20 steps), medians of each round, engines in turn. torch / edgegen: the "
    "fastest of PyTorch's four ways over edgegen. overhead: edgegen's session over the same native onnxruntime session called "
    "directly, in turn in one process. image overhead: the whole image over 20 runs of that session. plain onnxruntime: a "
    "session that onnxruntime makes of the same graph file, with no kernels of edgegen. Ratios: the median of those within "
    "the rounds."
)
_SAME_MACHINE = ("cpu", "architecture", "logical_cpus")
_MARKS = {"pass": "[green]pass[/]", "miss": "[bold red]miss[/]", "busy": "[yellow]busy[/]"}


def read(path, machine):
    """What the file has, or the beginning of it. ClickException where it is of another machine, or no such file at all."""
    if path is None or not path.exists():
        return {"method": METHOD, "machine": machine, "rows": []}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        of_other = [name for name in _SAME_MACHINE if known["machine"][name] != machine[name]]
        known["rows"] = list(known["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{path} is no file of this benchmark; give another name") from error
    if of_other:
        was, now = (found[of_other[0]] for found in (known["machine"], machine))
        raise click.ClickException(f"{path} was measured on another machine ({was}, here {now}); give another name")
    return known | {"method": METHOD, "machine": machine}


def merge(known, row):
    """Put the row in the place of the one before it. One that was disturbed does not replace one that was not.

    Returns whether it was put.
    """
    rows = known["rows"]
    same = [place for place, old in enumerate(rows) if _key(old) == _key(row)]
    if same and rows[same[0]]["quiet"] and not row["quiet"]:
        return False
    if same:
        rows[same[0]] = row
    else:
        rows.append(row)
    return True


def is_done(known, subject, batches):
    """Whether the file has quiet rows of the subject at every batch size."""
    quiet = {_key(row) for row in known["rows"] if row["quiet"]}
    return quiet >= {(subject, batch) for batch in batches}


def write(path, known, order):
    """The file, whole or not at all; subjects in the order of `order`."""
    known["rows"].sort(key=lambda row: (order.index(row["subject"]) if row["subject"] in order else len(order), row["batch"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def commit():
    """Of this repository, with a + where files differ from it; None where git does not tell."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def report(known):
    """For people: the targets, and the milliseconds behind them."""
    notes = [f"{len(known['rows'])} rows; ratios are the median of the rounds (least to most). wanted: of torch / edgegen."]
    made_by = sorted({str(row["commit"]) for row in known["rows"]})
    if len(made_by) > 1:
        notes.append(f"Measured with different code: {', '.join(made_by)}.")
    if any(not row["quiet"] for row in known["rows"]):
        notes.append(f"busy: others took more than {MOST_OTHERS_SHARE:.0%} of the processors; such a row counts for nothing.")
    return Group(_targets(known["rows"]), _times(known["rows"]), *notes)


def _targets(rows):
    columns = ("torch / edgegen", "wanted", "overhead", "image overhead", "fp16 / fp32", "plain / edgegen", "others", "verdict")
    shown = _table("Against PyTorch's best", columns)
    for row in rows:
        ratio, fp16 = target(row, "torch / edgegen"), target(row, "fp16 / fp32")
        overheads = [_share(target(row, name)) for name in ("overhead", "image overhead")]
        wanted = f"> {ratio['wanted']:.2f}" if ratio["wanted"] == 1 else f"{ratio['wanted']:.2f}"
        plain = "" if row["plain_ratio"] is None else f"{row['plain_ratio']:.2f}"
        cells = [_spread(ratio), wanted, *overheads, _spread(fp16), plain, f"{row['others_share']:.1%}"]
        shown.add_row(row["subject"], str(row["batch"]), *cells, _MARKS[verdict(row)])
    return shown


def _times(rows):
    names = (OURS, SESSION, BARE, PLAIN, FP16, *WAYS)
    shown = _table("Milliseconds (* the best of PyTorch)", names)
    for row in rows:
        cells = []
        for name in names:
            time_s = row["median_s"].get(name)
            mark = "*" if name == row["best_of_torch"] else ""
            cells.append("" if time_s is None else f"{mark}{time_s * 1e3:.2f}")
        shown.add_row(row["subject"], str(row["batch"]), *cells)
    return shown


def _table(title, columns):
    shown = Table(title=title)
    for column in ("subject", "batch", *columns):
        shown.add_column(column, justify="left" if column == "subject" else "right")
    return shown


def _share(one):
    return "" if one is None else _marked(one, f"{one['median'] - 1:+.1%}")


def _spread(one):
    if one is None:
        return ""
    return _marked(one, f"{one['median']:.2f} ({one['spread'][0]:.2f} to {one['spread'][1]:.2f})")


def _marked(one, text):
    return text if one["met"] else f"[red]{text}[/]"


def _key(row):
    return row["subject"], row["batch"]
