"""`edgegen build`: TensorRT engines ahead of time."""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgegen.cli.options import Place, bundle_argument, echo_report, json_option
from edgegen.errors import InputError

if TYPE_CHECKING:
    from edgegen.backends.engines.estimate import Estimate


_SM = re.compile(r"(?:sm_?)?([0-9]{1,2})\.?([0-9])", re.IGNORECASE)


def read_sms(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Read compute capabilities, "8.9", "89" or "sm_89", as numbers: 89. A callback of click."""
    found = [_SM.fullmatch(value.strip()) for value in values]
    if None in found:
        wrong = values[found.index(None)]
        raise click.BadParameter(f"{wrong!r} is no compute capability; give 8.9 or 89 (`edgegen devices NAME` tells it)")
    return tuple(int(one[1] + one[2]) for one in found if one is not None)


@click.command(short_help="Build TensorRT engines ahead of time.")
@bundle_argument
@click.option(
    "--backend",
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    default="tensorrt-rtx",
    show_default=True,
    help="tensorrt-rtx needs no GPU; tensorrt builds on the GPU that it is for.",
)
@click.option("--target", "targets", multiple=True, metavar="DEVICE", help="Build for this device: rtx-4090. May be repeated.")
@click.option(
    "--sm",
    "sms",
    multiple=True,
    metavar="NUMBER",
    callback=read_sms,
    help="Build for this compute capability: 8.9, or 89. May be repeated.",
)
@click.option("--graph", "graphs", multiple=True, help="Build only this graph.  [default: all]")
@click.option(
    "--context", type=click.IntRange(min=1), help="Tokens of a language model's cache.  [default: as long as was exported]"
)
@click.option("--prefill", type=click.IntRange(min=1), help="Most tokens of a prompt that run at once.  [default: 512]")
@click.option("-o", "--output", type=Place(), help="Write the engines to this folder, too.")
@click.option("--force", is_flag=True, help="Build even where memory will probably not do; replace what is in the folder.")
@json_option
def build(bundle: Path, targets: tuple[str, ...], sms: tuple[int, ...], as_json: bool, **options: Any) -> None:
    """Build the TensorRT engines of BUNDLE and keep them in the cache.

    Without --target and --sm they are for the GPU of this machine. Nothing is built twice: what is in the cache is taken. Of
    several engines of a graph that differ in --context or --prefill, a bundle is loaded with the one named here last.
    """
    from edgegen.backends.engines.ahead import build_bundle

    wanted = [*sms, *(_sm_of(name) for name in targets)]
    with _progress() as told:
        report = build_bundle(bundle, sms=wanted, **told, **options)
    echo_report(report, as_json)


def _sm_of(name: str) -> int:
    """The compute capability of a device by its name."""
    try:
        lookup = importlib.import_module("edgegen.devices.table").lookup
    except ModuleNotFoundError as error:
        raise InputError("this edgegen has no table of devices: give the compute capability, for example --sm 89") from error
    sm: int | None = lookup(name).sm
    if sm is None:
        raise InputError(f"{name} has no NVIDIA GPU: bundles run there on onnxruntime, without a build")
    return sm


@contextmanager
def _progress() -> Iterator[dict[str, Any]]:
    """Callbacks that say on stderr what a build may take, and on a terminal draw how far it is."""

    def say(graph: str, estimate: "Estimate") -> None:
        click.echo(f"building {graph}: {estimate}", err=True)

    if sys.stderr is None or not sys.stderr.isatty():
        yield {"began": say}
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def begin(graph: str, estimate: "Estimate") -> None:
            bar.console.print(f"building {graph}: {estimate}", highlight=False)
            bar.update(task, description=graph, completed=0, total=None)

        def show(graph: str, phase: str, done: int, total: int) -> None:
            bar.update(task, description=f"{graph}: {phase[:40]}", completed=done, total=total or None)

        yield {"began": begin, "progress": show}
