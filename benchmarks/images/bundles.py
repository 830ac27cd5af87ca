"""The subjects' bundles, made once: they lie in $XDG_CACHE_HOME/edgegen/benchmarks, each beside the digest of what made it."""

import hashlib
import importlib
import importlib.metadata
import shutil
from pathlib import Path

import numpy as np
from images.subjects import feeds

from edgegen.backends import choose, variant_for
from edgegen.bundle import Bundle
from edgegen.export.fetch import cache_directory

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "diffusers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
_MAKERS = ("edgegen/export", "edgegen/models", "edgegen/pipelines", "edgegen/schedules", "edgegen/manifest.py", "export")
_OWN = ("benchmarks/images/subjects.py", "benchmarks/images/bundles.py")


def cache():
    """Where bundles and compiled models are kept between runs."""
    return cache_directory().parent / "benchmarks"


def digest():
    """Of everything that a bundle is made with: edgegen's exporter, the subjects, and the libraries' versions."""
    found = hashlib.sha256()
    for place in (*_MAKERS, *_OWN):
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    for name in LIBRARIES:
        found.update(f"{name} {importlib.metadata.version(name)}\0".encode())
    return found.hexdigest()


def bundle_of(subject, precision="fp32"):
    """The path of the subject's bundle; exported where it is not in the cache, or was made by other code."""
    folder = cache() / "bundles" / f"{subject.bundle_name}-{precision}"
    bundle, mark, wanted = folder / "model.bundle", folder / "made-by", digest()
    if not mark.exists() or mark.read_text(encoding="ascii") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _export(subject, bundle, precision)
        mark.write_text(wanted, encoding="ascii")  # last: an export that was interrupted has no mark
    return bundle


def graph_file(bundle, graph):
    """The file of the very graph that edgegen gives to onnxruntime."""
    with Bundle.open(bundle) as opened:
        backend = choose("onnxruntime")
        return bundle / opened.manifest.graphs[graph].variants[variant_for(backend, opened, graph)].path


def write_feeds(subject, file):
    """The inputs of the measured graph as an .npz: names are "BATCH:INPUT"."""
    named = {f"{batch}:{key}": t.numpy() for batch in subject.batches for key, t in feeds(subject, batch).items()}
    np.savez(file, **named)
    return file


def _export(subject, target, precision):
    from edgegen.export.families import FAMILIES
    from edgegen.export.parts import Modules, parse_spec
    from edgegen.export.request import Request
    from edgegen.tensors import Axis

    parsed = [
        {graph: tuple(map(parse_spec, texts)) for graph, texts in part.items()} for part in (subject.inputs, subject.outputs)
    ]
    axes = {axis: Axis(*sizes) for axis, sizes in subject.axes.items()}
    modules = {graph: module.eval() for graph, module in subject.modules.items()}
    source = Modules("module", subject.bundle_name, "0" * 64, "none", modules, *parsed, axes, subject.settings)
    module, _, function = FAMILIES[subject.family].partition(":")
    request = Request(source, target, precision, subject.bundle_name)
    getattr(importlib.import_module(module), function)(request, lambda *_: None)
