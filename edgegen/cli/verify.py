"""`edgegen verify`: the proof that travels with a bundle, replayed here."""

from pathlib import Path

import click

from edgegen.cli.options import backend_option, bundle_argument, echo_report, json_option


@click.command(short_help="Check the files and replay the proof.")
@bundle_argument
@backend_option
@json_option
@click.pass_context
def verify(context: click.Context, bundle: Path, backend: str, as_json: bool) -> None:
    """Check the digests of BUNDLE and replay its proof on this machine; exit 1 with what differs, and where."""
    from edgegen.proof import verify_bundle

    report = verify_bundle(str(bundle), backend)
    echo_report(report, as_json)
    if not report.passed:
        context.exit(1)
