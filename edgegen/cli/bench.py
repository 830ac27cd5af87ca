"""`edgegen bench`: how fast a bundle is on this machine."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgegen.cli.options import backend_option, check_folder, threads_option, to_json, write_text
from edgegen.errors import InputError

_OF_TEXT = {"prompt_lengths": "--prompt-length", "new_tokens": "--new-tokens"}
_OF_IMAGES = {"batches": "--batch", "steps": "--steps"}


@click.command(short_help="Measure speed and memory on this machine.")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...", type=click.Path(path_type=Path))
@click.option(
    "--prompt-length",
    "prompt_lengths",
    type=click.IntRange(min=1),
    multiple=True,
    default=(16, 128, 512),
    show_default=True,
    help="Of language models, in tokens; may be given several times.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Of language models: to generate in each run.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Of image models: images in a call; may be given several times.  [default: 1 and the usual batch]",
)
@click.option("--steps", type=click.IntRange(min=1), help="Of diffusion models: denoising steps.  [default: the model's own]")
@click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Runs that are not counted.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs that are.")
@backend_option
@threads_option
@click.option("--json", "json_file", metavar="FILE", help="Write one JSON object to FILE; '-' prints it instead of the table.")
def bench(bundles: tuple[Path, ...], json_file: str | None, **options: Any) -> None:
    """Measure import, load, latency, throughput and memory of each BUNDLE."""
    _check(bundles, json_file)
    results = [_measure(bundle, options) for bundle in bundles]
    _print(results, json_file)


def _check(bundles: tuple[Path, ...], json_file: str | None) -> None:
    """Find what is wrong before minutes of measuring, not after them."""
    from edgegen.bundle import Bundle
    from edgegen.cli.images import image_family

    if json_file not in (None, "-"):
        check_folder(Path(json_file))
    for bundle in bundles:
        Bundle.open(bundle).close()
        _refuse(bundle, _OF_IMAGES if image_family(bundle) is None else _OF_TEXT)


def _refuse(bundle: Path, foreign: Mapping[str, str]) -> None:
    """Raise InputError where an option was given that is not for this kind of model."""
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    given = [flag for name, flag in foreign.items() if context.get_parameter_source(name) is source]
    if given:
        kind = "a language model" if foreign is _OF_IMAGES else "an image model"
        raise InputError(f"{bundle} is {kind}, which has no {', '.join(given)}")


def _measure(bundle: Path, options: dict[str, Any]) -> dict[str, Any]:
    from edgegen.cli.images import image_family

    if sys.stderr is not None and sys.stderr.isatty():  # a line that stands still: a moving one would be measured too
        click.echo(f"measuring {bundle} ...", err=True)
    if image_family(bundle) is not None:
        from edgegen.bench.images import bench_images

        return bench_images(bundle, **{name: value for name, value in options.items() if name not in _OF_TEXT})
    from edgegen.bench.text import bench_text

    return bench_text(bundle, **{name: value for name, value in options.items() if name not in _OF_IMAGES})


def _print(results: list[dict[str, Any]], json_file: str | None) -> None:
    from rich.console import Console

    from edgegen.bench import report

    if json_file == "-":
        click.echo(to_json({"results": results}))
        return
    for result in results:
        Console().print((report.image_report if "batches" in result else report.text_report)(result))
    if json_file is not None:
        write_text(Path(json_file), to_json({"results": results}, indent=1) + "\n")
