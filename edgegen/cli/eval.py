"""`edgegen eval`: how good the images of a bundle are, against real ones."""

from pathlib import Path
from typing import Any

import click

from edgegen.cli.options import backend_option, bundle_argument, json_option, threads_option, to_json

_ROWS = {  # what `sets` holds: what a person reads
    "frechet_distance": "Frechet distance",
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity": "diversity",
    "reference_diversity": "  of the reference",
}
_OF_RECONSTRUCTION = (("psnr_db", "PSNR, dB", 1), ("ssim", "SSIM", 1), ("seconds_per_image", "ms an image", 1e3))


@click.command("eval", short_help="Measure the quality of images against real ones.")
@bundle_argument
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    required=True,
    help="Real images: a folder, an .npz with `images`, or a recipe (.py) that holds some out.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="Other real images, for what a perfect model would score; of a recipe those it learns from.  "
    "[default: the recipe of --reference]",
)
@click.option("--features", type=click.Path(path_type=Path), help="Bundle of the family features.  [default: mean colours]")
@click.option("--count", type=click.IntRange(min=4), default=1000, show_default=True, help="Images to compare, of each side.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first image.")
@click.option("--psi", type=float, help="Truncation, for a family that has it.")
@click.option("--steps", type=int, help="Denoising steps, for a family that has them.")
@click.option("--stepper", metavar="NAME", help="How to step.")
@click.option("--guidance", type=float, help="How closely to follow the class.")
@backend_option
@threads_option
@json_option
def evaluate(
    bundle: Path, *, reference: Path, baseline: Path | None, features: Path | None, as_json: bool, **given: Any
) -> None:
    """Compare images of BUNDLE with real ones: distances, precision and recall, diversity; PSNR and SSIM of reconstructions.

    \b
    edgegen eval dcgan.bundle --reference photographs/ --features classifier.bundle
    edgegen eval dcgan.bundle --reference export/dcgan_fashion_mnist.py --features classifier.bundle
    """  # noqa: D301 -- \b keeps click from joining the lines
    from edgegen.bench.evaluate import evaluate as measure
    from edgegen.cli import images

    names = ("count", "seed", "backend", "threads")
    common = {name: given.pop(name) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    family = images.image_family(bundle)
    if family is not None:
        images.refuse_unknown(family, "generate", options)
    with images.progress_bar("generate") as progress:
        result = measure(bundle, reference, baseline=baseline, features=features, options=options, progress=progress, **common)
    if as_json:
        click.echo(to_json(result))
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    bundle, settings, baseline = result["bundle"], result["settings"], result["baseline"]
    options = "".join(f", {name} {value}" for name, value in settings["options"].items())
    title = f"{bundle['name']}, {settings['images']} images against as many {result['reference']}{options}"
    table = Table("", bundle["name"], *([baseline["images"]] if baseline else []), title=title, title_justify="left")
    if result["sets"] is not None:
        columns = [result["sets"], *([baseline["sets"]] if baseline else [])]
        for name, said in _ROWS.items():
            table.add_row(said, *(f"{column[name]:.4g}" for column in columns))
        table.add_row("ms an image", f"{result['seconds_per_image'] * 1e3:.3g}")
    if result["reconstruction"] is not None:
        for name, said, scale in _OF_RECONSTRUCTION:
            value = result["reconstruction"][name]
            table.add_row(f"reconstruction: {said}", "-" if value is None else f"{value * scale:.4g}")
    console = Console()
    console.print(table)
    if result["sets"] is not None:
        console.print(result["note"], highlight=False)
