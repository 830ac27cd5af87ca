"""`edgegen generate`: text from a language model, streamed as it comes; images from the other families, into files."""

from pathlib import Path
from typing import Any

import click

from edgegen.cli.options import (
    Place,
    SectionCommand,
    advise,
    backend_option,
    bundle_argument,
    check_folder,
    given,
    image_options,
    json_option,
    text_options,
    threads_option,
)


@click.command(cls=SectionCommand, short_help="Generate text or images.")
@bundle_argument
@click.option("--prompt", help="What to complete, to answer (--chat), or to show; '-' reads it from stdin.")
@click.option("--seed", type=int, help="The same seed gives the same result.")
@click.option("-o", "--output", type=Place(), help="File for text; for images X.png (a sheet of them), or a folder.")
@click.option("--deadline", "deadline_s", type=float, metavar="SECONDS", help="Stop after so many seconds.")
@backend_option
@threads_option
@json_option
@text_options
@image_options
def generate(bundle: Path, *, output: Path | None, as_json: bool, backend: str, threads: int | None, **options: Any) -> None:
    """Generate from BUNDLE: text is printed as it comes, images are written to -o.

    \b
    edgegen generate smollm2.bundle --prompt "Once upon a time"
    edgegen generate dcgan.bundle --count 16 --seed 3 -o sheet.png
    """  # noqa: D301 -- \b keeps click from joining the lines
    from edgegen.cli import images

    family = images.image_family(bundle)
    chosen = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    if family is None:
        images.refuse_image_options(bundle, chosen)
        _text(bundle, output, as_json, backend, threads, options)
    else:
        job = images.plan(family, chosen, output)
        images.run(job, bundle, backend, threads, as_json=as_json)


def _text(bundle: Path, output: Path | None, as_json: bool, backend: str, threads: int | None, options: dict[str, Any]) -> None:
    from edgegen.bundle import Bundle
    from edgegen.cli import text
    from edgegen.runtime import load

    prompt, chat, system = options.pop("prompt"), options.pop("chat"), options.pop("system")
    options.pop("no_metadata")
    if prompt is None and not chat:
        Bundle.open(bundle).close()  # that nothing is there comes before what it would take
    _check_usage(prompt, chat, system, one_result=as_json or output is not None)
    if options["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs goes with --json")
    if output is not None:
        check_folder(output)
    with load(bundle, backend, threads=threads, advise=None if prompt is None else advise) as model:
        speaker = model.chat(system=system) if chat else None
        if prompt is None:
            text.converse(speaker, given(options))
        elif as_json or output is not None:
            text.answer_whole(speaker or model, text.read_prompt(prompt), given(options), output, as_json)
        else:
            text.answer(speaker or model, text.read_prompt(prompt), given(options))


def _check_usage(prompt: str | None, chat: bool, system: str | None, *, one_result: bool) -> None:
    if prompt is None and not chat:
        raise click.UsageError("give --prompt TEXT to complete a text, or --chat for a conversation")
    if prompt is None and one_result:
        raise click.UsageError("--json and -o take one answer: give --prompt")
    if system is not None and not chat:
        raise click.UsageError("--system goes with --chat")
