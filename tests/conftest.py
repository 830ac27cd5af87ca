import pytest
from bundles import make_bundle


@pytest.fixture
def tiny_bundle(tmp_path):
    """A valid bundle of about 10 KB (tests/bundles.py), to be used, changed or damaged."""
    return make_bundle(tmp_path / "tiny.bundle")
