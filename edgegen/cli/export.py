"""`edgegen export`: a checkpoint becomes a proven bundle."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgegen.cli.options import Place, echo_report, json_option
from edgegen.errors import ExportError

STAGES: Mapping[str, str] = {  # as `edgegen.export` tells them, in their order: what a person reads
    "load": "reading the checkpoint",
    "original": "measuring the original",
    "weights": "converting the weights",
    "quality": "measuring the loss of quality",
    "reference": "recording reference answers",
    "capture": "capturing the graph",
    "lower": "lowering the graph",
    "write": "writing the bundle",
    "prove": "proving what was written",
}


@click.command(short_help="Make a proven bundle of a checkpoint.")
@click.argument("source")
@click.option("-o", "--output", type=Place(), required=True, help="The bundle's directory, to be made.")
@click.option("--family", help="Family of the model; by default what the source says.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="A .safetensors file (for modules also .pt, .pth, .bin, .ckpt) that replaces the source's weights.",
)
@click.option(
    "--input", "inputs", multiple=True, help='What a module takes: "z float32[batch, 128]", with several graphs "GRAPH: ..".'
)
@click.option("--returns", "outputs", multiple=True, help='What a module gives: "image float32[batch, 3, 64, 64]".')
@click.option("--axis", "axes", multiple=True, help="Least, usual and greatest size of a named axis: batch=1..4..16.")
@click.option("--setting", "settings", multiple=True, help="What the family's pipeline wants to know: NAME=JSON.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int4"]),
    help="Of the weights.  [default: the target's, else the recipe's, else fp32]",
)
@click.option(
    "--target",
    metavar="DEVICE[@JETPACK]",
    help="Choose what this device can run (see edgegen devices): jetson-orin-nano-8gb, or jetson-orin-nano-8gb@6.2.",
)
@click.option(
    "--context-length", type=click.IntRange(min=1), help="Longest context, in tokens.  [default: the model's own, up to 8192]"
)
@click.option(
    "--limit",
    type=click.FloatRange(min=0),
    help="Largest mean KL divergence, in nats, that quantization may cost.  [default: by precision]",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Also ship the graphs as this variant: tensorrt-legacy, for TensorRT 10.3 and 10.13 (JetPack 6.2, 7.0, 7.1); "
    "onnxruntime-cuda, for language models on onnxruntime with CUDA.",
)
@click.option("--name", help="Name of the bundle.  [default: the source's]")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@json_option
def export(source: str, output: Path, as_json: bool, **options: Any) -> None:
    """Export SOURCE to a bundle: ONNX, quantized, proven equal to the original.

    SOURCE is a recipe.py, package.module:function that returns modules, a Hugging Face directory (config.json, safetensors),
    a diffusers directory (model_index.json), or a .gguf or .onnx file.
    """
    run = _export_function()
    with _progress() as progress:
        report = run(source, output, progress=progress, **options)
    echo_report(report, as_json)


def _export_function() -> Callable[..., Any]:
    try:
        run: Callable[..., Any] = importlib.import_module("edgegen.export").export
    except ModuleNotFoundError as error:
        # A missing library is the user's to install; a missing module of ours is a bug to see.
        if error.name is not None and error.name.split(".")[0] == "edgegen":
            raise
        raise ExportError(f'export needs {error.name}, which is not installed: pip install "edgegen[export]"') from error
    return run


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None] | None]:
    """Give a callback that draws a bar on stderr, or None where stderr is not a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(stage: str, fraction: float) -> None:
            description, completed = place(stage, fraction)
            bar.update(task, description=description, completed=completed)

        yield show


def place(stage: str, fraction: float) -> tuple[str, float]:
    """Say where an export is: the stage in words, and the share of all stages, each counted alike. Unknown ones by name."""
    if stage not in STAGES:
        return stage, fraction
    index = list(STAGES).index(stage)
    return f"{index + 1}/{len(STAGES)} {STAGES[stage]}", (index + fraction) / len(STAGES)
