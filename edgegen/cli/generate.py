"""`edgegen generate`: text from a bundle, streamed as it comes."""

from pathlib import Path
from typing import Any

import click

from edgegen.cli.options import (
    backend_option,
    bundle_argument,
    check_folder,
    given,
    json_option,
    sampling_options,
    threads_option,
)


@click.command(short_help="Generate text, streamed as it comes.")
@bundle_argument
@click.option("--prompt", help="Text to complete as it is, or with --chat one message; '-' reads it from stdin.")
@click.option("--chat", is_flag=True, help="Use the model's chat template; without --prompt, hold a conversation.")
@click.option("--system", help="System message of the chat.")
@sampling_options
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the text to a file instead.")
@backend_option
@threads_option
@json_option
def generate(
    bundle: Path, *, prompt: str | None, chat: bool, system: str | None, output: Path | None, as_json: bool, **options: Any
) -> None:
    """Generate text from BUNDLE, greedily unless --temperature is given, and print it as it comes."""
    from edgegen.cli import text
    from edgegen.runtime import load

    _check_usage(prompt, chat, system, one_result=as_json or output is not None)
    if options["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs goes with --json")
    if output is not None:
        check_folder(output)
    backend, threads = options.pop("backend"), options.pop("threads")
    with load(bundle, backend, threads=threads) as model:
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
