"""The gan family from PyTorch to pixels: exported, proven, loaded, and the same as PyTorch."""

import pytest

torch = pytest.importorskip("torch")

from fractions import Fraction

import msgspec
import numpy as np
from torch import nn

import edgegen
from edgegen.errors import ExportError, InputError
from edgegen.export.families import gan
from edgegen.export.families.gan_styles import MEAN_COUNT
from edgegen.export.parts import Modules
from edgegen.export.receptive import receptive_field
from edgegen.export.request import Request
from edgegen.pipelines.gan_options import GanSettings
from edgegen.pipelines.images import normal
from edgegen.proof import verify_bundle
from edgegen.tensors import Axis, TensorSpec

Z, W, LAYERS, CLASSES = 8, 12, 4, 3
SIDES = (4, 4, 8, 8)
GREY = 1  # levels: float32 sums in another order may carry a pixel over the edge between two greys


class Mapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.of_z, self.of_class = nn.Linear(Z, W), nn.Embedding(CLASSES, W)

    def forward(self, z, class_ids):
        return torch.tanh(self.of_z(z) + self.of_class(class_ids))


class Synthesis(nn.Module):
    """A constant, four modulated convolutions with noise, one doubling; it keeps fixed noise as StyleGAN2 does."""

    def __init__(self):
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.styles = nn.ModuleList(nn.Linear(W, 6) for _ in range(LAYERS))
        self.convolutions = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(LAYERS))
        self.to_image = nn.Conv2d(6, 3, 1)
        for layer, side in enumerate(SIDES):
            self.register_buffer(f"noise_{layer}", torch.randn(1, 1, side, side))

    def forward(self, w, *noise):
        x = self.constant.expand(w.shape[0], -1, -1, -1)
        for layer in range(LAYERS):
            if layer == 2:
                x = nn.functional.interpolate(x, scale_factor=2)
            scaled = x * (1 + 3 * self.styles[layer](w[:, layer]))[:, :, None, None]
            x = nn.functional.leaky_relu(self.convolutions[layer](scaled) + 0.3 * noise[layer], 0.2)
        return torch.tanh(3 * self.to_image(x))


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.of_class, self.grow = nn.Embedding(CLASSES, Z), nn.Linear(Z, 3 * 8 * 8)

    def forward(self, z, class_ids):
        return torch.tanh(self.grow(z * self.of_class(class_ids))).unflatten(1, (3, 8, 8))


def upscaler():
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1))


def source_of(modules, inputs, axes=(), settings=(), outputs=()):
    specs = {name: tuple(TensorSpec(*spec) for spec in listed) for name, listed in inputs.items()}
    named = {name: module.eval() for name, module in modules.items()}
    return Modules("module", "tiny", "0" * 64, "MIT", named, specs, dict(outputs), dict(axes), dict(settings))


def styled_source(**settings):
    torch.manual_seed(0)
    inputs = {
        "mapping": [("z", "float32", ("batch", Z)), ("class_ids", "int64", ("batch",))],
        "synthesis": [
            ("w", "float32", ("batch", LAYERS, W)),
            *((f"noise.{layer}", "float32", ("batch", 1, side, side)) for layer, side in enumerate(SIDES)),
        ],
    }
    modules = {"mapping": Mapping(), "synthesis": Synthesis()}
    return source_of(modules, inputs, {"batch": Axis(1, 1, 4)}, {"classes": CLASSES} | settings)


def translator_source(**settings):
    torch.manual_seed(0)
    inputs = {"": [("image", "float32", ("batch", 3, "height", "width"))]}
    axes = {"batch": Axis(1, 1, 2), "height": Axis(8, 64, 96), "width": Axis(8, 64, 96)}
    return source_of({"": upscaler()}, inputs, axes, settings)


def export(source, path, precision="fp32"):
    return gan.export(Request(source, path, precision, "tiny"), lambda *_: None)


@pytest.fixture(scope="module")
def styled(tmp_path_factory):
    source = styled_source()
    path = tmp_path_factory.mktemp("styled") / "a.bundle"
    report = export(source, path)
    return source, path, report


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    source = translator_source()
    path = tmp_path_factory.mktemp("translator") / "a.bundle"
    return source, path, export(source, path)


def to_pixels(image):
    return GanSettings().pixels.to_uint8(image.detach().numpy())


def assert_same(got, wanted):
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).max() <= GREY
    assert len(np.unique(wanted)) > 20  # a picture, not a plain


