"""The command line, run in this process."""

from click.testing import CliRunner, Result

from edgegen.cli.main import main


def run(*arguments: str, stdin: str = "") -> Result:
    """Run `edgegen *arguments` with this text on stdin."""
    return CliRunner().invoke(main, arguments, input=stdin)
