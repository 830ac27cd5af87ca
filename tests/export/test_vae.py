"""Autoencoders from PyTorch to a proven bundle: the pipeline gives what PyTorch gives."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from edgegen.errors import ExportError
from edgegen.export.assemble import export_model
from edgegen.export.families.vae import build
from edgegen.export.parts import Modules, parse_spec
from edgegen.export.request import Request
from edgegen.pipelines.vae import drawn
from edgegen.proof import verify_bundle
from edgegen.runtime import load
from edgegen.tensors import Axis

BATCH = {"batch": Axis(1, 2, 4)}
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # float32 sums in another order
ONE_LEVEL = {"atol": 1.0}  # grey level: a float on the edge between two is rounded either way


class TinyVae(nn.Module):
    """A dense conditional VAE of 4x4 grey images, written as most are: encode and decode."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 16)
        self.moments = nn.Linear(16, 2 * 5)
        self.back = nn.Sequential(nn.Linear(5 + 16, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))

    def encode(self, image, class_ids):
        return self.moments(image.flatten(1) + self.embedding(class_ids)).chunk(2, dim=1)

    def decode(self, latent, class_ids):
        return self.back(torch.cat([latent, self.embedding(class_ids)], 1))


class Quantize(nn.Module):
    """A convolutional encoder whose places take the nearest of eight entries."""

    def __init__(self, codebook):
        super().__init__()
        self.conv, self.codebook = nn.Conv2d(3, 4, 2, stride=2), codebook

    def forward(self, image):
        rows = self.conv(image).permute(0, 2, 3, 1)
        distances = (
            rows.square().sum(-1, keepdim=True) - 2 * rows @ self.codebook.weight.T + self.codebook.weight.square().sum(1)
        )
        return distances.argmin(-1)


class Look(nn.Module):
    def __init__(self, codebook):
        super().__init__()
        self.codebook, self.conv = codebook, nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, codes):
        return self.conv(self.codebook(codes).permute(0, 3, 1, 2)).tanh()


def source(modules, inputs, axes=None, settings=None, outputs=None):
    torch.manual_seed(0)
    made = modules()
    modules = {name: module.eval() for name, module in (made if isinstance(made, dict) else {"": made}).items()}
    specs = {graph: tuple(map(parse_spec, listed)) for graph, listed in inputs.items()}
    given = {graph: tuple(map(parse_spec, listed)) for graph, listed in (outputs or {}).items()}
    return Modules("module", "tiny", "0" * 64, "CC0-1.0", modules, specs, given, BATCH | (axes or {}), settings or {})


def exported(source, path, precision="fp32"):
    request = Request(source, path, precision, "tiny")
    return export_model(request, build(source), lambda _stage, _share: None)


def pixels_of(image):
    return np.rint((image.permute(0, 2, 3, 1).numpy() + 1) * 127.5).clip(0, 255)


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def as_input(pixels):
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def test_a_module_with_encode_and_decode_becomes_two_graphs_that_give_what_pytorch_gives(tmp_path):
    inputs = {"encoder": ["image float32[batch, 1, 4, 4]", "class_ids int64[batch]"]}
    made = source(TinyVae, inputs, settings={"classes": 3})
    report = exported(made, tmp_path / "v.bundle")
    assert report.graphs == ("encoder", "decoder")
    assert [error.name for error in report.fidelity[0].errors] == ["mean", "log_variance", "latent", "image"]
    assert verify_bundle(str(tmp_path / "v.bundle")).passed
    vae, pixels, ids = made.modules[""], random_pixels(3, 4, 4, 1), torch.tensor([0, 2, 1])
    with load(tmp_path / "v.bundle") as pipeline, torch.no_grad():
        mean, log_variance = vae.encode(as_input(pixels), ids)
        posterior = pipeline.encode(pixels, class_ids=[0, 2, 1])
        np.testing.assert_allclose(posterior.mean, mean, **CLOSE)
        np.testing.assert_allclose(posterior.log_variance, log_variance, **CLOSE)
        wanted = pixels_of(vae.decode(mean, ids))
        np.testing.assert_allclose(pipeline.decode(mean.numpy(), class_ids=[0, 2, 1]).pixels, wanted, **ONE_LEVEL)
        np.testing.assert_allclose(pipeline.reconstruct(pixels, class_ids=[0, 2, 1]).pixels, wanted, **ONE_LEVEL)
        assert pipeline.generate(count=7, seed=1, class_ids=1).pixels.shape == (7, 4, 4, 1)


def test_half_precision_is_proven_in_both_variants(tmp_path):
    inputs = {"encoder": ["image float32[batch, 1, 4, 4]", "class_ids int64[batch]"]}
    report = exported(source(TinyVae, inputs, settings={"classes": 3}), tmp_path / "v.bundle", "fp16")
    assert {fidelity.variant for fidelity in report.fidelity} == {"canonical", "onnxruntime"}
    assert report.quality["image"] > 50  # dB: 11 bits of the weights


