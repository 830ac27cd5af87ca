"""`edgegen inspect`: what is in a bundle."""

from pathlib import Path

import click

from edgegen.cli.options import bundle_argument, echo_report, json_option


@click.command(short_help="Show what is in a bundle.")
@bundle_argument
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show the graphs, precision, sizes, source, licence and proof of BUNDLE.

    Reads what the manifest says; large files are not hashed. `edgegen verify` tells whether any is damaged.
    """
    from edgegen.describe import describe

    echo_report(describe(bundle), as_json)
    if not as_json:
        from edgegen.planner.here import fit_line

        click.echo(fit_line(bundle))
