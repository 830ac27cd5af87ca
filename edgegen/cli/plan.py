"""`edgegen plan`: does it fit on a device, and how fast can it be."""

import shutil
from pathlib import Path

import click

from edgegen.cli.options import Place, json_option, to_json


@click.command(short_help="Tell whether bundles fit on a device, and how fast they can be.")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...", type=Place())
@click.option("--target", "device", metavar="DEVICE", help="A name of `edgegen devices`.  [default: this machine]")
@click.option("--mode", metavar="NAME", help="Power mode.  [default: the device's own; here: the live one]")
@click.option(
    "--backend", metavar="NAME", help="onnxruntime, onnxruntime-cuda, tensorrt, tensorrt-rtx.  [default: what suits the device]"
)
@click.option("--context", type=click.IntRange(min=1), help="Tokens of a conversation.  [default: as exported]")
@click.option("--batch", type=click.IntRange(min=1), help="Images in a run, or conversations at once.  [default: the usual]")
@click.option("--height", type=click.IntRange(min=1), help="Of images, in pixels.  [default: the usual]")
@click.option("--width", type=click.IntRange(min=1), help="Of images, in pixels.  [default: the usual]")
@click.option("--tile", type=click.IntRange(min=1), metavar="PIXELS", help="Largest side of a tile.")
@json_option
def plan(
    bundles: tuple[Path, ...], device: str | None, mode: str | None, backend: str | None, as_json: bool, **asked: int | None
) -> None:
    """Plan the memory of each BUNDLE, and of all of them in one process: exit 1 where it does not fit.

    Nothing is run or copied to a device; the figures come from the graphs and from the table of devices.
    """
    from edgegen.planner.graphs import Ask, read_bundle
    from edgegen.planner.plan import plan as make_plan
    from edgegen.planner.report import lines
    from edgegen.planner.target import target_of

    chosen = target_of(device, mode, backend)
    read = [read_bundle(path, chosen.backend, has_kernels=chosen.has_kernels, is_old=chosen.is_old) for path in bundles]
    found = make_plan(read, chosen, Ask(**asked))
    if as_json:
        click.echo(to_json(found.as_dict()))
    else:
        click.echo("\n".join(lines(found, shutil.get_terminal_size().columns)))
    if not found.fits:
        click.get_current_context().exit(1)
