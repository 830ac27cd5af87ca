"""`edgegen doctor`: what is installed and works."""

from pathlib import Path

import click

from edgegen.cli.options import backend_option, echo_report, json_option


@click.command(short_help="Show what is installed and works.")
@click.option(
    "--offline",
    "bundle",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Prove that generating from BUNDLE opens no socket and writes no file.",
)
@backend_option
@json_option
@click.pass_context
def doctor(context: click.Context, bundle: Path | None, backend: str, as_json: bool) -> None:
    """Show what is installed and works; exit 1 where edgegen cannot run."""
    if bundle is not None:
        from edgegen.offline import check_offline

        offline = check_offline(bundle, backend=backend)
        echo_report(offline, as_json)
        context.exit(0 if offline.passed else 1)
    from edgegen.health import examine

    health = examine()
    echo_report(health, as_json)
    context.exit(0 if health.passed else 1)
