"""What a run takes for each row of its batch, counted while PyTorch runs it."""

import pytest

torch = pytest.importorskip("torch")

from own_modules import declared
from torch import nn

from edgegen.bundle import Bundle
from edgegen.export.footprint import row_bytes
from edgegen.tensors import Axis

AXES = {"batch": Axis(1, 4, 8), "height": Axis(8, 16, 32), "width": Axis(8, 16, 32)}
IMAGE, ROW = 3 * 16 * 16 * 4, 8 * 16 * 16 * 4


def part(*layers):
    return declared(
        nn.Sequential(*layers),
        ["x float32[batch, 3, height, width]"],
        ["y float32[batch, 3, height, width]"],
        ("batch=1..4..8", "height=8..16..32", "width=8..16..32"),
    )


def test_a_row_takes_what_is_alive_at_once():
    first, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
    assert row_bytes("g", part(first, nn.ReLU(), last), AXES) == IMAGE + 2 * ROW  # the input, and both sides of the ReLU
    assert row_bytes("g", part(first, *[nn.ReLU()] * 5, last), AXES) == IMAGE + 2 * ROW  # what is behind is freed
    assert row_bytes("g", part(first, nn.ReLU(inplace=True), last), AXES) == 2 * IMAGE + ROW


def test_a_batch_that_cannot_be_one_is_shared_out_among_its_rows():
    whole = row_bytes("g", part(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)), AXES)
    assert row_bytes("g", part(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)), AXES | {"batch": Axis(4, 4, 8)}) == whole


def test_a_view_takes_nothing_and_neither_does_a_weight():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1000, 1000))

        def forward(self, x):
            return x.flatten(1).unflatten(1, (3, 16, 16)) * self.scale.t()[:1, :1]

    assert row_bytes("g", part(Weighted()), AXES) == 2 * IMAGE


def test_the_scores_of_an_attention_are_counted():
    class Attending(nn.Module):
        def forward(self, x):
            rows = x.flatten(2)[:, :, :, None].expand(-1, -1, -1, 8).contiguous()  # for each pixel of a channel, 8 numbers
            return nn.functional.scaled_dot_product_attention(rows, rows, rows)[..., 0].unflatten(2, (16, 16))

    assert row_bytes("g", part(Attending()), AXES) == IMAGE + 8 * IMAGE + 3 * 256 * 256 * 4


def test_the_bundle_says_what_a_row_takes(tmp_path):
    from edgegen.export.families import gan
    from edgegen.export.parts import Modules, parse_spec
    from edgegen.export.request import Request

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 48), nn.Unflatten(1, (3, 4, 4))).eval()
    inputs = {"": (parse_spec("z float32[batch, 8]"),)}
    source = Modules("module", "g", "0" * 64, "MIT", {"": module}, inputs, axes={"batch": Axis(1, 2, 4)})
    gan.export(Request(source, tmp_path / "g.bundle", "fp32", "g"), lambda *_: None)
    with Bundle.open(tmp_path / "g.bundle") as bundle:
        assert bundle.manifest.graphs["generator"].row_bytes == (8 + 48) * 4