def test_a_vq_vae_is_proven_by_its_codes_and_their_image(tmp_path):
    def modules():
        codebook = nn.Embedding(8, 4)
        return {"encoder": Quantize(codebook), "decoder": Look(codebook)}

    made = source(modules, {"encoder": ["image float32[batch, 3, 8, 8]"]}, settings={"codes": 8})
    report = exported(made, tmp_path / "v.bundle")
    assert [error.name for error in report.fidelity[0].errors] == ["codes.agreement", "image"]
    pixels = random_pixels(2, 8, 8, 3)
    with load(tmp_path / "v.bundle") as pipeline, torch.no_grad():
        codes = made.modules["encoder"](as_input(pixels))
        np.testing.assert_array_equal(pipeline.encode(pixels), codes)
        assert pipeline.settings.scale == 2
        np.testing.assert_allclose(
            pipeline.decode(codes.numpy()).pixels, pixels_of(made.modules["decoder"](codes)), **ONE_LEVEL
        )


def test_a_decoder_alone_is_a_bundle_and_its_sides_stay_dynamic(tmp_path):
    def modules():
        return {"decoder": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh())}

    axes = {"h": Axis(2, 4, 12), "w": Axis(2, 4, 12)}
    made = source(modules, {"decoder": ["latent float32[batch, 4, h, w]"]}, axes, {"scaling_factor": 0.5})
    report = exported(made, tmp_path / "v.bundle")
    assert [error.name for error in report.fidelity[0].errors] == ["image"]
    latents = torch.randn(1, 4, 20, 12)
    with load(tmp_path / "v.bundle") as pipeline, torch.no_grad():
        assert pipeline.settings.scale == 2
        assert pipeline.generate(seed=0).pixels.shape == (1, 8, 8, 3)
        small = latents[:, :, :9]
        wanted = pixels_of(made.modules["decoder"](small / 0.5))
        np.testing.assert_allclose(pipeline.decode(small.numpy()).pixels, wanted, **ONE_LEVEL)
        # One step of the latent is all that the convolution sees: an overlap of 6 of them (12 pixels) keeps the edge out.
        wanted = pixels_of(made.modules["decoder"](latents / 0.5))
        tiled = pipeline.decode(latents.numpy(), overlap=12).pixels
        assert np.abs(tiled - wanted).max() <= 1


def test_a_plain_autoencoder_has_a_mean_and_no_spread(tmp_path):
    def modules():
        return {"encoder": nn.Conv2d(1, 2, 2, stride=2), "decoder": nn.ConvTranspose2d(2, 1, 2, stride=2)}

    made = source(modules, {"encoder": ["image float32[batch, 1, 4, 4]"]})
    report = exported(made, tmp_path / "v.bundle")
    assert [error.name for error in report.fidelity[0].errors] == ["mean", "image"]
    with load(tmp_path / "v.bundle") as pipeline:
        assert pipeline.encode(random_pixels(4, 4, 1)).log_variance is None


@pytest.mark.filterwarnings("ignore")
def test_diffusers_vq_model_is_taken_as_it_is(tmp_path):
    """Its AutoencoderKL is in test_diffusers_single.py."""
    diffusers = pytest.importorskip("diffusers")
    inputs = {"encoder": ["image float32[batch, 3, 16, 16]"]}
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "mid_block_add_attention": False,
    }
    vq = source(lambda: diffusers.VQModel(**blocks, num_vq_embeddings=16, vq_embed_dim=4), inputs)
    exported(vq, tmp_path / "vq.bundle")
    pixels = random_pixels(1, 16, 16, 3)
    with load(tmp_path / "vq.bundle") as pipeline, torch.no_grad():
        wanted = pixels_of(vq.modules[""](as_input(pixels)).sample)
        np.testing.assert_allclose(pipeline.reconstruct(pixels).pixels, wanted, **ONE_LEVEL)


