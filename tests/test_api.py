"""The public door: few names, all of them there, loaded on first use."""

import importlib.metadata
import re
from pathlib import Path

import pytest

import edgegen
from edgegen.backends import BACKENDS
from edgegen.pipelines import FAMILIES

ROOT = Path(__file__).resolve().parent.parent


def test_the_door_has_at_most_ten_names_and_each_leads_somewhere():
    assert len(edgegen.__all__) <= 10
    assert sorted(edgegen.__all__) == edgegen.__all__
    for name in edgegen.__all__:
        assert getattr(edgegen, name) is not None


def test_the_lazy_names_are_the_public_ones():
    assert {*edgegen._PLACES, "__version__"} == set(edgegen.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="lode"):
        edgegen.lode  # noqa: B018


def test_dir_shows_the_public_names():
    assert set(edgegen.__all__) <= set(dir(edgegen))


def test_the_version_is_that_of_the_distribution():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert edgegen.__version__ == declared[1] == importlib.metadata.version("edgegen")


@pytest.mark.parametrize("place", [*FAMILIES.values(), *(backend.place for backend in BACKENDS.values())])
def test_every_place_in_a_table_is_a_file_with_that_class(place):
    module, _, name = place.partition(":")
    source = ROOT / Path(*module.split(".")).with_suffix(".py")
    assert source.exists(), f"{place}: no such module"
    assert re.search(rf"^(class|def) {name}\b", source.read_text(), re.MULTILINE), f"{place}: no such class or function"
