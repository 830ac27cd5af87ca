"""Helpers for tests of modules of one's own: declare them, capture them, and a package that has some."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import onnxruntime
import pytest
from torch import nn

from edgegen.export.capture_module import capture_part
from edgegen.export.declare import Declared, declare
from edgegen.export.parts import Modules, Part
from edgegen.tensors import Axis

AXES = {"batch": Axis(1, 2, 4), "height": Axis(8, 8, 32), "width": Axis(8, 16, 32)}


def source_of(*modules: nn.Module, **named: nn.Module) -> Modules:
    found = {"": modules[0]} if modules else named
    return Modules("module", "m", "0" * 64, "unknown", {name: module.eval() for name, module in found.items()})


def declared(module: nn.Module, inputs: list[str], outputs: list[str], axes: tuple[str, ...] = ("batch=1..2..4",)) -> Part:
    opened = declare(source_of(module), Declared(inputs, outputs, axes), "gan")
    return Part(opened.modules[""], opened.inputs[""], opened.outputs[""])


def captured(part: Part, axes=AXES):
    """The part's graph as a function of its inputs, in onnxruntime."""
    model = capture_part("g", part, axes)
    model.ir_version = 11
    session = onnxruntime.InferenceSession(onnx_ir.serde.serialize_model(model).SerializeToString())
    return lambda *tensors: session.run(
        None, dict(zip((s.name for s in part.inputs), (t.numpy() for t in tensors), strict=True))
    )


PACKAGE = """
import warnings

import torch
from torch import nn

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.Unflatten(1, (4, 4, 4)), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))

    def forward(self, z):
        return {"features": z, "image": self.net(z)}

def make_generator():
    torch.manual_seed(0)
    return Generator()

def broken():
    raise RuntimeError("no such dataset")

def needs(size):
    return Generator()

def number():
    return 3

def leaves():
    raise SystemExit(3)

def lazy():
    return nn.Sequential(nn.LazyLinear(4))

def empty():
    with torch.device("meta"):
        return Generator()

def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and in use
        return torch.jit.trace(make_generator().eval().net, torch.zeros(1, 16))

def two():
    return {"mapping": nn.Linear(4, 4), "synthesis": nn.Linear(4, 4)}

CONSTANT = 3
"""


@contextlib.contextmanager
def package_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package in the current directory, forgotten afterwards."""
    inner = folder / "my_package"
    inner.mkdir()
    (inner / "__init__.py").touch()
    (inner / "my_module.py").write_text(PACKAGE)
    (inner / "missing.py").write_text("import no_such_library\n")
    (inner / "failing.py").write_text("1 / 0\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in {"my_package", "fake_ops", "fake_gan"}]:
        del sys.modules[name]
