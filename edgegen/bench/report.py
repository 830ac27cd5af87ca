"""A benchmark's result for people: tables for a terminal. For machines, the result itself is one JSON object."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

_STAGES = ("tokenize", "forward", "sample", "detokenize")


def text_report(result: dict[str, Any]) -> Group:
    """What `bench_text` returned, as a group of tables and notes that rich can print."""
    return Group(*_head(result), _speed(result), _stages(result), _cold(result), result["method"])


def image_report(result: dict[str, Any]) -> Group:
    """What `bench_images` returned, as a group of tables and notes that rich can print."""
    bundle, machine, settings = result["bundle"], result["machine"], result["settings"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    said = "".join(f", {name} {value}" for name, value in settings["options"].items())
    head = [
        f"{bundle['name']}, {bundle['family']}, {bundle['precision']}, {_mib(bundle['weights_bytes'])} of weights",
        f"{machine['cpu']}, {machine['usable_cores']} cores",
        f"{settings['backend']}, {settings['threads'] or machine['usable_cores']} threads; {libraries}",
        f"{settings['method']}{said}, {settings['warmup']} warm-up, {settings['repeats']} repeats",
    ]
    return Group(*head, _images(result), _graphs(result), _cold(result), result["method"])


def _images(result: dict[str, Any]) -> Table:
    has_steps = any(entry["steps_per_s"] is not None for entry in result["batches"])
    columns = ("batch", "image ms p50", "p90", "p99", "images/s", "spread", *(("steps/s",) if has_steps else ()))
    table = _table("Warm; milliseconds are of one image, of the whole pipeline", columns)
    for entry in result["batches"]:
        times = (_ms(entry["per_image"][name]) for name in ("p50_s", "p90_s", "p99_s"))
        steps = (f"{entry['steps_per_s']:.1f}",) if has_steps else ()
        table.add_row(str(entry["batch"]), *times, f"{entry['images_per_s']:.1f}", f"{entry['spread']:.0%}", *steps)
    return table


def _graphs(result: dict[str, Any]) -> Table:
    table = _table("Where the time goes; the rest is the pipeline's own", ("batch", "graph", "runs", "ms", "share"))
    for entry in result["batches"]:
        for name, graph in entry["graphs"].items():
            table.add_row(str(entry["batch"]), name, f"{graph['runs']:g}", _ms(graph["seconds"]), f"{graph['share']:.1%}")
        table.add_row(str(entry["batch"]), "(rest)", "", _ms(entry["rest_s"]), f"{entry['rest_share']:.1%}")
    return table


def _head(result: dict[str, Any]) -> list[str]:
    bundle, machine, settings = result["bundle"], result["machine"], result["settings"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    threads = settings["threads"] or machine["usable_cores"]
    own = f" (edgegen's kernels for {machine['own_kernels']})" if machine["own_kernels"] else ""
    left_out = ", ".join(map(str, result["left_out_prompt_lengths"]))
    lines = [
        f"{bundle['name']}, {bundle['precision']}, {_mib(bundle['weights_bytes'])} of weights",
        f"{machine['cpu']}, {machine['usable_cores']} cores",
        f"read bandwidth {_bandwidth(result['read_bandwidth_bytes_per_s'])}{result['read_bandwidth_source']}",
        f"{settings['backend']}{own}, {threads} threads; {libraries}",
        f"{settings['new_tokens']} new tokens, {settings['warmup']} warm-up, {settings['repeats']} repeats",
    ]
    return [*lines, f"left out, too long for the context: prompts of {left_out} tokens"] if left_out else lines


def _speed(result: dict[str, Any]) -> Table:
    columns = ("prompt", "first token ms", "token ms p50", "p90", "p99", "tokens/s", "spread", "limit", "share")
    table = _table("Warm; limit: tokens/s that the memory bandwidth allows", columns)
    for entry in result["prompts"]:
        gaps, roofline = entry["inter_token"], entry["roofline"]
        table.add_row(
            str(entry["prompt_tokens"]),
            _ms(entry["first_token"]["p50_s"]),
            *(_ms(gaps[name]) for name in ("p50_s", "p90_s", "p99_s")),
            f"{entry['decode_tokens_per_s']:.1f}",
            f"{entry['decode_spread']:.0%}",
            "-" if roofline["share"] is None else f"{roofline['tokens_per_s']:.0f}",
            "-" if roofline["share"] is None else f"{roofline['share']:.0%}",
        )
    return table


def _stages(result: dict[str, Any]) -> Table:
    table = _table("Where the time of one generation goes", ("prompt", *(f"{stage} ms" for stage in _STAGES)))
    for entry in result["prompts"]:
        table.add_row(str(entry["prompt_tokens"]), *(_ms(entry["stage_s"].get(stage)) for stage in _STAGES))
    return table


def _cold(result: dict[str, Any]) -> Table:
    cold = result["cold"]
    columns = ("import ms beyond numpy", "load ms", "first generation ms", "peak memory MiB")
    table = _table(f"Cold, median of {cold['processes']} fresh processes", columns)
    peak = cold.get("peak_memory_bytes")
    times = (_ms(cold[key]) for key in ("import_s", "load_s", "first_generation_s"))
    table.add_row(*times, "?" if peak is None else f"{peak / 2**20:.0f}")
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=" " not in column)
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def _bandwidth(bytes_per_s: float | None) -> str:
    return "" if bytes_per_s is None else f"{bytes_per_s / 1e9:.1f} GB/s, "


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.{0 if size_bytes >= 10 << 20 else 1}f} MiB"
