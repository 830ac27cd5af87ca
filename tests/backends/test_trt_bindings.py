"""The calls that the TensorRT backend makes, and the API that the simulation offers, held to the real Python bindings."""

import ast
from pathlib import Path

import pytest
from real_bindings import RELEASES, dump, signatures
from simulated_tensorrt import simulate
from simulated_tensorrt.api import API, PRESETS, SINCE, UNTIL, offers
from simulated_tensorrt.module import _ENUMERATIONS as ENUMERATIONS

import edgegen.backends.trt

FOLDER = Path(edgegen.backends.trt.__file__).parent
TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.py"))}
# By file: what is held in a name, as a class of TensorRT. A name that is gone, or a member that is read of another, fails.
HOLDERS = {
    "build": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "error": "ParserError",
        "layer": "IAttentionInputLayer",
        "layer.attention": "IAttention",
        "native": "IOptimizationProfile",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "tensor": "ITensor",
    },
    "engine": {
        "config": "IRuntimeConfig",
        "context": "IExecutionContext",
        "native": "ICudaEngine",
        "runtime": "Runtime",
        "self._config": "IRuntimeConfig",
        "self._native": "ICudaEngine",
        "self._runtime": "Runtime",
    },
    "log": {"error": "ParserError", "parser": "OnnxParser"},
    "runner": {"self._context": "IExecutionContext"},
    "runtime_cache": {"config": "IRuntimeConfig", "self._native": "IRuntimeCache"},
}
MODULES = ("trt", "self._trt")  # what the module itself is called


def has(release, member):
    """Whether the real bindings of a release have a member, written "Class.member"."""
    owner, _, name = member.partition(".")
    return name in dump(release).get(owner, {})


def offered(release, member):
    """Whether the simulation of a release says that there is such a member: a class that is not there has none."""
    owner = member.partition(".")[0]
    return offers(release, member) and (not owner or offers(release, f".{owner}"))


MEMBERS = sorted(f"{owner}.{name}" for owner, names in API.items() for name in names if not name.startswith("_"))


def test_the_simulated_versions_are_those_whose_bindings_are_known():
    assert set(PRESETS) == set(RELEASES)
    assert set(SINCE) | set(UNTIL) <= set(MEMBERS)


@pytest.mark.parametrize("release", RELEASES)
def test_what_the_simulation_offers_is_what_the_bindings_have(release):
    wrong = [
        f"{member}: {'simulated, not real' if offered(release, member) else 'real, not simulated'}"
        for member in MEMBERS
        if offered(release, member) != has(release, member)
    ]
    assert not wrong


@pytest.mark.parametrize("release", RELEASES)
def test_the_simulated_module_has_what_it_says_that_it_offers(release):
    simulated = simulate(release).trt
    for member in MEMBERS:
        owner, _, name = member.partition(".")
        if offered(release, f".{owner}" if owner else member):
            place = getattr(simulated, owner) if owner else simulated
            in_instances = not hasattr(place, "__members__") and owner  # attributes that a constructor sets
            assert hasattr(place, name) == offered(release, member) or in_instances, member


@pytest.mark.parametrize("release", RELEASES)
def test_the_numbers_of_every_enumeration_are_those_of_the_bindings(release):
    simulated, compared = simulate(release).trt, 0
    for name in (name for name in ENUMERATIONS if offers(release, f".{name}")):
        numbers = {member: int(value) for member, value in getattr(simulated, name).__members__.items()}
        assert numbers == {member: dump(release)[name][member]["value"] for member in numbers}, name
        compared += len(numbers)
    assert compared > 15


# ------------------------------------------------------------------------------------------------ the backend itself


def owner_of(file, node):
    """The class of what an attribute is read of: "" for the module, None where it is not TensorRT's."""
    held = ast.unparse(node.value)
    if held in MODULES:
        return ""
    for module in MODULES:
        if held.startswith(f"{module}."):
            return held.removeprefix(f"{module}.")
    return HOLDERS.get(file, {}).get(held)


def attributes(kind=ast.Attribute):
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield file, node


def members_read():
    """Every member of TensorRT's that a file reads, as "Class.member", and where."""
    found = {}
    for file, node in attributes():
        owner = owner_of(file, node)
        if owner is not None and not node.attr.startswith("_"):
            found.setdefault(f"{owner}.{node.attr}", f"{file}.py:{node.lineno}")
    return found


def releases_of(member):
    """The releases that a member is read on: those whose simulation offers it, or its class where it does not tell."""
    owner = member.partition(".")[0]
    return [release for release in RELEASES if offered(release, member) and offered(release, f".{owner}" if owner else member)]


@pytest.mark.parametrize("release", RELEASES)
def test_every_member_that_the_backend_reads_is_in_the_bindings(release):
    read = members_read()
    assert len(read) > 50  # the walk finds them
    missing = [
        f"{member} ({place})" for member, place in read.items() if release in releases_of(member) and not has(release, member)
    ]
    assert not missing


def test_every_member_that_the_backend_reads_is_in_the_simulation():
    known = {*MEMBERS, *(f"IAttentionInputLayer.{name}" for name in API["ILayer"])}  # what it inherits
    assert not {member: place for member, place in members_read().items() if member not in known}


def test_the_names_that_hold_tensorrt_objects_are_all_known():
    """Or a member that is renamed would be missed: those whose names nothing of edgegen's has are read of known names alone."""
    telling = {member.partition(".")[2] for member in MEMBERS if "_" in member.partition(".")[2]}
    strays = {
        f"{file}.py:{node.lineno}: {ast.unparse(node)}"
        for file, node in attributes()
        if node.attr in telling and owner_of(file, node) is None
    }
    assert not strays
    seen = {(file, ast.unparse(node.value)) for file, node in attributes()}
    gone = [(file, name) for file, names in HOLDERS.items() for name in names if (file, name) not in seen]
    assert not gone


def test_what_the_backend_asks_for_by_hasattr_is_real_somewhere():
    real = {name for release in RELEASES for names in dump(release).values() for name in names}
    asked = [
        (file, node.args[1].value)
        for file, node in attributes(ast.Call)
        if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr") and isinstance(node.args[1], ast.Constant)
    ]
    assert asked
    assert not [(file, name) for file, name in asked if name not in real]


@pytest.mark.parametrize("release", RELEASES)
def test_every_call_of_the_backend_fits_a_signature_of_the_bindings(release):
    wrong, checked = [], 0
    for file, node in attributes(ast.Call):
        if not isinstance(node.func, ast.Attribute) or (owner := owner_of(file, node.func)) is None:
            continue
        name = node.func.attr
        member = f"{owner}.{name}"
        if name.startswith("_") or release not in releases_of(member):
            continue
        document = dump(release).get(owner, {}).get(name, {"doc": ""})["doc"]
        overloads = signatures(document, "__init__" if not owner else name)
        named = frozenset(keyword.arg for keyword in node.keywords if keyword.arg)
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        checked += bool(overloads)
        fits = [named <= set(overload.names) if starred else overload.takes(len(node.args), named) for overload in overloads]
        if overloads and not any(fits):
            wrong.append(f"{file}.py:{node.lineno}: {ast.unparse(node)[:80]} against {overloads}")
    assert checked > 25  # docstrings hold the signatures
    assert not wrong
