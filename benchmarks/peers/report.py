"""The comparison for people: tables that rich prints. For machines, the result itself is one JSON object."""

from peers.figures import FIRST
from rich.console import Group
from rich.table import Table


def report(result):
    """What `against_peers.compare_all` returned, as tables and notes."""
    return Group(*_head(result), *map(_comparison, result["comparisons"]), _engines(result), _targets(result))


def _head(result):
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"{machine['cpu']}, {machine['usable_cores']} cores, reads {result['read_bandwidth_bytes_per_s'] / 1e9:.1f} GB/s",
        f"{settings['new_tokens']} new tokens, greedy, {settings['threads']} threads, {settings['rounds']} rounds after "
        f"{settings['warmup']} of warm-up; others took {result['others_share']:.1%} of the processor meanwhile",
    ]
    if not result["quiet"]:
        lines.append("[bold red]The machine was not quiet: these figures do not count.[/]")
    return lines


def _comparison(one):
    is_time = one["figure"] == FIRST
    unit, scale = ("ms to first token", 1e3) if is_time else ("decode tokens/s", 1)
    table = Table(title=f"{unit}, prompt of {one['prompt_tokens']} tokens")
    for column in ("engine", "median", "min", "max"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, found in one["engines"].items():
        mark = "  *" if name == one["best_peer"] else ""
        table.add_row(name + mark, *(f"{found[key] * scale:.1f}" for key in ("median", "min", "max")))
    rounds = one["ratio_of_rounds"]
    table.caption = (
        f"edgegen / {one['best_peer']} (*): {one['ratio_of_medians']:.3f} of medians, {rounds['median']:.3f} median of rounds "
        f"({rounds['min']:.3f} to {rounds['max']:.3f})"
    )
    return table


def _engines(result):
    table = Table(title="Engines")
    for column in ("engine", "load s", "peak MiB", "same text each round", "begins with"):
        table.add_column(column)
    for name, engine in result["engines"].items():
        peak = engine["peak_memory_bytes"]
        first = next(iter(engine["answers"].values()))
        same = all(answer["same_each_round"] for answer in engine["answers"].values())
        memory = "?" if peak is None else f"{peak / 2**20:.0f}"
        table.add_row(name, f"{engine['load_s']:.2f}", memory, "yes" if same else "NO", repr("".join(first["tokens"])))
    return table


def _targets(result):
    table = Table(title="Targets" if result["quiet"] else "Targets, but on a machine that was not quiet: does not count")
    for column in ("what", "target", "reached", ""):
        table.add_column(column, justify="right" if column in {"target", "reached"} else "left")
    for row in result["targets"]:
        sign = "<=" if row["at_most"] else ">="
        met = "[green]met[/]" if row["met"] else "[bold red]not met[/]"
        table.add_row(row["name"], f"{sign} {row['target']:.4g}", f"{row['value']:.4g}", met)
    return table
