"""How good are the images that the recipes of Fashion-MNIST come to, and how long does one take?

What is missing in FOLDER is made first: the recipes are trained (minutes each on two cores), then exported and proven. Each
model then makes as many images as are drawn from the test set, which no training has seen. They are compared in the features of
the classifier that a recipe trains, which is not Inception: the numbers compare with one another, and with those that training
images score, not with numbers from elsewhere.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from edgegen.bench.evaluate import NOTE, evaluate
from edgegen.bench.machine import describe

RECIPES = Path(__file__).parent.parent / "export"
CLASSIFIER = "classifier_fashion_mnist"
MODELS = {  # what it is called here: its recipe, and what to make its images with where that is not the model's own
    "cvae": ("cvae_fashion_mnist", {}),
    "dcgan": ("dcgan_fashion_mnist", {}),
    "ddpm": ("ddpm_fashion_mnist", {}),
    "ddpm, unguided": ("ddpm_fashion_mnist", {"guidance": 1.0}),
}
ROWS = {
    "frechet_distance": "Frechet distance",
    "kernel_distance": "kernel distance x 1000",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity": "diversity",
}


def bundle_of(name, folder):
    """The recipe's bundle in `folder`, trained and exported where it is not there."""
    recipe, checkpoint, bundle = RECIPES / f"{name}.py", folder / f"{name}.safetensors", folder / f"{name}.bundle"
    if not bundle.exists():
        if not checkpoint.exists():
            edgegen("train", recipe, "-o", checkpoint)
        edgegen("export", recipe, "--checkpoint", checkpoint, "-o", bundle)
    return bundle


def edgegen(*arguments):
    """Run a command of edgegen; it says itself what goes wrong."""
    done = subprocess.run([sys.executable, "-m", "edgegen", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def measure(model, folder, features, count, threads):
    """One model's figures, without the paths of this machine."""
    name, options = MODELS[model]
    result = evaluate(
        bundle_of(name, folder),
        RECIPES / f"{name}.py",
        baseline=RECIPES / f"{CLASSIFIER}.py",
        features=features,
        count=count,
        options=options,
        threads=threads,
    )
    result["features"]["bundle"] = features.name
    return {"model": model} | result


def table(results):
    """For people: a column for each model, and one for real images."""
    columns = [*((result["model"], result["sets"]) for result in results), ("training images", results[0]["baseline"]["sets"])]
    shown = Table(title=f"{results[0]['settings']['images']} images against as many of the test set")
    shown.add_column("")
    for name, _ in columns:
        shown.add_column(name, justify="right")
    for row, said in ROWS.items():
        scale = 1000 if row == "kernel_distance" else 1
        shown.add_row(said, *(f"{sets[row] * scale:.3g}" for _, sets in columns))
    shown.add_row("ms an image", *(f"{result['seconds_per_image'] * 1e3:.3g}" for result in results), "")
    for row, said in (("psnr_db", "PSNR of reconstructions, dB"), ("ssim", "SSIM of reconstructions")):
        found = [result["reconstruction"] for result in results]
        shown.add_row(said, *(f"{one[row]:.3g}" if one else "" for one in found), "")
    return shown


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--model", "names", type=click.Choice(list(MODELS)), multiple=True, help="Only these.  [default: all]")
@click.option("--count", type=click.IntRange(min=4, max=10000), default=2000, show_default=True, help="Images of each side.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: edgegen's own choice]")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure there.")
def main(folder, names, count, threads, json_file):
    """Measure the quality of the recipes' images, and their latency beside it."""
    folder.mkdir(exist_ok=True)
    features, results = bundle_of(CLASSIFIER, folder), []
    for model in names or MODELS:
        results.append(measure(model, folder, features, count, threads))
        click.echo(f"{model}: {results[-1]['sets']['frechet_distance']:.3g}", err=True)
    Console(width=150).print(table(results))
    click.echo(NOTE.format(name=results[0]["features"]["name"]))
    if json_file is not None:
        measured = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        json_file.write_text(json.dumps({"measured": measured, "machine": describe(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
