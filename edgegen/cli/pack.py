"""`edgegen pack`: one file for shipping."""

from pathlib import Path

import click

from edgegen.cli.options import Place, bundle_argument


@click.command(short_help="Pack a bundle into one .tar.")
@bundle_argument
@click.option("-o", "--output", type=Place(), required=True, help="The .tar to write.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def pack(bundle: Path, output: Path, force: bool) -> None:
    """Pack BUNDLE into one uncompressed .tar, which every command and `edgegen.load` open as it is."""
    from edgegen.bundle import pack as pack_bundle

    click.echo(pack_bundle(bundle, output, force=force))
