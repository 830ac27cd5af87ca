"""What stands between a module and its graph: swept away, or named with its cure."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from own_modules import AXES, captured, declared
from torch import nn

from edgegen.errors import CaptureError
from edgegen.export.capture_module import STEPS, capture_part
from edgegen.export.explain import limits_error, limits_of
from edgegen.export.noise import with_noise_inputs
from edgegen.export.parts import Part, example, parse_spec
from edgegen.export.prepare import settle
from edgegen.tensors import Axis


class Block(nn.Module):
    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x):
        return self.attn(x)


class In(nn.Module):
    """Puts a module at `blocks.1.attn`, to be found there."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), Block(module)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x


class Size(nn.Module):
    def forward(self, x):
        return x[:, : int(x.sum().item())]


class Decomposed(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x[:, :, None])


class Numpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy() * 2)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Branch(), r"blocks\.1\.attn \(Branch\) \(test_obstacles\.py, line \d+\).*torch\.where"),
        (Size(), r"blocks\.1\.attn \(Size\) \(test_obstacles\.py, line \d+\).*fix the size"),
        (Decomposed(), r"blocks\.1\.attn \(test_obstacles\.py, line \d+\), operator aten._linalg_svd.*replace the operator"),
        (Numpy(), r"blocks\.1\.attn \(Numpy\) \(test_obstacles\.py, line \d+\).*operators of torch"),
    ],
)
def test_what_cannot_be_captured_names_the_module_the_line_and_the_cure(module: nn.Module, said: str):
    part = Part(In(module), (parse_spec("x float32[batch, 4]"),), (parse_spec("y float32[batch, 4]"),))
    with pytest.raises(CaptureError, match=said) as caught:
        capture_part("g", part, AXES)
    assert "\n" not in str(caught.value)


def test_the_path_is_that_in_the_users_module_whatever_is_wrapped_around_it():
    class Draws(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals((x + torch.randn(x.shape[0], 4))[:, :, None])

    part = declared(In(Draws()), ["x float32[batch, 4]"], ["y float32[batch, 1]"])
    with pytest.raises(CaptureError, match=r"g cannot be captured: in blocks\.1\.attn \(test_obstacles"):
        capture_part("g", part, AXES)


def test_a_parameter_may_be_called_as_an_input_is():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 4))

        def forward(self, w):
            return w @ self.w

    x = torch.randn(3, 3)
    run = captured(declared(Named(), ["w float32[batch, 3]"], ["y float32[batch, 4]"]))
    np.testing.assert_allclose(run(x)[0], (x @ torch.ones(3, 4)).numpy(), atol=1e-6)  # sums of three


class Rows(nn.Module):
    """Takes heights in multiples of 4 alone."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        return x.view(batch, channels, height // 4, 4, width).sum(3).repeat_interleave(4, 2)


class Eights(nn.Module):
    def forward(self, x):
        assert x.shape[2] % 8 == 0
        return x * 2


IMAGES = (parse_spec("x float32[batch, 3, height, width]"),), (parse_spec("y float32[batch, 3, height, width]"),)


@pytest.mark.parametrize("module", [Rows(), Eights(), nn.Sequential(nn.PixelUnshuffle(4), nn.PixelShuffle(4))])
def test_a_module_that_takes_multiples_alone_is_captured_for_them(module: nn.Module):
    run = captured(Part(module.eval(), *IMAGES))
    for height, width in ((8, 8), (16, 32), (32, 16)):
        x = torch.randn(1, 3, height, width)
        np.testing.assert_allclose(run(x)[0], module(x).numpy(), atol=1e-5)  # a sum of four


def test_the_multiples_that_a_module_takes_are_known_afterwards():
    assert capture_part("g", Part(Rows().eval(), *IMAGES), AXES).meta[STEPS] == {"height": 4}


def test_bounds_that_are_no_multiples_are_refused_with_the_number():
    with pytest.raises(CaptureError, match=r"height takes multiples of 4 alone, not 8\.\.12\.\.30; give --axis height="):
        capture_part("g", Part(Rows(), *IMAGES), AXES | {"height": Axis(8, 12, 30)})


def test_an_axis_that_the_module_fixes_is_told_with_its_size():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 3, 8, 1))

        def forward(self, x):
            return x + self.position

    with pytest.raises(CaptureError, match=r"height cannot vary, the module computes with 8 alone; give --axis height=8"):
        capture_part("g", Part(Fixed(), *IMAGES), AXES)


class Small(nn.Module):
    """Computes otherwise for large batches, as diffusers' upsampling does from 64 on."""

    def forward(self, x):
        return x * 2 if x.shape[0] < 64 else x


class FourRows(nn.Module):
    """Takes batches in multiples of 4, below 64."""

    def forward(self, x):
        return x.reshape(-1, 4, x.shape[1]).sum(1).repeat_interleave(4, 0) if x.shape[0] < 64 else x


class Square(nn.Module):
    def forward(self, x):
        return x @ x


@pytest.mark.parametrize(
    ("module", "shape", "sizes", "said"),
    [
        (Small(), "batch, 3", (1, 1, 128),
         r"batch can be 1 to 63 in one graph, not 1 to 128.*--axis batch=1\.\.1\.\.63 .*\"batch\": \(1, 1, 63\)"),
        (FourRows(), "batch, 3", (4, 8, 128), r"batch can be 4 to 60 in one graph, not 4 to 128"),
        (Square(), "batch, width", (1, 8, 16), r"its axes \w+ and \w+ must always be equal; give both one name"),
    ],
    ids=["bounds", "bounds of multiples", "equal"],
)  # fmt: skip
def test_other_bounds_that_the_module_needs_are_said_with_the_option(module, shape, sizes, said):
    part = Part(module, (parse_spec(f"x float32[{shape}]"),), (parse_spec(f"y float32[{shape}]"),))
    with pytest.raises(CaptureError, match=said) as caught:
        capture_part("g", part, {"batch": Axis(*sizes), "width": Axis(1, 8, 16)})
    assert "\n" not in str(caught.value)


