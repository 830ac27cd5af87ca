"""`edgegen train`: a recipe becomes a checkpoint."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgegen.cli.options import Place, echo_report, json_option
from edgegen.errors import InputError

_LINE_S = 10.0  # between lines where stderr is no terminal


@click.command(short_help="Train the model of a recipe.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=Place(), required=True, help="The checkpoint, NAME.safetensors.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="How many in all, with those before --resume.  [default: the recipe's]"
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Images of a step, over all processes.  [default: the recipe's]")
@click.option("--seed", type=click.IntRange(min=0), help="The same seed gives the same training on a CPU.  [default: 0]")
@click.option("--resume", is_flag=True, help="Go on from where the checkpoint stopped.")
@click.option("--force", is_flag=True, help="Replace a checkpoint that is there.")
@click.option("--samples", type=Place(), help="A folder for sample sheets (PNG).")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of the arithmetic.")
@json_option
def train(recipe: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Train the modules of RECIPE, a .py file with TRAINING beside its RECIPE.

    On several devices: torchrun --nproc-per-node N -m edgegen train RECIPE -o NAME.safetensors.
    """
    loop = _loop()
    with _progress() as on_step:
        report = loop.train(recipe, output, loop.Options(**options), on_step)
    if report.is_main:
        echo_report(report, as_json)
        if report.stopped is not None:
            click.echo(f"edgegen: stopped; go on with: edgegen train {recipe} -o {output} --resume", err=True)
    if report.stopped is not None:
        click.get_current_context().exit(128 + report.stopped)


def _loop() -> Any:
    try:
        return importlib.import_module("edgegen.train.loop")
    except ModuleNotFoundError as error:
        # A missing library is the user's to install; a missing module of ours is a bug to see.
        if error.name is not None and error.name.split(".")[0] == "edgegen":
            raise
        raise InputError(f'train needs {error.name}, which is not installed: pip install "edgegen[train]"') from error


@contextmanager
def _progress() -> Iterator[Callable[[int, int, Mapping[str, float]], None] | None]:
    """Give a callback that draws a bar on stderr where it is a terminal, and writes a line now and then where it is not."""
    if sys.stderr is None:
        yield None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def show(done: int, steps: int, losses: Mapping[str, float]) -> None:
            bar.update(task, description=words(losses), completed=done, total=steps)

        yield show


def _lines(clock: Callable[[], float] = time.monotonic) -> Callable[[int, int, Mapping[str, float]], None]:
    told = clock()

    def show(done: int, steps: int, losses: Mapping[str, float]) -> None:
        nonlocal told
        if done == steps or clock() - told >= _LINE_S:
            told = clock()
            click.echo(f"step {done} of {steps}: {words(losses)}", err=True)

    return show


def words(losses: Mapping[str, float]) -> str:
    """Losses as one line: "generator 0.81, discriminator 1.2"."""
    return ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
