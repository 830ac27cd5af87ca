"""Options that several commands share, and the one way to print an object."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from edgegen.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])


class Place(click.Path):
    """The path of what is read or written. An empty one is an error: to Python it is the folder where one happens to be."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Give the path. Raises InputError where it is empty."""
        if value == "":
            name = max(param.opts, key=len) if param is not None else "the path"
            raise InputError(f"{name} is empty; give a path (. is the folder where you are)")
        return super().convert(value, param, ctx)


bundle_argument = click.argument("bundle", type=Place())
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


def advise(line: str) -> None:
    """Say on a terminal what would make the next call faster."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(f"edgegen: {line}", err=True)


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


def read_numbers(_context: click.Context, _option: click.Parameter, value: str | None) -> int | list[int] | None:
    """Read `3` or `1,2,3`: a callback of click."""
    if value is None:
        return None
    try:
        numbers = [int(number) for number in value.split(",")]
    except ValueError as error:
        raise click.BadParameter("give a number, or one for each image: 0,1,2") from error
    return numbers if len(numbers) > 1 else numbers[0]


def read_mix(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read `SEED:LAYER`: a callback of click."""
    if value is None:
        return None
    try:
        seed, layer = map(int, value.split(":"))
    except ValueError as error:
        raise click.BadParameter("give SEED:LAYER, for example 7:4") from error
    return seed, layer


def read_path(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, str, int] | None:
    """Read `A:B:N`, where A and B are seeds or files: a callback of click."""
    if value is None:
        return None
    first, _, rest = value.partition(":")
    last, _, steps = rest.rpartition(":")
    if not first or not last or not steps.isdigit():
        raise click.BadParameter("give A:B:N, two seeds (or two image files) and how many images, for example 3:7:8")
    return first, last, int(steps)


class SectionOption(click.Option):
    """An option that is listed under a heading of its own."""

    def __init__(self, *arguments: Any, section: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.section = section


class SectionCommand(click.Command):
    """A command whose options are listed by their sections; those without one come first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "") or "Options", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section_options(section: str, options: Mapping[str, dict[str, Any]]) -> Callable[[F], F]:
    """Add options under one heading: their flags (with the parameter's name, where that differs), and what click wants."""

    def add(command: F) -> F:
        for names, settings in reversed(list(options.items())):
            command = click.option(*names.split(), cls=SectionOption, section=section, **settings)(command)
        return command

    return add


TEXT, IMAGES = "Language models", "Image models (each family takes some of these)"
_FILE = Place(dir_okay=False)
_text_options: dict[str, dict[str, Any]] = {
    "--chat": {"is_flag": True, "help": "Use the model's chat template; without --prompt, hold a conversation."},
    "--system": {"help": "System message of the chat."},
    "--max-new-tokens": {"type": int, "help": "Stop after so many tokens.  [default: 256]"},
    "--temperature": {"type": float, "help": "0 takes the likeliest token each time.  [default: 0]"},
    "--top-k": {"type": int, "help": "Draw among the k likeliest tokens."},
    "--top-p": {"type": float, "help": "Draw among the likeliest tokens that sum to this probability."},
    "--min-p": {"type": float, "help": "Drop tokens below this share of the likeliest one's probability."},
    "--repetition-penalty": {"type": float, "help": "Above 1: what was there comes less often."},
    "--presence-penalty": {"type": float, "help": "Subtracted once from the logit of each generated token."},
    "--frequency-penalty": {"type": float, "help": "Subtracted for each time that a token was generated."},
    "--logit-bias": {
        "multiple": True,
        "callback": read_logit_bias,
        "metavar": "ID=BIAS",
        "help": "Added to a token's logit.",
    },
    "--stop": {"multiple": True, "metavar": "TEXT", "help": "End before this text; may be given several times."},
    "--logprobs": {"type": int, "help": "Report so many alternatives for each token (with --json)."},
}
_image_options: dict[str, dict[str, Any]] = {
    "--count": {"type": int, "help": "Images to make.  [default: 1]"},
    "--class class_ids": {"metavar": "N[,N...]", "callback": read_numbers, "help": "Class of all images, or of each."},
    "--psi": {"type": float, "help": "Truncation: 1 for all of the variety, 0 for the mean image."},
    "--cutoff": {"type": int, "metavar": "LAYERS", "help": "Truncate only the first layers (with --psi)."},
    "--noise": {"type": click.Choice(["fixed", "seeded", "zero"]), "help": "Of each layer: as stored, from the seed, or none."},
    "--mix": {"metavar": "SEED:LAYER", "callback": read_mix, "help": "Take the styles from this layer on from another seed."},
    "--steps": {"type": int, "help": "Denoising steps."},
    "--stepper": {"metavar": "NAME", "help": "How to step: ddim, euler, ..."},
    "--guidance": {"type": float, "help": "How closely to follow the prompt or class; 1 for no guidance."},
    "--negative-prompt": {"metavar": "TEXT", "help": "What the image should not show."},
    "--height": {"type": int, "help": "In pixels."},
    "--width": {"type": int, "help": "In pixels."},
    "--init-image": {"type": _FILE, "metavar": "FILE", "help": "Start from this image instead of noise."},
    "--strength": {"type": float, "help": "How much of it to make anew, 0 to 1."},
    "--mask": {"type": _FILE, "metavar": "FILE", "help": "White where the image is to be made anew."},
    "--input input_image": {"type": _FILE, "metavar": "FILE", "help": "Image for an image-to-image model, or to reconstruct."},
    "--tile": {"type": int, "metavar": "PIXELS", "help": "Largest side of a tile; less needs less memory."},
    "--overlap": {"type": int, "metavar": "PIXELS", "help": "What neighbouring tiles share."},
    "--batch-size": {"type": int, "help": "Run at most so many images at once; less needs less memory."},
    "--interpolate": {"metavar": "A:B:N", "callback": read_path, "help": "N images on the way from seed (or file) A to B."},
    "--no-metadata": {"is_flag": True, "help": "Leave seed, model and parameters out of the PNG files."},
}
text_options = section_options(TEXT, _text_options)
image_options = section_options(IMAGES, _image_options)


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
