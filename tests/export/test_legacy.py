"""The variant for TensorRT 10.3 and 10.13: the same numbers, operators that those parsers read, engines of the real library."""

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx_ir as ir
from own_modules import source_of
from simulated_tensorrt import simulate
from tiny_models import ARCHITECTURES, make_tiny, tiny_config
from torch import nn

from edgegen.backends.ort.session import OrtSession
from edgegen.backends.trt.build import BuildOptions, build_engine
from edgegen.backends.trt.flavours import flavour_of
from edgegen.bundle import Bundle
from edgegen.errors import ExportError, UnknownNameError
from edgegen.export import export
from edgegen.export.families import diffusion, gan, vae
from edgegen.export.lower_legacy import RELEASES, to_legacy
from edgegen.export.parts import parse_spec
from edgegen.export.request import CUDA, LEGACY, Request
from edgegen.export.tensorrt_operators import require_readable, table
from edgegen.kv_cache import KVCache
from edgegen.models.unet import ClassUNet
from edgegen.proof import verify_bundle
from edgegen.proof.tensors import replay
from edgegen.tensors import Axis

NEW = {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter", "GroupNormalization", "Gelu", "Swish"}
# Shares of the largest logit. fp32: sums in another order, twice through three layers. fp16: both graphs round after every
# operator, at different places; each is held to 3e-2 of PyTorch by its proof.
ALIKE = {"fp32": 2e-5, "fp16": 2e-2, "int8": 2e-2, "int4": 2e-2}
CASES = [
    *((name, "fp32") for name in sorted(ARCHITECTURES)),
    ("llama", "fp16"),
    ("qwen2", "int8"),
    ("llama_untied", "int4"),
    ("gemma3", "int4"),
    ("gpt2", "int4"),
]
BATCH = {"batch": Axis(1, 2, 4)}
PROMPT, STEPS, SECOND = [5, 9, 40, 3, 7, 120, 44, 9, 200, 17, 6], [31, 8, 250], [12, 90, 4, 77]


def legacy_of(bundle, architecture):
    """What the canonical graph of a bundle becomes, with the files that it still reads."""
    config = tiny_config(architecture)
    with Bundle.open(bundle) as opened:
        files = opened.graph("decoder", "canonical")
    model = ir.load(bundle / files.variant.path)
    to_legacy(model, "decoder", config.num_attention_heads)
    ir.external_data.load_to_model(model)
    content = ir.serde.serialize_model(model).SerializeToString()
    return model, dataclasses.replace(files, model=content, weights={}, external=())


def opened(files):
    # Unfused integer weights are folded at load: the graphs are compared, not the kernels of the CPU.
    config = {"session.disable_quant_qdq": "1"}
    return OrtSession(
        files.model, files.weights, files.variant, files.axes, external=files.external, folder=files.folder, config=config
    )


def answers(session):
    """Logits of a prefill, of steps behind it and of a second prefill on the filled cache; and one layer's keys."""
    with KVCache(session, 64, 64) as cache:
        found = [cache.append_all(PROMPT).copy()]
        found += [cache.append([token])[None].copy() for token in STEPS]
        found.append(cache.append_all(SECOND).copy())
        return np.concatenate(found), cache.read("past_key_values.1.key")


@pytest.mark.parametrize(("architecture", "precision"), CASES)
def test_a_legacy_decoder_computes_what_the_canonical_one_computes(exported, architecture, precision):
    bundle = exported(architecture, precision)[1]
    model, files = legacy_of(bundle, architecture)
    assert not NEW & {node.op_type for node in model.graph}
    for release in RELEASES:
        require_readable(model, release, "decoder")
    with Bundle.open(bundle) as whole, opened(whole.graph("decoder", "canonical")) as session:
        wanted, keys = answers(session)
    with opened(files) as session:
        got, legacy_keys = answers(session)
    assert np.abs(got - wanted).max() <= ALIKE[precision] * np.abs(wanted).max()
    assert np.abs(legacy_keys - keys).max() <= ALIKE[precision] * np.abs(keys).max()
    assert np.abs(keys[:, :, : len(PROMPT)]).max() > 0  # something was kept


@pytest.mark.parametrize(
    ("architecture", "precision", "capability"),
    [(name, precision, 89 if precision == "fp32" else 86) for name, precision in CASES],
)
def test_tensorrt_rtx_builds_a_legacy_decoder(exported, architecture, precision, capability):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _, files = legacy_of(exported(architecture, precision)[1], architecture)
    engine = build_engine(flavour_of("tensorrt-rtx"), files, BuildOptions((capability,), prefill=32))
    assert engine.startswith(b"vtrt")  # RTX's mark


@pytest.fixture(scope="module")
def with_legacy(tmp_path_factory):
    root = tmp_path_factory.mktemp("legacy")
    make_tiny("llama", root / "checkpoint")
    bundle = root / "int4.bundle"
    return bundle, export(str(root / "checkpoint"), bundle, precision="int4", limit=50.0, variants=[LEGACY, CUDA, LEGACY])


def test_the_variant_is_proven_with_the_others_and_stands_in_the_manifest(with_legacy):
    bundle, report = with_legacy
    assert {fidelity.variant for fidelity in report.fidelity} >= {LEGACY, CUDA, "canonical", "onnxruntime"}
    assert verify_bundle(str(bundle)).passed
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    variants = manifest["graphs"]["decoder"]["variants"]
    assert set(variants) == {"canonical", "onnxruntime", LEGACY, CUDA}
    for same in ("inputs", "outputs", "state"):  # the pipeline feeds it unchanged
        assert variants[LEGACY][same] == variants["canonical"][same]
    assert "float16: those releases read 4 bits only in a product" in (bundle / "card.md").read_text()


def test_int4_stays_packed_where_it_feeds_a_product_in_blocks_along_the_first_axis(with_legacy):
    model = ir.load(with_legacy[0] / f"graphs/decoder.{LEGACY}.onnx")
    assert model.opset_imports == {"": 21}
    matrices = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(matrices) == 2 * 7 + 1
    for node in matrices:
        assert node.attributes["axis"].as_int() == 0
        assert node.inputs[0].dtype == ir.DataType.INT4
        assert [use.node.op_type for use in node.outputs[0].uses()] == ["MatMul"]
    assert not any(node.op_type == "Transpose" and node.inputs[0].producer() in matrices for node in model.graph)


@pytest.mark.parametrize("release", RELEASES)
def test_a_simulated_old_tensorrt_takes_the_variant_and_its_proof_passes(with_legacy, release, monkeypatch):
    simulate(release).install(monkeypatch)
    report = verify_bundle(str(with_legacy[0]), "tensorrt")
    assert report.passed
    assert (report.backend, report.fidelity.variant) == ("tensorrt", LEGACY)


def test_an_unknown_variant_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(UnknownNameError, match="tensorrt-legacy"):
        export("nowhere", tmp_path / "b", variants=["tensorrt-8"])


# ------------------------------------------------------------------------------------------------ images


class Generator(nn.Module):
    """What the others lack: batch norms, and activations that are operators of their own since opset 18 and 20."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, 64), nn.Unflatten(1, (4, 4, 4)), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 1), nn.Mish(),
            nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z):
        return self.net(z)


def gan_source():
    return dataclasses.replace(source_of(Generator()), inputs={"": (parse_spec("z float32[batch, 16]"),)}, axes=BATCH)


def vae_source():
    decoder = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.GELU("tanh"), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 1)
    )
    inputs = {"decoder": (parse_spec("latent float32[batch, 4, h, w]"),)}
    axes = BATCH | {"h": Axis(2, 4, 12), "w": Axis(2, 4, 12)}
    return dataclasses.replace(source_of(decoder=decoder), inputs=inputs, axes=axes)


def diffusion_source():
    names = "sample float32[batch, 1, 8, 8]", "timestep float32[batch]", "class_ids int64[batch]"
    schedule = {"kind": "linear", "prediction": "noise", "clip": 1.0, "beta_start": 0.0001, "beta_end": 0.02}
    return dataclasses.replace(
        source_of(denoiser=ClassUNet(size=8, widths=(8, 16), groups=4, classes=3)),
        inputs={"denoiser": tuple(map(parse_spec, names))},
        axes=BATCH,
        settings={"schedule": schedule, "stepper": "ddpm", "steps": 6, "classes": 3, "null_class": 3},
    )


@pytest.fixture(
    scope="module",
    params=[
        (gan, gan_source, "fp16"),
        (vae, vae_source, "fp32"),
        (diffusion, diffusion_source, "fp16"),
    ],
    ids=["gan fp16", "vae fp32", "diffusion fp16"],
)
def image_bundle(request, tmp_path_factory):
    family, source, precision = request.param
    path = tmp_path_factory.mktemp("images") / "a.bundle"
    torch.manual_seed(0)
    asked = Request(source(), path, precision, "tiny", variants=(LEGACY,))
    return path, precision, family.export(asked, lambda *_: None)


def test_image_families_are_proven_in_the_legacy_variant(image_bundle):
    path, precision, report = image_bundle
    found = {fidelity.variant: fidelity for fidelity in report.fidelity}
    assert found[LEGACY].arithmetic == found["canonical"].arithmetic
    if precision == "fp32":
        assert found[LEGACY].worst.largest < 1e-4  # float32 sums in another order
    with Bundle.open(path) as bundle:
        assert replay(bundle, "onnxruntime", LEGACY).passed


def test_weights_are_stored_once_where_both_variants_have_the_same(image_bundle):
    path, _, report = image_bundle
    names = {file.name for file in (path / "graphs").iterdir()}
    assert not names & {f"{graph}.{variant}.weights" for graph in report.graphs for variant in (LEGACY, "canonical")}


def test_image_graphs_hold_no_operator_that_tensorrt_10_3_lacks_and_build(image_bundle):
    path, _, report = image_bundle
    for graph in report.graphs:
        with Bundle.open(path) as bundle:
            files = bundle.graph(graph, LEGACY)
        model = ir.load(path / files.variant.path)
        assert model.opset_imports == {"": 20}
        assert not NEW & {node.op_type for node in model.graph}
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        assert build_engine(flavour_of("tensorrt-rtx"), files, BuildOptions((86,))).startswith(b"vtrt")


# ------------------------------------------------------------------------------------------------ the table


def test_every_row_names_an_operator_of_onnx_and_a_source():
    import onnx

    versions: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            versions.setdefault(schema.name, set()).add(schema.since_version)
    for name, row in table().operators.items():
        assert set(row.versions.values()) <= versions[name], name
        assert row.sources, name
        assert set(row.sources) <= table().sources.keys(), name
        assert row.versions.keys() <= table().releases.keys(), name


def test_a_later_release_reads_what_an_earlier_one_reads():
    for name, row in table().operators.items():
        versions = [row.versions.get(release, 0) for release in ("10.3", "10.13", "10.16", "11.4")]
        assert versions == sorted(versions), name


def test_the_rows_of_tensorrt_rtx_are_what_its_parser_says():
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    parser = trt.OnnxParser(builder.create_network(0), trt.Logger(trt.Logger.ERROR))
    for name, row in table().operators.items():
        assert parser.supports_operator(name) == ("rtx-1.7" in row.versions), name


def test_the_four_new_operators_are_read_by_neither_of_the_old_releases():
    for name in ("Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"):
        assert table().operators[name].versions.keys() == {"10.16", "11.4", "rtx-1.7"}


def graph_of(node, opset, *types):
    """A model of one node, its inputs of these types and shape [1, 4, 6]."""
    for value, dtype in zip(node.inputs, types, strict=True):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape([1, 4, 6])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(types[0])
    graph = ir.Graph(node.inputs, node.outputs, nodes=[node], opset_imports={"": opset}, name="g")
    return ir.Model(graph, ir_version=11)


def test_what_no_old_release_reads_is_refused_by_graph_node_operator_and_cure():
    node = ir.node("BitShift", [ir.Value(name=name) for name in "ab"], {"direction": "LEFT"}, name="blocks.3.shift")
    with pytest.raises(
        ExportError, match=r"denoiser: BitShift \(blocks\.3\.shift\) is not read by TensorRT 10\.3.*without the variant"
    ):
        to_legacy(graph_of(node, 22, *[ir.DataType.UINT8] * 2), "denoiser")


def test_scatters_that_10_3_reads_wrongly_are_refused():
    node = ir.node("ScatterND", [ir.Value(name=name) for name in "xiu"], name="paste")
    with pytest.raises(ExportError, match="version 18"):
        to_legacy(graph_of(node, 22, ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.FLOAT), "denoiser")


def test_an_attribute_that_an_older_opset_lacks_is_dropped_only_where_it_says_the_default():
    for value, fits in ((0, True), (2, False)):
        node = ir.node("Cast", [ir.Value(name="x")], {"to": ir.DataType.FLOAT16, "round_mode": "up" if value == 0 else "down"})
        model = graph_of(node, 24, ir.DataType.FLOAT)
        if fits:
            to_legacy(model, "g")
            assert "round_mode" not in node.attributes
        else:
            with pytest.raises(ExportError, match="round_mode"):
                to_legacy(model, "g")
