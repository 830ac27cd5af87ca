"""An ONNX file as a source: what TensorFlow's converters write, and what a stranger may."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx
from onnx import TensorProto, helper, numpy_helper

import edgegen
from edgegen.bundle import Bundle
from edgegen.errors import EdgegenError, InputError, SourceError
from edgegen.export import export
from edgegen.export.sources import onnx as source
from edgegen.export.sources import open_source

FLOAT = TensorProto.FLOAT


def weight(name: str, *shape: int) -> onnx.TensorProto:
    numbers = np.random.default_rng(len(name)).standard_normal(shape) * 0.3
    return numpy_helper.from_array(numbers.astype(np.float32), name)


def info(name: str, shape: list, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def save(path: Path, nodes, inputs, outputs, weights=(), opset: int = 13, domains=()) -> Path:
    graph = helper.make_graph(nodes, "tf", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=7), path)
    return path


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """As tf2onnx writes a Keras generator: names with colons, an unknown batch, channels last."""
    nodes = [
        helper.make_node("MatMul", ["latent:0", "w"], ["dense"]),
        helper.make_node("Add", ["dense", "bias"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["small"]),
        helper.make_node("Conv", ["small", "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["features", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Tanh", ["large"], ["pixels"]),
        helper.make_node("Transpose", ["pixels"], ["image_nhwc"], perm=[0, 2, 3, 1]),
    ]
    weights = [
        weight("w", 16, 64),
        weight("bias", 64),
        weight("kernel", 3, 4, 3, 3),
        numpy_helper.from_array(np.array([-1, 4, 4, 4]), "shape"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
    ]
    return save(
        tmp_path / "keras.onnx", nodes, [info("latent:0", ["unk", 16])], [info("image_nhwc", ["unk", 8, 8, 3])], weights
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_keras_generator_becomes_a_proven_bundle(generator: Path, tmp_path: Path, precision: str):
    report = export(str(generator), tmp_path / "g.bundle", family="gan", precision=precision)
    assert all(fidelity.failure is None for fidelity in report.fidelity)
    assert ("image" in report.quality) == (precision == "fp16")
    with Bundle.open(tmp_path / "g.bundle") as bundle:
        variant = bundle.manifest.graphs["generator"].variants["canonical"]
        assert [str(spec) for spec in (*variant.inputs, *variant.outputs)] == [
            "z float32[batch, 16]",
            "image float32[batch, 3, 8, 8]",
        ]
        assert bundle.manifest.source.kind == "onnx"
    written = onnx.load(tmp_path / "g.bundle" / "graphs" / "generator.onnx")
    assert [entry.version for entry in written.opset_import] == [23]
    with edgegen.load(tmp_path / "g.bundle") as gan:
        assert gan.generate(count=2, seed=1).pixels.shape == (2, 8, 8, 3)


def test_the_proof_says_that_its_reference_is_the_original_file(generator: Path, tmp_path: Path):
    report = export(str(generator), tmp_path / "g.bundle", family="gan")
    assert "not PyTorch" in report.fidelity[0].tolerance.reason
    assert "original ONNX file in onnxruntime" in (tmp_path / "g.bundle" / "card.md").read_text()
    assert "not PyTorch" in (tmp_path / "g.bundle" / "proof" / "proof.json").read_text()


@pytest.mark.parametrize("family", ["gan", "vae"])
def test_sizes_that_the_file_does_not_know_are_found_by_running_it(tmp_path: Path, family: str):
    """As PyTorch's exporter writes them after a view(-1, ...): names of its own, even the batch's in another place."""
    weights = [weight("w", 16, 48), numpy_helper.from_array(np.array([-1, 3, 4, 4]), "shape")]
    nodes = [helper.make_node("MatMul", ["z", "w"], ["dense"]), helper.make_node("Reshape", ["dense", "shape"], ["out"])]
    path = save(tmp_path / "t.onnx", nodes, [info("z", ["b", 16])], [info("out", ["b", 3, "b", "Tanhout_dim_3"])], weights)
    export(str(path), tmp_path / "t.bundle", family=family)
    with Bundle.open(tmp_path / "t.bundle") as bundle:
        (graph,) = bundle.manifest.graphs.values()
        assert str(graph.variants["canonical"].outputs[0]) == "image float32[batch, 3, 4, 4]"


def test_the_user_names_tensors_and_bounds_axes(generator: Path, tmp_path: Path):
    options = {"inputs": ["z float32[batch, 16]"], "outputs": ["image float32[batch, 3, 8, 8]"], "axes": ["batch=2..2..2"]}
    export(str(generator), tmp_path / "g.bundle", family="gan", **options)
    with Bundle.open(tmp_path / "g.bundle") as bundle:
        assert bundle.manifest.graphs["generator"].axes["batch"].max == 2


RECIPE = """from pathlib import Path
from edgegen.export.recipe import Recipe

RECIPE = Recipe(
    name="mine",
    family="gan",
    source=lambda: Path({source!r}),
    inputs={{"": ("z float32[images, 16]",)}},
    axes={{"images": (1, 2, 4)}},
    settings={{"pixels": {{"black": 0, "white": 1}}}},
)
"""


def test_a_recipe_declares_what_a_file_takes_and_the_user_has_the_last_word(generator: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text(RECIPE.format(source=str(generator)))
    export(str(tmp_path / "mine.py"), tmp_path / "g.bundle", axes=["images=1..2..3"])
    with Bundle.open(tmp_path / "g.bundle") as bundle:
        graph = bundle.manifest.graphs["generator"]
        assert (bundle.manifest.name, graph.axes["images"].max) == ("mine", 3)
        assert bundle.manifest.settings["pixels"] == {"black": 0, "white": 1}
        assert str(graph.variants["canonical"].inputs[0]) == "z float32[images, 16]"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": ["z float32[batch, 17]"]}, r"has the inputs latent float32\[batch, 16\]; declared were z"),
        ({"inputs": ["encoder: z float32[batch, 16]"]}, "no graph 'encoder'"),
        ({"checkpoint": Path(__file__)}, "holds its weights itself"),
        ({"limit": 1.0}, r"limit \(--limit\) is for language models; .* of the family gan"),
        ({"context_length": 5}, r"context_length \(--context-length\) is for language models"),
        ({"family": None}, "give --family, one of"),
    ],
)
def test_what_does_not_fit_the_file_is_told(generator: Path, tmp_path: Path, options: dict, said: str):
    with pytest.raises(EdgegenError, match=said) as caught:
        export(str(generator), tmp_path / "g.bundle", **({"family": "gan"} | options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "g.bundle").exists()


def test_a_pickle_beside_a_file_is_told_that_the_file_holds_its_weights(generator: Path, tmp_path: Path):
    (tmp_path / "g.pt").touch()
    with pytest.raises(SourceError, match="holds its weights itself"):
        open_source(str(generator), tmp_path / "g.pt")


def test_an_image_to_image_model_with_channels_last_on_both_sides(tmp_path: Path):
    nodes = [
        helper.make_node("Transpose", ["photo"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["c"], ["result"], perm=[0, 2, 3, 1]),
    ]
    shape = ["n", "height", "width", 3]
    path = save(tmp_path / "t.onnx", nodes, [info("photo", shape)], [info("result", shape)], [weight("kernel", 3, 3, 3, 3)])
    with pytest.raises(InputError, match="how large the axis height may be; give --axis height="):
        export(str(path), tmp_path / "t.bundle", family="gan")
    axes = ["height=8..16..32", "width=8..16..32"]
    report = export(str(path), tmp_path / "t.bundle", family="gan", axes=axes)
    assert report.graphs == ("translator",)
    with Bundle.open(tmp_path / "t.bundle") as bundle:
        (spec,) = bundle.manifest.graphs["translator"].variants["canonical"].inputs
        assert str(spec) == "image float32[batch, 3, height, width]"


def test_the_reference_runs_the_file_and_the_graph_gives_the_same(generator: Path):
    import onnx_ir
    import onnxruntime

    opened = open_source(str(generator))
    module = opened.modules[""]
    z = torch.randn(3, 16)
    session = onnxruntime.InferenceSession(onnx_ir.serde.serialize_model(module.graph()).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"latent": z.numpy()})[0], module(z).numpy(), atol=1e-6)  # one order of sums


def test_rounded_weights_are_float16_and_tables_are_not(generator: Path):
    module = open_source(str(generator)).modules[""]
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in module._original.graph.initializer}
    module.round_weights()
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in module._original.graph.initializer}
    assert not np.array_equal(before["w"], after["w"])
    assert np.array_equal(after["w"], after["w"].astype(np.float16))
    assert np.array_equal(before["bias"], after["bias"])  # an Add reads it: it may be a table of angles


def relu(**changes) -> dict:
    node = helper.make_node("Relu", ["x"], ["y"])
    return {"nodes": [node], "inputs": [info("x", ["n", 4])], "outputs": [info("y", ["n", 4])]} | changes


def test_custom_operators_are_refused_by_name(tmp_path: Path):
    node = helper.make_node("Evil", ["x"], ["y"], domain="com.example")
    path = save(tmp_path / "m.onnx", **relu(nodes=[node], domains=["com.example"]))
    with pytest.raises(SourceError, match=r"outside the ONNX standard: com\.example\.Evil"):
        open_source(str(path))


def test_a_custom_operator_inside_a_branch_is_found(tmp_path: Path):
    branch = helper.make_graph([helper.make_node("Evil", [], ["b"], domain="com.example")], "b", [], [info("b", ["n", 4])])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    made = relu(nodes=[node], inputs=[info("flag", [], TensorProto.BOOL)], domains=["com.example"])
    with pytest.raises(SourceError, match=r"com\.example\.Evil"):
        open_source(str(save(tmp_path / "m.onnx", **made)))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "missing.bin", ""])
def test_external_data_outside_the_folder_are_not_read(tmp_path: Path, location: str):
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    tensor = weight("k", 4, 4)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    node = helper.make_node("MatMul", ["x", "k"], ["y"])
    graph = helper.make_graph([node], "g", [info("x", ["n", 4])], [info("y", ["n", 4])], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    (tmp_path / "inner" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="which is no file in its folder"):
        open_source(str(tmp_path / "inner" / "m.onnx"))


def test_external_data_beside_the_file_are_read_and_digested(generator: Path, tmp_path: Path):
    folder = tmp_path / "apart"
    folder.mkdir()
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 100}  # the shape stays in the file
    onnx.save(onnx.load(generator), folder / "m.onnx", **options)
    opened = open_source(str(folder / "m.onnx"))
    z = torch.randn(1, 16)
    assert torch.equal(opened.modules[""](z), open_source(str(generator)).modules[""](z))
    (folder / "weights.bin").write_bytes(bytes((folder / "weights.bin").stat().st_size))
    assert open_source(str(folder / "m.onnx")).sha256 != opened.sha256


def test_a_file_that_is_too_large_is_not_read(generator: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "_MAX_BYTES", 100)
    with pytest.raises(SourceError, match="an ONNX source may have 100"):
        open_source(str(generator))


def test_a_damaged_file_is_one_line_wherever_it_is_cut(generator: Path, tmp_path: Path):
    raw = generator.read_bytes()
    cut = tmp_path / "cut.onnx"
    for size in range(1, len(raw) - 1, len(raw) // 23):
        cut.write_bytes(raw[:size])
        with pytest.raises(SourceError) as caught:
            open_source(str(cut))
        assert "\n" not in str(caught.value)


def test_numbers_of_another_kind_are_refused(tmp_path: Path):
    double = TensorProto.DOUBLE
    path = save(tmp_path / "m.onnx", **relu(inputs=[info("x", ["n", 4], double)], outputs=[info("y", ["n", 4], double)]))
    with pytest.raises(SourceError, match="x is DOUBLE; tensors that go in or out are float32"):
        open_source(str(path))


def test_an_opset_of_the_future_is_refused_without_the_words_of_a_library(tmp_path: Path):
    path = save(tmp_path / "m.onnx", **relu(opset=99))
    with pytest.raises(SourceError, match=r"is of opset 99; those up to \d+ are read: export it with an opset of 23"):
        open_source(str(path))
    onnx.save(onnx.ModelProto(), path)
    with pytest.raises(SourceError, match="names no opset"):
        open_source(str(path))


def test_what_onnxruntime_says_is_told_without_its_status_and_sources():
    said = (
        "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model_load_utils.h:46 "
        "void onnxruntime::ValidateOpsetForDomain(const int&) ONNX Runtime only guarantees support for models of opset 26"
    )
    assert source._line(RuntimeError(said)) == "ONNX Runtime only guarantees support for models of opset 26"


def test_an_opset_that_cannot_be_converted_names_it(generator: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("No Adapter From Version $13 for Resize")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(SourceError, match=r"\(opset 13\) cannot be brought to opset 23: .* for Resize"):
        open_source(str(generator))


def test_a_module_around_an_onnx_file_is_told_that_it_has_no_code(generator: Path):
    from edgegen.errors import CaptureError
    from edgegen.export.capture_module import capture_part
    from edgegen.export.parts import Part, parse_spec
    from edgegen.tensors import Axis

    around = torch.nn.Sequential(open_source(str(generator)).modules[""], torch.nn.Tanh())
    part = Part(around, (parse_spec("z float32[batch, 16]"),), (parse_spec("y float32[batch, 3, 8, 8]"),))
    with pytest.raises(CaptureError, match="is an ONNX file; it cannot be part of a PyTorch module"):
        capture_part("g", part, {"batch": Axis(1, 2, 4)})