def test_styles_are_proven_in_every_case(styled):
    _, path, report = styled
    names = [error.name for error in report.fidelity[0].errors]
    assert names == ["w", "w.other", "image", "image.truncated", "image.mixed", "image.zero_noise", "image.fixed_noise"]
    assert verify_bundle(str(path)).passed
    assert max(error.largest for error in report.fidelity[0].errors) < 1e-5  # four small layers in float32; measured 2e-7


def test_styles_are_those_of_pytorch(styled):
    source, path, _ = styled
    mapping, synthesis = source.modules["mapping"], source.modules["synthesis"]
    ids = torch.tensor([1, 2, 0])
    w = mapping(torch.from_numpy(normal([5, 6, 7], [Z])), ids)[:, None].repeat(1, LAYERS, 1)
    other = mapping(torch.from_numpy(normal([9], [Z])), ids[:1])[:, None].repeat(1, LAYERS, 1)
    fixed = [buffer.expand(3, -1, -1, -1) for name, buffer in synthesis.named_buffers()]
    drawn = [torch.from_numpy(normal([5, 6, 7], [1, side, side], stream=layer + 1)) for layer, side in enumerate(SIDES)]
    with edgegen.load(path) as model, torch.no_grad():
        options = {"count": 3, "seed": 5, "class_ids": ids.tolist()}
        assert_same(model.generate(**options).pixels, to_pixels(synthesis(w, *fixed)))
        assert_same(model.generate(**options, noise="seeded").pixels, to_pixels(synthesis(w, *drawn)))
        zero = [torch.zeros_like(noise) for noise in fixed]
        assert_same(model.generate(**options, noise="zero").pixels, to_pixels(synthesis(w, *zero)))
        mean = torch.tensor(model.settings.mean_w)
        pulled = torch.cat([mean + 0.5 * (w[:, :2] - mean), w[:, 2:]], dim=1)
        assert_same(model.generate(**options, psi=0.5, cutoff=2).pixels, to_pixels(synthesis(pulled, *fixed)))
        mixed = torch.cat([w[:1, :3], other[:, 3:]], dim=1)
        made = model.generate(seed=5, class_ids=1, mix=(9, 3)).pixels
        assert_same(made, to_pixels(synthesis(mixed, *(noise[:1] for noise in fixed))))


def test_the_mean_latent_is_that_of_many_z_and_survives_a_strict_manifest(styled):
    source, path, _ = styled
    z = torch.from_numpy(np.random.default_rng(1).standard_normal((200_000, Z), np.float32))
    with torch.no_grad():
        w = source.modules["mapping"](z, torch.arange(len(z)) % CLASSES)
    with edgegen.load(path) as model:
        settings = model.settings
    assert settings.mean_count == MEAN_COUNT
    # w lies in -1..1 with a deviation below 0.7: the mean of 10,000 is off by 0.007; six times that never happens.
    np.testing.assert_allclose(settings.mean_w, w.mean(dim=0).numpy(), atol=0.04)
    assert np.abs(settings.mean_w).max() > 0.1
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(settings) | {"mean": 1}, GanSettings)


def test_interpolation_starts_and_ends_at_the_seeds(styled):
    _, path, _ = styled
    with edgegen.load(path) as model:
        path_of_images = model.interpolate(1, 2, 6, class_ids=0, psi=0.8).pixels
        assert_same(path_of_images[:1], model.generate(seed=1, class_ids=0, psi=0.8).pixels)
        assert_same(path_of_images[-1:], model.generate(seed=2, class_ids=0, psi=0.8).pixels)


def test_a_class_conditional_generator_in_half_precision_answers_as_pytorch(tmp_path):
    torch.manual_seed(1)
    inputs = {"": [("z", "float32", ("batch", Z)), ("class_ids", "int64", ("batch",))]}
    source = source_of({"": Conditional()}, inputs, {"batch": Axis(1, 1, 4)}, {"classes": CLASSES})
    report = export(source, tmp_path / "a.bundle", "fp16")
    assert {fidelity.failure for fidelity in report.fidelity} == {None}
    z = torch.from_numpy(normal([3, 4, 5, 6, 7], [Z]))
    with edgegen.load(tmp_path / "a.bundle") as model, torch.no_grad():
        made = model.generate(count=5, seed=3, class_ids=[0, 1, 2, 0, 1]).pixels
        wanted = source.modules[""](z, torch.tensor([0, 1, 2, 0, 1]))  # its weights were rounded by the export
        assert_same(made, to_pixels(wanted))
        np.testing.assert_array_equal(model.generate(seed=5, class_ids=2).pixels, made[2:3])
        with pytest.raises(InputError, match="3 classes"):
            model.generate(class_ids=3)


