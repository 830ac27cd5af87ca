"""Make the peers' environment and their models, each at its best and from edgegen's own checkpoint; once, then from the cache.

All of it lies in $XDG_CACHE_HOME/edgegen/peers; the names hold the checkpoint's digest and the version that made them.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from edgegen.export.fetch import cache_directory

HERE = Path(__file__).parent
REQUIREMENTS = ("llama-cpp-python==0.3.36", "onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "numpy>=1.26")
BUILDER_OPTIONS = ("int4_block_size=32", "int4_accuracy_level=4")


@dataclass(frozen=True)
class Prepared:
    """A peer's model: where it is, and how it was made, for the record."""

    path: Path
    made: str


def peer_python(given):
    """The interpreter that has both peers: the one that was given, else one in the cache, made at the first call."""
    if given is not None:
        _run([given, "-c", "import llama_cpp, onnxruntime_genai"], f"{given} has not both peers")
        return Path(given)
    versions = "-".join(requirement.split("==")[1] for requirement in REQUIREMENTS[:2])
    home = _cache() / f"venv-{versions}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():  # a virtual environment cannot be moved, so a mark says that it is whole
        click.echo(f"installing {' '.join(REQUIREMENTS)} in {home}: llama.cpp is compiled here, which takes minutes", err=True)
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "venv", home], "no virtual environment")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # From source and for this very processor: a wheel would do without its widest instructions.
        options = ["--no-binary", "llama-cpp-python", *REQUIREMENTS]
        _run([*pip, *options], "the peers could not be installed", CMAKE_ARGS="-DGGML_NATIVE=ON")
        done.touch()
    return python


def llama_file(gguf, sha256, python, *, pure):
    """Q4_0, which llama.cpp repacks for the CPU when it loads it (it does not repack Q4_1)."""
    version = _version(python, "llama_cpp_python")
    name = f"{sha256[:12]}-llama-{version}-q4_0{'-pure' * pure}.gguf"
    command = [python, HERE / "make_q4_0.py", gguf]
    path = _once(name, lambda target: _run([*command, target, int(pure)], "llama.cpp made no Q4_0"))
    return Prepared(path, f"llama_model_quantize of llama-cpp-python {version}, Q4_0{', pure' * pure}, allow_requantize")


def genai_directory(source, sha256, python):
    """int4 by onnxruntime-genai's own model builder, from the float32 of the checkpoint."""
    version = _version(python, "onnxruntime_genai")
    path = _once(f"{sha256[:12]}-genai-{version}", lambda target: _build(source, python, target))
    return Prepared(path, f"model builder of onnxruntime-genai {version}, -p int4 -e cpu, {', '.join(BUILDER_OPTIONS)}")


def _build(source, python, target):
    # The builder needs torch and transformers, which edgegen's environment has: it is run by its path from there.
    find = "import importlib.util as u; print(u.find_spec('onnxruntime_genai').submodule_search_locations[0])"
    library = Path(_run([python, "-c", find], "no onnxruntime-genai").strip())
    scratch = target.with_name(target.name + "-float32")
    try:
        _run([sys.executable, HERE / "make_checkpoint.py", source, scratch], "the checkpoint could not be written")
        builder = [sys.executable, library / "models" / "builder.py", "-p", "int4", "-e", "cpu"]
        places = ["-i", scratch, "-o", target, "-c", scratch / "cache"]
        command = [*builder, *places, "--extra_options", *BUILDER_OPTIONS]
        _run(command, "the model builder failed", HF_HUB_OFFLINE="1")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cache():
    cache = cache_directory().parent / "peers"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _once(name, make):
    """The file or directory of that name in the cache, whole: made beside it first where it is not there."""
    target = _cache() / name
    if not target.exists():
        click.echo(f"making {target}", err=True)
        scratch = target.with_name(f".{os.getpid()}-{name}")
        make(scratch)
        scratch.replace(target)
    return target


def _version(python, name):
    return _run([python, "-c", f"from importlib.metadata import version as v; print(v('{name}'))"], f"no {name}").strip()


def _run(command, failure, **environment):
    """Run to the end and return what it printed; its last line is the reason where it fails."""
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"} | environment
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise click.ClickException(f"{failure}: {error}") from error
    if done.returncode != 0:
        raise click.ClickException(f"{failure}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout
