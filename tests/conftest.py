import itertools
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads of PyTorch would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from bundles import make_bundle

_numbers = itertools.count()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the groups
def pytest_collection_modifyitems(items):
    """Tests that share a bundle run in one process, which exports it once; the real model's, the longest, comes first."""
    for item in items:
        if "smollm2" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("smollm2"))
        elif "exported" in item.fixturenames:
            told = getattr(getattr(item, "callspec", None), "params", {})
            item.add_marker(pytest.mark.xdist_group(f"exported {told.get('architecture', 'llama')}"))
    items.sort(key=lambda item: "smollm2" not in item.fixturenames)


def pytest_collection_finish(session):
    """A pytest that pytest-xdist does not know drops the groups without a word, and each process exports all for itself."""
    grouped = [item for item in session.items if "PYTEST_XDIST_WORKER" in os.environ and item.get_closest_marker("xdist_group")]
    if any("@" not in item.nodeid for item in grouped):
        raise pytest.UsageError("pytest-xdist does not group the tests; install the versions of constraints.txt")


def pytest_make_parametrize_id(val, argname):
    """Bytes never name a test: a time stamp in a gzip header would give it another name in each of the processes."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _own_engines(monkeypatch, tmp_path_factory):
    """No test sees the user's cache of engines, or another test's. Nothing is made unless an engine is kept."""
    monkeypatch.setenv("EDGEGEN_ENGINES", str(tmp_path_factory.getbasetemp() / f"engines-{next(_numbers)}"))


@pytest.fixture
def tiny_bundle(tmp_path):
    """A valid bundle of about 10 KB (tests/bundles.py), to be used, changed or damaged."""
    return make_bundle(tmp_path / "tiny.bundle")
