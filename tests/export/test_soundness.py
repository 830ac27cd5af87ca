"""What is wrong with a model before any graph is made: NaN, images that depend on one another, answers that change."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from own_modules import AXES, declared, source_of
from torch import nn

from edgegen.errors import CaptureError, ExportError
from edgegen.export.families import gan
from edgegen.export.parts import parse_spec
from edgegen.export.request import Request
from edgegen.export.soundness import check_answers, check_rows
from edgegen.tensors import Axis

INPUTS, OUTPUTS = ["z float32[batch, 6]"], ["image float32[batch, 3, 4, 4]"]


def generator():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Unflatten(1, (3, 4, 4)))


class Around(nn.Module):
    """The generator, and something wrong after it."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = generator(), change

    def forward(self, z):
        return self.change(self.inner(z))


def exported(module, path, precision="fp32"):
    source = source_of(module)
    source = type(source)(**vars(source) | {"inputs": {"": (parse_spec(INPUTS[0]),)}, "axes": {"batch": Axis(1, 2, 4)}})
    return gan.export(Request(source, path, precision, "g"), lambda *_: None)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_before_anything_else(tmp_path, number):
    module = generator()
    with torch.no_grad():
        module[0].bias[3] = number  # tanh would make 1 of infinity, and the proof would pass
    with pytest.raises(ExportError, match=r"generator: the weights 0\.bias hold 1 numbers .* not finite; give a checkpoint"):
        exported(module, tmp_path / "g.bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path):
    module = generator()
    with torch.no_grad():
        module[0].bias[3] = 1e5
    assert exported(module, tmp_path / "single.bundle").fidelity[0].failure is None
    with pytest.raises(ExportError, match=r"0\.bias hold 1 numbers that are not finite; float16 goes to 65504: .*fp32"):
        exported(module, tmp_path / "g.bundle", "fp16")


def test_an_original_that_gives_nan_is_said_to_do_so_not_its_graph(tmp_path):
    with pytest.raises(ExportError, match="PyTorch itself gives image with 96 numbers of 96 that are not finite"):
        exported(Around(lambda x: torch.log(x - 2)), tmp_path / "g.bundle")
    assert list(tmp_path.iterdir()) == []
    check_answers({"codes": np.zeros(3, np.int64)}, "PyTorch")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x - x.mean(0, keepdim=True), "of one image depends on the others of its batch .*--axis batch=1"),
        (lambda x: nn.functional.batch_norm(x, None, None, training=True), "depends on the others .*running statistics"),
        (lambda x: x * x.sum().sigmoid(), "depends on the others of its batch"),
        (lambda x: nn.functional.dropout(x, training=True), "another each time, on the same inputs .*such as dropout's"),
    ],
)
def test_images_that_are_not_their_own_are_refused_with_the_cure(change, said):
    part = declared(Around(change), INPUTS, OUTPUTS)
    with pytest.raises(CaptureError, match=f"^g: image.* {said}") as caught:
        check_rows("g", part, AXES)
    assert "\n" not in str(caught.value)
    check_rows("g", part, AXES | {"batch": Axis(1, 1, 1)})  # alone there is nothing to depend on


def test_images_that_are_their_own_pass_whatever_else_is_shared():
    class Scaled(nn.Module):
        def forward(self, z, scale):
            return z * scale, z.argmax(1)

    check_rows("g", declared(generator(), INPUTS, OUTPUTS), AXES)
    outputs = ["image float32[batch, 6]", "codes int64[batch]"]
    check_rows("g", declared(Scaled(), [*INPUTS, "scale float32[1]"], outputs), AXES)


def test_a_norm_that_wants_a_batch_says_what_it_does():
    flat = declared(
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)), INPUTS, ["y float32[batch, 4]"]
    )
    with pytest.raises(CaptureError, match=r"takes the statistics of a batch .*use running ones"):
        check_rows("g", flat, AXES)
