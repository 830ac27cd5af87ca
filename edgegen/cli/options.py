"""Options that several commands share, and the one way to print an object."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgegen.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
backend_option = click.option("--backend", default="auto", show_default=True, help="Inference library to run on.")
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default one per physical core.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def to_json(value: Any, indent: int | None = None) -> str:
    """Write `value` (dicts, dataclasses, msgspec structs, numpy) as one JSON object, by default on one line."""
    import msgspec
    import numpy as np

    def known(other: Any) -> Any:
        if isinstance(other, np.ndarray | np.generic):
            return other.tolist()
        raise NotImplementedError(type(other).__name__)

    return json.dumps(msgspec.to_builtins(value, enc_hook=known, str_keys=True), ensure_ascii=False, indent=indent)


def echo_report(report: Any, as_json: bool) -> None:
    """Print a report, which has `as_dict()` for machines and `lines()` for people."""
    if as_json:
        click.echo(to_json(report.as_dict()))
    else:
        click.echo("\n".join(report.lines()))


def read_logit_bias(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[int, float] | None:
    """Read `ID=BIAS` pairs: a callback of click."""
    try:
        pairs = [value.split("=", 1) for value in values]
        return {int(token): float(bias) for token, bias in pairs} or None
    except ValueError as error:
        raise click.BadParameter("give TOKEN_ID=BIAS, for example 42=-5") from error


def sampling_options(command: F) -> F:
    """Add every option of text generation; those not given stay None, and the library's defaults hold."""
    options = [
        click.option("--max-new-tokens", type=int, help="Stop after so many tokens.  [default: 256]"),
        click.option("--temperature", type=float, help="0 takes the likeliest token each time.  [default: 0]"),
        click.option("--top-k", type=int, help="Draw among the k likeliest tokens."),
        click.option("--top-p", type=float, help="Draw among the likeliest tokens that sum to this probability."),
        click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest one's probability."),
        click.option("--repetition-penalty", type=float, help="Above 1: what was there comes less often."),
        click.option("--presence-penalty", type=float, help="Subtracted once from the logit of each generated token."),
        click.option("--frequency-penalty", type=float, help="Subtracted for each time that a token was generated."),
        click.option(
            "--logit-bias", multiple=True, callback=read_logit_bias, metavar="ID=BIAS", help="Added to a token's logit."
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."),
        click.option("--seed", type=int, help="The same seed gives the same text."),
        click.option("--logprobs", type=int, help="Report so many alternatives for each token (with --json)."),
        click.option("--deadline", "deadline_s", type=float, metavar="SECONDS", help="Stop after so many seconds."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Keep the options that the user gave."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in options.items() if value not in (None, ())
    }


def check_folder(path: Path) -> None:
    """Refuse a place without a folder before long work is done for it.

    Raises:
        InputError: The folder does not exist.
    """
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        InputError: It cannot be written there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
