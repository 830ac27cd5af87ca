import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgegen.export.capture_module import capture_part
from edgegen.export.parts import Part
from edgegen.models import cvae, dcgan, stylegan2, unet
from edgegen.tensors import Axis, TensorSpec


def floats(name: str, *axes: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", axes)


Z = floats("z", "batch", 8)
CLASS = TensorSpec("class_ids", "int64", ("batch",))
STYLED = stylegan2.Synthesis(size=16, style=8, widths=(8, 8, 4))
PARTS = {
    "dcgan-28": (dcgan.Generator(latent=8, size=28, width=4), [Z], ["image"]),
    "dcgan-32-conditional": (
        dcgan.Generator(latent=8, size=32, width=4, classes=3),
        [Z, CLASS],
        ["image"],
    ),
    "dcgan-64": (dcgan.Generator(latent=8, size=64, channels=3, width=4), [Z], ["image"]),
    "cvae-encoder": (cvae.Encoder(latent=4, width=4), [floats("image", "batch", 1, 28, 28), CLASS], ["mean", "log_variance"]),
    "cvae-decoder": (cvae.Decoder(latent=4, width=4), [floats("latent", "batch", 4), CLASS], ["image"]),
    "mapping": (stylegan2.Mapping(latent=8), [Z], ["w"]),
    "synthesis": (
        STYLED,
        [
            floats("w", "batch", STYLED.layers, 8),
            *(floats(f"noise.{i}", "batch", 1, side, side) for i, side in enumerate(STYLED.noise_sides)),
        ],
        ["image"],
    ),
    "unet": (
        unet.ClassUNet(size=28, patch=2, widths=(8, 16), groups=4),
        [floats("sample", "batch", 1, 28, 28), floats("timestep", "batch"), CLASS],
        ["prediction"],
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_model_is_captured_and_onnxruntime_gives_its_answers_at_any_batch(name: str, tmp_path) -> None:
    module, inputs, names = PARTS[name]
    module.eval()
    given = [torch.randn([3 if axis == "batch" else axis for axis in spec.axes]) for spec in inputs]
    given = [torch.tensor([0, 2, 1]) if spec.dtype == "int64" else x for spec, x in zip(inputs, given, strict=True)]
    with torch.no_grad():
        expected = module(*given)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    outputs = [floats(n, "batch", *x.shape[1:]) for n, x in zip(names, expected, strict=True)]
    captured = capture_part(name, Part(module, tuple(inputs), tuple(outputs)), {"batch": Axis(1, 1, 8)})
    path = tmp_path / "model.onnx"
    ir.save(captured, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made = session.run(None, {spec.name: x.numpy() for spec, x in zip(inputs, given, strict=True)})
    for ours, theirs in zip(expected, made, strict=True):
        # Both sum in float32, in other orders.
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-4, atol=1e-4)


def test_a_modulated_convolution_is_one_with_scaled_weights() -> None:
    torch.manual_seed(0)
    layer = stylegan2.ModulatedConv(6, 5, 3, 4)
    x, w = torch.randn(2, 6, 8, 8), torch.randn(2, 4)
    made = layer(x, w)
    for i in range(2):  # as in the paper, equations 1 and 3: each image has weights of its own
        weight = layer.weight * layer.scale * layer.affine(w)[i][None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(made[i : i + 1], nn.functional.conv2d(x[i : i + 1], weight, padding=1))


def test_doubling_and_halving_keep_a_flat_image_flat_inside() -> None:
    layer = stylegan2.ModulatedConv(1, 1, 3, 4, double=True, plain=True)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.affine.weight.zero_()  # style 1
    made = layer(torch.ones(1, 1, 8, 8), torch.zeros(1, 4)) / layer.scale
    assert made.shape == (1, 1, 16, 16)
    # 9 taps over pixels of which a quarter is not zero, times the gain of 4.
    torch.testing.assert_close(made[:, :, 4:-4, 4:-4], torch.full((1, 1, 8, 8), 9.0))
    for kernel in (1, 3):
        half = stylegan2.EqualConv(1, 1, kernel, bias=False, halve=True)
        assert half(torch.ones(1, 1, 8, 8)).shape == (1, 1, 4, 4)


def test_the_discriminator_sees_how_various_a_batch_is() -> None:
    judge = stylegan2.Discriminator(size=16, widths=(8, 8, 4))
    x = torch.randn(8, 8, 4, 4)
    same = x[:1].expand(8, -1, -1, -1)
    assert judge._deviation(x).shape == (8, 1, 4, 4)
    assert float(judge._deviation(same).max()) < 1e-3
    assert float(judge._deviation(x).min()) > 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: dcgan.Generator(size=30),
        lambda: dcgan.Discriminator(size=7),
        lambda: stylegan2.Synthesis(size=64, widths=(8, 8)),
        lambda: stylegan2.Discriminator(size=64, widths=(8, 8)),
        lambda: unet.ClassUNet(size=30, patch=2, widths=(8, 8)),
    ],
)
def test_sizes_that_do_not_go_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"pixels"):
        make()
