"""`edgegen bench`: how fast a bundle is on this machine."""

import sys
from pathlib import Path
from typing import Any

import click

from edgegen.cli.options import backend_option, check_folder, threads_option, to_json, write_text


@click.command(short_help="Measure speed and memory on this machine.")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...", type=click.Path(path_type=Path))
@click.option(
    "--prompt-length",
    "prompt_lengths",
    type=click.IntRange(min=1),
    multiple=True,
    default=(16, 128, 512),
    show_default=True,
    help="In tokens; may be given several times.",
)
@click.option("--new-tokens", type=click.IntRange(min=2), default=64, show_default=True, help="Tokens to generate in each run.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Runs that are not counted.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs that are.")
@backend_option
@threads_option
@click.option("--json", "json_file", metavar="FILE", help="Write one JSON object to FILE; '-' prints it instead of the table.")
def bench(bundles: tuple[Path, ...], json_file: str | None, **options: Any) -> None:
    """Measure import, load, time to first token, tokens per second and memory of each BUNDLE."""
    _check(bundles, json_file)
    results = [_measure(bundle, options) for bundle in bundles]
    _print(results, json_file)


def _check(bundles: tuple[Path, ...], json_file: str | None) -> None:
    """Find what is wrong before minutes of measuring, not after them."""
    from edgegen.bundle import Bundle

    if json_file not in (None, "-"):
        check_folder(Path(json_file))
    for bundle in bundles:
        Bundle.open(bundle).close()


def _measure(bundle: Path, options: dict[str, Any]) -> dict[str, Any]:
    from edgegen.bench.text import bench_text

    if sys.stderr is not None and sys.stderr.isatty():  # a line that stands still: a moving one would be measured too
        click.echo(f"measuring {bundle} ...", err=True)
    return bench_text(bundle, **options)


def _print(results: list[dict[str, Any]], json_file: str | None) -> None:
    from rich.console import Console

    from edgegen.bench.report import text_report

    if json_file == "-":
        click.echo(to_json({"results": results}))
        return
    for result in results:
        Console().print(text_report(result))
    if json_file is not None:
        write_text(Path(json_file), to_json({"results": results}, indent=1) + "\n")
