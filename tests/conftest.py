import itertools

import pytest
from bundles import make_bundle

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _own_engines(monkeypatch, tmp_path_factory):
    """No test sees the user's cache of engines, or another test's. Nothing is made unless an engine is kept."""
    monkeypatch.setenv("EDGEGEN_ENGINES", str(tmp_path_factory.getbasetemp() / f"engines-{next(_numbers)}"))


@pytest.fixture
def tiny_bundle(tmp_path):
    """A valid bundle of about 10 KB (tests/bundles.py), to be used, changed or damaged."""
    return make_bundle(tmp_path / "tiny.bundle")
