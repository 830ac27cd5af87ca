"""A network of features from PyTorch to a proven bundle."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from edgegen.errors import ExportError
from edgegen.export.assemble import export_model
from edgegen.export.families.features import build
from edgegen.export.parts import Modules, parse_spec
from edgegen.export.request import Request
from edgegen.runtime import load


def source(module, spec="image float32[batch, 3, 8, 8]", settings=None, promised=None):
    specs = {"features": (parse_spec(spec),)}
    outputs = {"features": (parse_spec(promised),)} if promised else {}
    return Modules("module", "tiny", "0" * 64, "CC0-1.0", {"": module.eval()}, specs, outputs, settings=settings or {})


def test_features_of_a_bundle_are_those_of_pytorch(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 7))
    request = Request(source(module), tmp_path / "f.bundle", "fp32", "tiny")
    export_model(request, build(request.source), lambda _stage, _share: None)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    with load(tmp_path / "f.bundle") as network, torch.no_grad():
        wanted = module(torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2))
        np.testing.assert_allclose(network.extract(pixels), wanted, atol=1e-5)  # float32 sums in another order


def test_what_is_no_network_of_features_is_one_line():
    for said, made in (
        ("must give features", source(nn.Conv2d(3, 4, 3))),
        ("one module of", source(nn.Flatten(), "z float32[batch, 3]")),
        (
            r"gives features float32\[batch, 192\]; promised is features float32\[batch, 5\]",
            source(nn.Flatten(), promised="features float32[batch, 5]"),
        ),
        ("the settings are not", source(nn.Flatten(), settings={"more": 1})),
    ):
        with pytest.raises(ExportError, match=said):
            build(made)