def test_a_generator_may_take_noise_beside_its_latents(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.grow = nn.Linear(Z, 3 * 8 * 8)
            self.register_buffer("noise_const", torch.randn(8, 8))

        def forward(self, z, noise):
            return torch.tanh(self.grow(z).unflatten(1, (3, 8, 8)) + noise)

    torch.manual_seed(2)
    inputs = {"": [Z_SPEC, ("noise.0", "float32", ("batch", 1, 8, 8))]}
    source = source_of({"": Noisy()}, inputs, {"batch": Axis(1, 1, 4)})
    report = export(source, tmp_path / "a.bundle")
    assert [error.name for error in report.fidelity[0].errors] == ["image", "image.zero_noise", "image.fixed_noise"]
    module, z = source.modules[""], torch.from_numpy(normal([3, 4], [Z]))
    with edgegen.load(tmp_path / "a.bundle") as model:
        assert_same(model.generate(count=2, seed=3).pixels, to_pixels(module(z, module.noise_const)))
        drawn = torch.from_numpy(normal([3, 4], [1, 8, 8], stream=1))
        assert_same(model.generate(count=2, seed=3, noise="seeded").pixels, to_pixels(module(z, drawn)))
        with pytest.raises(InputError, match="psi needs the graphs"):
            model.generate(psi=0.5)


def test_a_translator_is_proven_whole_and_in_tiles_and_joins_what_is_too_large(translator):
    source, path, report = translator
    assert [error.name for error in report.fidelity[0].errors] == ["image_out", "image_out.tiled"]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 150, 97, 3), np.uint8)
    with edgegen.load(path) as model:
        assert model.settings.scale == (2, 1)
        assert model.settings.receptive_field == 3  # two pixels before the doubling, one after it, which is a half
        settings = model.settings.pixels
        with torch.no_grad():
            wanted = to_pixels(source.modules[""](torch.from_numpy(settings.from_uint8(pixels))))
        made = model.translate(pixels)
        assert made.parameters["tiles"] == "2 x 2"
        assert_same(made.pixels, wanted)
        assert_same(model.translate(pixels, tile=40).pixels, wanted)
        assert model.translate(pixels[:, :3, :5]).pixels.shape == (1, 6, 10, 3)


@pytest.mark.parametrize(
    ("module", "scale", "multiple", "radius"),
    [
        (nn.Conv2d(3, 3, 7, padding=3), Fraction(1), 1, 3),
        (nn.Conv2d(3, 3, 1), Fraction(1), 1, 0),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 5, padding=4, dilation=2)), Fraction(1), 1, 5),
        (nn.Sequential(nn.Conv2d(3, 3, 4, 2, 1), nn.ConvTranspose2d(3, 3, 4, 2, 1)), Fraction(1), 2, 3),
        (nn.Conv2d(3, 3, 2, 2), Fraction(1, 2), 2, 0),
        (nn.InstanceNorm2d(3), Fraction(1), 1, None),
    ],
)
def test_the_receptive_field_is_what_the_kernels_say(module, scale, multiple, radius):
    assert receptive_field(module, torch.rand(1, 3, 40, 32), scale, multiple) == radius


def test_a_network_that_sees_the_whole_image_is_proven_in_one_piece(tmp_path):
    source = translator_source()
    source.modules[""].append(nn.InstanceNorm2d(3))
    report = export(source, tmp_path / "a.bundle")
    assert [error.name for error in report.fidelity[0].errors] == ["image_out"]
    with edgegen.load(tmp_path / "a.bundle") as model:
        assert model.settings.receptive_field is None


@pytest.mark.parametrize("halvings", [1, 2])
def test_what_sides_must_be_multiples_of_is_found(halvings):
    down = [nn.Conv2d(3, 3, 4, 2, 1) for _ in range(halvings)]
    network = nn.Sequential(*down, *(nn.ConvTranspose2d(3, 3, 4, 2, 1) for _ in range(halvings)))
    axes = {"height": Axis(8, 64, 96), "width": Axis(8, 64, 96)}
    settings = gan.build(source_of({"": network}, {"": [IMAGE_SPEC]}, axes)).settings
    assert settings.multiple == 2**halvings
    assert settings.scale == (1, 1)