def test_an_axis_that_the_exporter_rejects_without_a_cure_is_named():
    """What it says of the encoder of an AutoencoderKL whose sides are not declared as multiples."""
    said = (
        "Constraints violated (W)! For more ...\n  - Not all values of W satisfy the generated guard (1 % (8*(W // 8))) != 0."
    )
    error = limits_error("encoder", limits_of(said, {"W": 1, "H": 1}), {"W": Axis(256, 512, 768), "H": Axis(256, 512, 768)})
    assert "cannot tell which sizes of its axis W the module takes; give it one size, --axis W=512 (in a recipe" in str(error)
    assert limits_error("encoder", limits_of("no such operator", {"W": 1}), {"W": Axis(256, 512, 768)}) is None


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
        nn.utils.spectral_norm,
    ],
    ids=["weight", "spectral", "old weight", "old spectral"],
)
def test_norms_of_weights_are_folded(norm):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), norm(nn.Linear(4, 4))).eval()
    x = torch.randn(2, 3)
    with torch.no_grad():
        wanted = module(x)
    settle("g", module)
    with torch.no_grad():
        assert torch.allclose(module(x), wanted, atol=1e-6)  # one order of sums
    assert set(module.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert type(module[1]) is nn.Linear


def test_batch_norms_are_put_in_eval_mode_with_a_note(caplog: pytest.LogCaptureFixture):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    with caplog.at_level("INFO", "edgegen"):
        settle("g", module)
    assert not module[1].training
    assert "g: 1 put in eval mode" in caplog.text


def test_a_batch_norm_without_statistics_is_refused_by_name():
    with pytest.raises(CaptureError, match=r"g: 1 \(BatchNorm1d\) has no running statistics: .*track_running_stats"):
        settle("g", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)))


class Noisy(nn.Module):
    """Draws in every way that generators do."""

    def forward(self, x):
        image = x[:, :, None, None].expand(-1, -1, 4, 4)
        image = image + torch.randn(x.shape[0], 1, 4, 4)
        image = image + 2 * torch.randn([1, 1, 4, 4])
        image = image + 3 * torch.randn_like(image)
        image = image + torch.empty(x.shape[0], 1, 4, 4).normal_(0, 4)
        return image + torch.normal(1.0, 5.0, size=(x.shape[0], 3, 1, 1))


def test_noise_becomes_inputs_in_the_order_of_the_calls():
    inputs = (parse_spec("x float32[batch, 3]"),)
    module, noise = with_noise_inputs(Noisy(), inputs, AXES)
    assert [str(spec) for spec in noise] == [
        "noise.0 float32[batch, 1, 4, 4]",
        "noise.1 float32[1, 1, 4, 4]",
        "noise.2 float32[batch, 3, 4, 4]",
        "noise.3 float32[batch, 1, 4, 4]",
        "noise.4 float32[batch, 3, 1, 1]",
    ]
    given = [example(spec, AXES, seed) for seed, spec in enumerate((*inputs, *noise))]
    x, *drawn = given
    wanted = x[:, :, None, None] + drawn[0] + 2 * drawn[1] + 3 * drawn[2] + 4 * drawn[3] + 5 * drawn[4] + 1
    assert torch.allclose(module(*given), wanted, atol=1e-5)  # sums in another order
    part = Part(module, (*inputs, *noise), (parse_spec("y float32[batch, 3, 4, 4]"),))
    np.testing.assert_allclose(captured(part)(*given)[0], wanted.numpy(), atol=1e-5)


def test_declared_modules_get_their_noise_as_inputs_by_themselves():
    part = declared(Noisy(), ["x float32[batch, 3]"], ["y float32[batch, 3, 4, 4]"])
    assert [spec.name for spec in part.inputs] == ["x", *(f"noise.{index}" for index in range(5))]


def test_a_module_without_noise_is_left_as_it_is():
    module = nn.Linear(3, 4)
    assert with_noise_inputs(module, (parse_spec("x float32[batch, 3]"),), AXES) == (module, ())


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda x: x + torch.rand(4), "torch.rand draws numbers inside forward"),
        (lambda x: x + torch.empty(4).uniform_(), "uniform_ draws"),
        (lambda x: x + torch.randn(2 * x.shape[0], 4)[: x.shape[0]], r"noise.0 has 4 .* axis 0 where batch is 2, 8 where"),
    ],
)  # fmt: skip
def test_other_numbers_that_are_drawn_inside_are_refused(draw, said: str):
    class Draws(nn.Module):
        def forward(self, x):
            return draw(x)

    with pytest.raises(CaptureError, match=said):
        with_noise_inputs(Draws(), (parse_spec("x float32[batch, 4]"),), AXES)


def test_noise_that_was_not_moved_is_refused_when_it_is_captured():
    part = Part(Noisy(), (parse_spec("x float32[batch, 3]"),), (parse_spec("y float32[batch, 3, 4, 4]"),))
    with pytest.raises(CaptureError, match=r"g draws numbers inside the graph \(RandomNormal.*with_noise_inputs"):
        capture_part("g", part, AXES)


def test_an_input_that_was_not_declared_is_told_with_the_way_to_leave_it_out():
    class Labelled(nn.Module):
        def forward(self, z, c):
            return z

    with pytest.raises(CaptureError, match=r"missing 1 required positional argument: 'c'; give --input for each .* wrap the"):
        declared(Labelled(), ["z float32[batch, 3]"], ["y float32[batch, 3]"])
