"""The `edgegen` command: a table of commands, each in its own file, and what becomes of an error.

Exit codes: 0; 1 for an EdgegenError (one line on stderr) or a check that failed; 2 for wrong usage; 130 for Ctrl-C, 143 for
SIGTERM: both clean up behind them. Any other exception is a bug of edgegen and keeps its traceback, but for what the system
denies: memory, a place that may not be entered or has an impossible name, output that cannot be written; those are one line too
(click ends quietly where a pipe is closed).
"""

import errno
import importlib
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn

import click

from edgegen import __version__
from edgegen.errors import EdgegenError

COMMANDS: Mapping[str, str] = {  # in the order of use; nothing is imported before it is asked for
    "train": "edgegen.cli.train:train",
    "export": "edgegen.cli.export:export",
    "verify": "edgegen.cli.verify:verify",
    "build": "edgegen.cli.build:build",
    "generate": "edgegen.cli.generate:generate",
    "bench": "edgegen.cli.bench:bench",
    "eval": "edgegen.cli.eval:evaluate",
    "inspect": "edgegen.cli.inspect:inspect",
    "plan": "edgegen.cli.plan:plan",
    "pack": "edgegen.cli.pack:pack",
    "devices": "edgegen.cli.devices:devices",
    "doctor": "edgegen.cli.doctor:doctor",
}

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_BARRED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}


class LazyGroup(click.Group):
    """Commands from COMMANDS, and errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Name the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)  # noqa: S101  # the contract of every line in COMMANDS
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except EdgegenError as error:
            click.echo(f"edgegen: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)
        except OSError as error:
            said = _of_the_system(error)
            if said is None:
                raise
            click.echo(f"edgegen: {said}", err=True)
            ctx.exit(1)
        except MemoryError as error:
            reason = f" ({' '.join(str(error).split())})" if str(error) else ""
            click.echo(f"edgegen: not enough memory{reason}; ask for less at once, or for smaller results", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nedgegen: stopped", err=True)
            ctx.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgegen")
def main() -> None:
    """Generative models from PyTorch onto devices without a network."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _of_the_system(error: OSError) -> str | None:
    """What the system denies a user, in words; None where it may be a fault of ours."""
    if error.errno in _FULL and error.filename is None:
        return f"cannot write the output: {error.strerror}"
    if error.errno in _BARRED and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    return None


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave as an exception does: what was half made is removed on the way."""
    raise SystemExit(128 + number)
