"""Imports run one way: cli -> (export, train, bench) -> pipelines -> backends -> bundle, tensors, errors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "edgegen"
LIBRARIES = {  # a library that only one place may know: the modules that may import it
    "onnxruntime": (
        *(f"edgegen.backends.ort.{module}" for module in ("session", "binding", "create", "device", "failures", "providers")),
        "edgegen.export",
    ),
    "tensorrt": (),  # modules of TensorRT's API are passed around: `backends.trt.flavours` imports them by name
    "tensorrt_rtx": (),
    "cuda": (),
    "torch": ("edgegen.export", "edgegen.train", "edgegen.models"),
    "transformers": ("edgegen.export", "edgegen.train"),
    "onnx": ("edgegen.export",),
    "PIL": ("edgegen.media", "edgegen.export", "edgegen.train"),
    "click": ("edgegen.cli",),
    "rich": ("edgegen.cli", "edgegen.bench.report"),
}
LEVELS = (  # from the ground up; a module may import those of its own level and below
    ("edgegen.errors",),
    ("edgegen.ranges",),
    ("edgegen.tensors", "edgegen.confine", "edgegen.sandbox", "edgegen.media"),
    ("edgegen.manifest",),
    (
        "edgegen.graphs",
        "edgegen.archive",
        "edgegen.sampling",
        "edgegen.schedules",
        "edgegen.tokenizers",
        "edgegen.chat_template",
    ),
    ("edgegen.bundle",),
    ("edgegen.backends", "edgegen.devices"),
    ("edgegen.kv_cache",),
    ("edgegen.pipelines",),
    ("edgegen.proof",),
    ("edgegen.switching", "edgegen.automatic"),
    ("edgegen.runtime",),
    ("edgegen.offline", "edgegen.describe", "edgegen.health"),
    ("edgegen.models",),
    ("edgegen.export", "edgegen.train", "edgegen.bench", "edgegen.planner"),
    ("edgegen.cli", "edgegen.__main__"),
)
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_in(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def level_of(module: str) -> int | None:
    return next((level for level, places in enumerate(LEVELS) if is_in(module, places)), None)


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Each module that a file imports, and whether only for a type checker."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                inner = (ROOT.parent / Path(*f"{node.module}.{alias.name}".split("."))).with_suffix(".py")
                yield (f"{node.module}.{alias.name}" if inner.exists() else str(node.module)), id(node) in typing_only


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    module = name_of(path)
    if module == "edgegen":
        return  # the door: it opens lazily
    own = level_of(module)
    assert own is not None, f"{module} has no level: give it one in LEVELS"
    for imported, typing_only in imports_of(path):
        below = level_of(imported)
        if below is not None and not typing_only:
            assert below <= own, f"{module} imports {imported}, which is above it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_library_is_imported_only_where_it_belongs(path):
    module = name_of(path)
    for imported, _ in imports_of(path):
        places = LIBRARIES.get(imported.partition(".")[0])
        assert places is None or is_in(module, places), f"{module} imports {imported}; only {places} may"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_keeps_to_its_size(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, f"{path} has more than 400 lines: split it by subject"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{path}: {node.name} has {lines} lines"
