"""Text on a terminal: one streamed answer, one whole answer, or a conversation."""

import sys
from pathlib import Path
from typing import Any, Literal

import click

from edgegen.cli.options import to_json, write_text
from edgegen.errors import InputError


def read_prompt(prompt: str) -> str:
    """Return the prompt; '-' stands for all of stdin. InputError where that is closed, or no text."""
    return _from_stdin("read") if prompt == "-" else prompt


def _from_stdin(how: Literal["read", "readline"]) -> str:
    if sys.stdin is None:  # so Python says that it was closed
        raise InputError("stdin is closed; give the text with --prompt")
    try:
        return str(getattr(sys.stdin, how)())
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not text in {error.encoding}: {error.reason} at byte {error.start}") from error


def answer(speaker: Any, prompt: str, options: dict[str, Any]) -> None:
    """Print an answer piece by piece. `speaker` is a pipeline (raw text) or a chat (one message)."""
    pieces = speaker.stream(prompt, **options)
    try:
        for piece in pieces:
            click.echo(piece.text, nl=False)  # and flushed
    finally:
        pieces.close()  # Ctrl-C or a closed pipe: the graph stops with us
        click.echo()


def answer_whole(speaker: Any, prompt: str, options: dict[str, Any], output: Path | None, as_json: bool) -> None:
    """Write an answer when it is complete: its text to `output`, and the whole result as JSON where that is asked for."""
    result = speaker.send(prompt, **options) if hasattr(speaker, "send") else speaker.generate(prompt, **options)
    if output is not None:
        write_text(output, result.text)
    if as_json:
        click.echo(to_json(result))


def converse(chat: Any, options: dict[str, Any]) -> None:
    """Answer one line of stdin after the other until it ends; Ctrl-C stops an answer, and at the prompt the program."""
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal:
        click.echo("Ctrl-C stops an answer, Ctrl-D ends the conversation.", err=True)
    while True:
        if terminal:
            click.echo("> ", nl=False)
        line = _from_stdin("readline")
        if not line:
            if terminal:
                click.echo()
            return
        if line.strip():
            _turn(chat, line.rstrip("\n"), options, terminal)


def _turn(chat: Any, message: str, options: dict[str, Any], terminal: bool) -> None:
    try:
        answer(chat, message, options)
    except KeyboardInterrupt:
        if not terminal:
            raise