def refused(*arguments, **options):
    with pytest.raises(ExportError) as caught:
        build(source(*arguments, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_vae_lacks_is_said_in_one_line():
    image = {"encoder": ["image float32[batch, 1, 4, 4]"]}
    assert "no methods encode and decode" in refused(lambda: nn.Linear(1, 1), image)
    assert "encoder and decoder, or decoder alone" in refused(lambda: {"encoder": nn.Identity()}, image)
    assert "say them in `inputs`" in refused(TinyVae, {})
    assert 'or with --input "encoder: image float32[batch, 3, 64, 64]"' in refused(TinyVae, {})
    assert "must give mean and log-variance" in refused(TinyVae, {"encoder": [*image["encoder"], "noise.0 float32[batch, 5]"]})
    assert "say how many there are" in refused(
        TinyVae, {"encoder": ["image float32[batch, 1, 4, 4]", "class_ids int64[batch]"]}
    )
    assert "does not run on image" in refused(TinyVae, image)
    assert "settings are not those" in refused(TinyVae, image, settings={"klasses": 3})
    both = {"encoder": nn.Conv2d(1, 2, 2), "decoder": nn.ConvTranspose2d(2, 1, 2)}
    assert "the axis side has no sizes" in refused(lambda: both, {"encoder": ["image float32[batch, 1, side, side]"]})
    assert "must be mean, log_variance or mean" in refused(
        lambda: both, image, outputs={"encoder": ["mu float32[batch, 2, 3, 3]"]}
    )
    assert "say its inputs" in refused(lambda: {"decoder": nn.Identity()}, {})
    codes = {"encoder": Quantize(nn.Embedding(8, 4)), "decoder": Look(nn.Embedding(8, 4))}
    assert "how many entries" in refused(lambda: codes, {"encoder": ["image float32[batch, 3, 8, 8]"]})
    flat = {"decoder": nn.Linear(4, 4)}
    assert "makes image [batch, channel, height, width]" in refused(lambda: flat, {"decoder": ["latent float32[batch, 4]"]})


def test_a_whole_vae_takes_its_input_without_the_name_of_a_graph():
    model = build(source(TinyVae, {"": ["image float32[batch, 1, 4, 4]", "class_ids int64[batch]"]}, settings={"classes": 3}))
    assert [spec.name for spec in model.parts["encoder"].inputs] == ["image", "class_ids"]


class GivesNormal(TinyVae):
    """What it encodes is a distribution, as PyTorch has them."""

    def encode(self, image, class_ids):
        mean, log_variance = super().encode(image, class_ids)
        return torch.distributions.Independent(torch.distributions.Normal(mean, (0.5 * log_variance).exp()), 1)


def test_a_normal_distribution_is_its_mean_and_log_variance(tmp_path):
    inputs = {"": ["image float32[batch, 1, 4, 4]", "class_ids int64[batch]"]}
    made = source(GivesNormal, inputs, settings={"classes": 3})
    exported(made, tmp_path / "v.bundle")
    pixels, ids = random_pixels(2, 4, 4, 1), torch.tensor([0, 2])
    with load(tmp_path / "v.bundle") as pipeline, torch.no_grad():
        _, log_variance = TinyVae.encode(made.modules[""], as_input(pixels), ids)
        np.testing.assert_allclose(pipeline.encode(pixels, class_ids=[0, 2]).log_variance, log_variance, **CLOSE)
    assert torch.distributions.Distribution._validate_args


def test_more_classes_or_codes_than_the_tables_hold_are_refused():
    image = {"encoder": ["image float32[batch, 1, 4, 4]", "class_ids int64[batch]"]}
    said = refused(TinyVae, image, settings={"classes": 4})
    assert "encoder does not take 3 in class_ids, and by the setting classes it must" in said
    assert "--setting classes=N" in said
    codes = {"encoder": Quantize(nn.Embedding(8, 4)), "decoder": Look(nn.Embedding(8, 4))}
    said = refused(lambda: codes, {"encoder": ["image float32[batch, 3, 8, 8]"]}, settings={"codes": 9})
    assert "decoder does not take 8 in codes" in said


def test_named_sides_go_through_to_the_latent_and_back_to_the_image():
    def modules():
        return {"encoder": nn.Conv2d(3, 4, 4, 4), "decoder": nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(4, 3, 1))}

    axes = {"height": Axis(16, 32, 64), "width": Axis(16, 16, 64)}
    model = build(source(modules, {"encoder": ["image float32[batch, 3, height, width]"]}, axes))
    latent, image = model.parts["decoder"].inputs[0], model.parts["decoder"].outputs[0]
    assert str(latent) == "latent float32[batch, 4, latent_height, latent_width]"
    assert [model.axes[name] for name in latent.axes[2:]] == [Axis(4, 8, 16), Axis(4, 4, 16)]
    assert [model.axes[name] for name in image.axes[2:]] == list(axes.values())
    assert model.settings.scale == 4


def test_the_latent_of_the_proof_is_drawn_as_the_pipeline_draws_it():
    made = build(
        source(TinyVae, {"encoder": ["image float32[batch, 1, 4, 4]", "class_ids int64[batch]"]}, settings={"classes": 3})
    )
    inputs, outputs = made.reference()
    np.testing.assert_array_equal(outputs["latent"], drawn(outputs["mean"], outputs["log_variance"], inputs["noise"]))
    assert inputs["image"].min() >= -1
    assert inputs["class_ids"].tolist() == [0, 1]