Z_SPEC, CLASS_SPEC = ("z", "float32", ("batch", Z)), ("class_ids", "int64", ("batch",))
IMAGE_SPEC = ("image", "float32", ("batch", 3, "height", "width"))
SIDES_OF_8 = {"height": Axis(8, 8, 8), "width": Axis(8, 8, 8)}


@pytest.mark.parametrize(
    ("modules", "inputs", "rest", "said"),
    [
        ({"decoder": Conditional()}, {}, {}, "a GAN has generator, or mapping and synthesis, or translator"),
        ({"": Conditional()}, {}, {}, "generator takes nothing"),
        ({"": nn.Linear(Z, 3)}, {"": [Z_SPEC, ("noise.1", "float32", ("batch", 1))]}, {}, r"noise\.0, noise\.1"),
        (
            {"": nn.Linear(Z, 3)},
            {"": [Z_SPEC, ("noise.0", "float32", (1, 1))]},
            {},
            "same for all images; it must begin with the axis batch",
        ),
        (
            {"": upscaler()},
            {"": [IMAGE_SPEC, ("noise.0", "float32", ("batch", 1))]},
            {"axes": SIDES_OF_8},
            "translator draws noise",
        ),
        ({"": Conditional()}, {"": [("x", "float32", ("batch", Z))]}, {}, "z first: --input"),
        ({"": Conditional()}, {"": [Z_SPEC, ("label", "int64", ("batch",))]}, {}, "there can be class_ids and noise"),
        ({"": Conditional()}, {"": [Z_SPEC, CLASS_SPEC]}, {}, "takes class_ids, and settings say 0 classes"),
        ({"": nn.Linear(Z, 3)}, {"": [Z_SPEC]}, {"settings": {"classes": 3}}, "takes no class_ids"),
        ({"": nn.Linear(Z, 3)}, {"": [Z_SPEC]}, {"settings": {"klasses": 3}}, "unknown field `klasses`"),
        ({"": nn.Linear(Z + 1, 3)}, {"": [Z_SPEC]}, {}, r"Linear does not take \[2, 8\]"),
        ({"": nn.LSTM(Z, 3)}, {"": [Z_SPEC]}, {}, "gives a tuple; it must give one tensor"),
        (
            {"": nn.Linear(Z, 3)},
            {"": [("z", "float32", ("batch", "length"))]},
            {"axes": SIDES_OF_8},
            "nothing bounds the axis length",
        ),
        ({"": upscaler()}, {"": [IMAGE_SPEC]}, {}, "nothing bounds the axis height"),
        ({"": nn.MaxPool2d((1, 2))}, {"": [IMAGE_SPEC]}, {"axes": SIDES_OF_8}, "both sides must grow alike"),
    ],
)
def test_what_is_no_gan_says_what_is_missing(modules, inputs, rest, said):
    with pytest.raises(ExportError, match=said) as caught:
        gan.build(source_of(modules, inputs, **rest))
    assert "\n" not in str(caught.value)


def test_fixed_noise_that_does_not_fit_its_inputs_is_told():
    source = styled_source()
    source.modules["synthesis"].noise_2 = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ExportError, match="keeps fixed noise"):
        gan.build(source)


def test_more_classes_than_the_embedding_holds_are_refused():
    inputs = {"": [("z", "float32", ("batch", Z)), ("class_ids", "int64", ("batch",))]}
    with pytest.raises(ExportError, match=rf"generator does not take {CLASSES} in class_ids.*--setting classes=N"):
        gan.build(source_of({"": Conditional()}, inputs, settings={"classes": CLASSES + 1}))


def test_a_picture_under_another_name_is_told_to_be_called_image():
    inputs = {"": [("input", "float32", ("batch", 3, 32, 32))]}
    with pytest.raises(ExportError, match=r"image first: --input \"translator: image float32\[batch, 3, height, width\]\""):
        gan.build(source_of({"": upscaler()}, inputs))
    column = {"": [("noise", "float32", ("batch", Z, 1, 1))]}  # as DCGAN takes it
    with pytest.raises(ExportError, match="z first"):
        gan.build(source_of({"": nn.ConvTranspose2d(Z, 3, 8)}, column))
