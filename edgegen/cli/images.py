"""Images on the command line: what a family takes is read off its pipeline, what it made is written as PNG files."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgegen import __version__
from edgegen.cli.options import IMAGES, SectionOption, advise, check_folder, to_json
from edgegen.errors import InputError

if TYPE_CHECKING:
    from edgegen.manifest import Manifest
    from edgegen.pipelines.images import Images

INPUT_METHODS = ("translate", "reconstruct")  # what --input means to a family: the first that it has
_CLI_ONLY = ("no_metadata",)


@dataclass(frozen=True)
class Family:
    """A bundle of a family that makes images."""

    bundle: Path
    name: str
    pipeline: Any


@dataclass(frozen=True)
class Job:
    """What to call on the pipeline, and where its images go."""

    method: str
    sources: tuple[Path | int, ...]  # image files, seeds, numbers: in the order in which the method takes them
    options: Mapping[str, Any]
    output: Path
    metadata: bool


def image_family(path: Path) -> Family | None:
    """Say which family makes the images of the bundle at `path`; None for a language model, or where nothing is there.

    Raises BundleError or UnknownNameError where it is no bundle that this version knows.
    """
    from edgegen.bundle import Bundle
    from edgegen.pipelines import pipeline_class

    if not path.exists():
        return None  # `load` says so, and what else could be wrong
    with Bundle.open(path) as bundle:
        name = bundle.manifest.family
    pipeline = pipeline_class(name)
    return None if hasattr(pipeline, "chat") else Family(path, name, pipeline)


def refuse_image_options(bundle: Path, chosen: Mapping[str, Any]) -> None:
    """Raise InputError where options for images were given to a language model, BundleError where nothing is there."""
    from edgegen.bundle import Bundle

    flags = [flag for name, flag in _flags(IMAGES).items() if name in chosen]
    if flags and not bundle.exists():
        Bundle.open(bundle).close()
    if flags:
        raise InputError(f"{bundle} is a language model, which makes text; it has no {', '.join(flags)}")


def plan(family: Family, chosen: Mapping[str, Any], output: Path | None) -> Job:
    """Check what was asked before anything is loaded.

    Raises InputError: no place for the images, or an option that the family does not have.
    """
    if output is None:
        raise InputError(f"{family.bundle} makes images: say where they go with -o sheet.png, or -o FOLDER")
    _check_place(output)
    options = dict(chosen)
    method = "generate"
    sources: list[Path | int] = []
    if "input_image" in options and "interpolate" in options:
        raise InputError("--input and --interpolate are two things to do: give one of them")
    if "input_image" in options:
        method = next((name for name in INPUT_METHODS if hasattr(family.pipeline, name)), "generate")
        sources = [options.pop("input_image")] if method != "generate" else []
    elif "interpolate" in options and hasattr(family.pipeline, "interpolate"):
        method = "interpolate"
        first, last, count = options.pop("interpolate")
        sources = [_seed_or_file(first), _seed_or_file(last), count]
    refuse_unknown(family, method, options)
    metadata = not options.pop("no_metadata", False)
    return Job(method, tuple(sources), options, output, metadata)


def run(job: Job, bundle: Path, backend: str, threads: int | None, *, as_json: bool) -> None:
    """Load, make the images, write them, and say where they are (or everything, as JSON).

    Raises what the files, the pipeline or the disk have to say, as an EdgegenError.
    """
    from edgegen.media import read_image
    from edgegen.runtime import load

    # Read before the model is loaded: a bad file is found at once.
    sources = [read_image(source) if isinstance(source, Path) else source for source in job.sources]
    if job.options.get("prompt") == "-":
        from edgegen.cli.text import read_prompt

        job = replace(job, options={**job.options, "prompt": read_prompt("-")})
    options = dict(job.options)
    if "init_image" in options:
        options["init_image"] = read_image(options["init_image"])
    if "mask" in options:
        options["mask"] = read_image(options["mask"], 1)[:, :, 0]
    with load(bundle, backend, threads=threads, advise=advise) as model:
        # One family may have several pipelines: of GANs, a translator is another than a generator.
        refuse_unknown(Family(bundle, model.bundle.manifest.family, type(model)), job.method, options)
        with progress_bar(job.method) as progress:
            if progress is not None and "progress" in _taken(type(model), job.method):
                options["progress"] = progress
            with _naming_files(job):
                images = getattr(model, job.method)(*sources, **options)
        manifest = model.bundle.manifest
    facts = describe(images, manifest, job)
    files = write(images, job, facts)
    if as_json:
        height, width, channels = images.pixels.shape[1:]
        shape = {"images": len(images), "height": height, "width": width, "channels": channels}
        click.echo(to_json({"files": [str(file) for file in files], **shape, "seeds": images.seeds, **facts}))
    elif sys.stderr is not None and sys.stderr.isatty():
        click.echo(f"{len(images)} images in {job.output}", err=True)


@contextmanager
def _naming_files(job: Job) -> Iterator[None]:
    """Say in an error about an image which file it was: a pipeline has seen its pixels only."""
    sources = [source for source in job.sources if isinstance(source, Path)]
    files = {"the mask": job.options.get("mask"), "init_image": job.options.get("init_image")}
    if len(sources) < 2:  # of two, nobody knows which is meant
        files["the image"] = sources[0] if sources else files["init_image"]
    try:
        yield
    except InputError as error:
        file = next((file for said, file in files.items() if file is not None and str(error).startswith(said)), None)
        if file is None:
            raise
        raise InputError(f"{file}: {error}") from error


def describe(images: "Images", manifest: "Manifest", job: Job) -> dict[str, Any]:
    """Say what the images were made with: the model, its digest (of the manifest, which lists every file's), and parameters."""
    from edgegen.manifest import encode

    given = {name: value.name if isinstance(value, Path) else value for name, value in job.options.items() if name != "seed"}
    if job.sources:
        given["sources"] = [source.name if isinstance(source, Path) else source for source in job.sources]
    return {
        "model": manifest.name,
        "model_sha256": hashlib.sha256(encode(manifest)).hexdigest(),
        "parameters": {"method": job.method} | given | dict(images.parameters),
    }


def write(images: "Images", job: Job, facts: Mapping[str, Any]) -> list[Path]:
    """Write one PNG (a sheet where there are several images), or one for each image into a folder. Returns the files."""
    from edgegen.media import sheet, write_folder, write_png

    common = {"Software": f"edgegen {__version__}"}
    common |= {name: value if isinstance(value, str) else to_json(value) for name, value in facts.items()}
    if job.output.suffix.lower() == ".png":
        pixels = images.pixels[0] if len(images) == 1 else sheet(images.pixels)
        seeds = {"seed": ",".join(map(str, images.seeds))} if images.seeds else {}
        write_png(job.output, pixels, common | seeds if job.metadata else None)
        return [job.output]
    names = [f"{index:04d}" for index in range(len(images))]
    if images.seeds:
        names = [f"{name}-seed{seed}" for name, seed in zip(names, images.seeds, strict=True)]
    each = [common | ({"seed": str(images.seeds[index])} if images.seeds else {}) for index in range(len(images))]
    return write_folder(job.output, images.pixels, names, each if job.metadata else ())


def _check_place(output: Path) -> None:
    if output.suffix.lower() == ".png" and output.is_dir():
        raise InputError(f"{output} is a folder; name a PNG file, or a folder without .png")
    if output.suffix.lower() not in {"", ".png"} and not output.is_dir():
        raise InputError(f"cannot write {output}: images are written as PNG; name it {output.with_suffix('.png').name}")
    check_folder(output)


def _taken(pipeline: Any, method: str) -> frozenset[str]:
    """The options that a method takes: by its signature, and those of `generate` where it hands all others on to it."""
    parameters = inspect.signature(getattr(pipeline, method)).parameters
    rest = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    options = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    if method != "generate":  # what stands before its options are the things that it works on
        options = {inspect.Parameter.KEYWORD_ONLY}
    names = {name for name, parameter in parameters.items() if parameter.kind in options}
    if rest and method != "generate":
        names |= _taken(pipeline, "generate")
    return frozenset(names)


def _seed_or_file(text: str) -> int | Path:
    return int(text) if text.isdigit() else Path(text)


def _flags(section: str | None = None) -> dict[str, str]:
    """Every option of the running command (of one section) by its parameter's name."""
    params = click.get_current_context().command.params
    wanted = [p for p in params if section is None or (isinstance(p, SectionOption) and p.section == section)]
    return {str(p.name): max(p.opts, key=len) for p in wanted if isinstance(p, click.Option)}


def refuse_unknown(family: Family, method: str, options: Mapping[str, Any]) -> None:
    """Raise InputError where the family's pipeline has no such method, or the method no such option."""
    if not hasattr(family.pipeline, method):
        hint = "" if method != "generate" else "; give the image to change with --input" * _takes_images(family)
        raise InputError(f"{family.bundle}: this model of the family {family.name} does not {method}{hint}")
    flags, takes = _flags(), _taken(family.pipeline, method)
    unknown = [flag for name, flag in flags.items() if name in options.keys() - takes - set(_CLI_ONLY)]
    if unknown:
        also = {"input_image": _takes_images(family), "interpolate": hasattr(family.pipeline, "interpolate")}
        known = [flag for name, flag in flags.items() if name in takes or also.get(name)]
        said = f"{method} of the family {family.name}" if method != "generate" else f"the family {family.name}"
        raise InputError(f"{family.bundle}: {said} has no {', '.join(unknown)}; it takes {', '.join(known) or 'no options'}")


def _takes_images(family: Family) -> bool:
    return any(hasattr(family.pipeline, name) for name in INPUT_METHODS)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a callback (done, all) that draws a bar on stderr, or None where stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
