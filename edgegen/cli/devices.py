"""`edgegen devices`: what this machine is, and the table of devices."""

import shutil
from pathlib import Path
from typing import Any

import click

from edgegen.cli.options import json_option, to_json


@click.command(short_help="Show this machine, and the devices that edgegen knows.")
@click.argument("name", required=False)
@click.option("--measure", is_flag=True, help="Measure this machine's memory bandwidth (some seconds).")
@click.option("--root", type=click.Path(path_type=Path), default=Path("/"), hidden=True)
@json_option
def devices(name: str | None, measure: bool, root: Path, as_json: bool) -> None:
    """Show what this machine is, and all devices of the table; with NAME that device in full."""
    if name is not None and measure:
        raise click.UsageError("--measure is of this machine: leave NAME out")
    if name is not None:
        _show_device(name, as_json)
        return
    from edgegen.devices.detect import detect
    from edgegen.devices.report import machine_lines, table_lines
    from edgegen.devices.table import DEVICES

    machine, bandwidths = detect(root), _measure() if measure else {}
    if as_json:
        told = machine.as_dict(max(bandwidths.values(), default=None)) | {"read_bandwidths": bandwidths}
        click.echo(to_json({"machine": told, "devices": list(DEVICES.values())}))
        return
    width = shutil.get_terminal_size().columns
    click.echo("\n".join([*machine_lines(machine, bandwidths, width), "", *table_lines(width)]))


def _show_device(name: str, as_json: bool) -> None:
    from edgegen.devices.report import device_dict, device_lines
    from edgegen.devices.table import lookup

    device = lookup(name)
    width = shutil.get_terminal_size().columns
    click.echo(to_json(device_dict(device)) if as_json else "\n".join(device_lines(device, width)))


def _measure() -> dict[int, float]:
    """Bytes a second that one thread reads, and all of them."""
    from edgegen.backends.threads import default_threads
    from edgegen.bench.machine import read_bandwidth

    counts: Any = dict.fromkeys((1, default_threads()))
    return {threads: read_bandwidth(threads) for threads in counts}
