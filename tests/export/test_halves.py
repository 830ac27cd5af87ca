"""float16 for modules of one's own: what computes in it, what is stored in it, and what stays float32."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx
import onnxruntime
from torch import nn
from torch.nn import functional as F

from edgegen.bundle import Bundle
from edgegen.export.capture_module import capture_part
from edgegen.export.halves import compute_in_half, store_in_half
from edgegen.export.parts import Part, example, parse_spec
from edgegen.export.prepare import round_weights
from edgegen.export.write import write_variants
from edgegen.tensors import Axis

AXES = {"batch": Axis(1, 2, 4)}


class Everything(nn.Module):
    """One of each operator that image models are made of, with timesteps whose angles float16 cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.labels, self.start = nn.Embedding(10, 16), nn.Linear(16, 64)
        self.conv, self.batch, self.group = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.instance, self.up = nn.InstanceNorm2d(8, affine=True), nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.layer, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.batch.running_mean += torch.randn(8)
            self.batch.running_var += 3 * torch.rand(8)

    def forward(self, z: torch.Tensor, label: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = self.start(z + self.labels(label)).reshape(-1, 4, 4, 4)
        x = F.interpolate(self.batch(self.conv(x)), scale_factor=2, mode="bilinear")
        x = self.up(self.instance(self.group(x)))
        q = self.layer(x.flatten(2).transpose(1, 2))
        q = q + self.attention(q, q, q, need_weights=False)[0]
        angles = timestep[:, None] * torch.exp(-torch.arange(4).float())
        q = q + torch.cat([angles.sin(), angles.cos()], -1)[:, None]
        x = q.transpose(1, 2).reshape(-1, 8, 16, 16)
        x = x * torch.rsqrt((1e4 * x).square().mean(1, keepdim=True) + 1e-8) * 1e4  # float16 squares would overflow
        return torch.tanh(self.out(x))


def part_of(module: nn.Module, inputs: list[str], output: str) -> Part:
    return Part(module.eval(), tuple(map(parse_spec, inputs)), (parse_spec(output),))


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """The float32 graph, both float16 variants, what to feed, and PyTorch's answer."""
    part = part_of(
        Everything(), ["z float32[batch, 16]", "label int64[batch]", "timestep float32[batch]"], "y float32[batch, 3, 16, 16]"
    )
    round_weights(part.module)
    feed = [torch.randn(2, 16), torch.tensor([3, 9]), torch.tensor([999.0, 7.0])]
    with torch.no_grad():
        wanted = part.module(*feed).numpy()
    graph = capture_part("g", part, AXES)
    canonical, ort = graph.clone(), graph.clone()
    compute_in_half(canonical.graph, {"z", "timestep", "y"})
    store_in_half(ort.graph)
    folder = tmp_path_factory.mktemp("halves")
    write_variants({"canonical": canonical, "onnxruntime": ort}, "g", folder)
    return folder / "graphs", dict(zip(("z", "label", "timestep"), (t.numpy() for t in feed), strict=True)), wanted


@pytest.mark.parametrize(
    ("file", "allowed"),
    # float16 rounds to 11 bits after every operator (about 5e-4 each); stored in float16, only the order of sums differs, and
    # the angle 999 in float32 is known to 6e-5.
    [("g.onnx", 2e-2), ("g.onnxruntime.onnx", 1e-4)],
)
def test_both_variants_compute_what_pytorch_computes(halves, file, allowed):
    graphs, feed, wanted = halves
    session = onnxruntime.InferenceSession(str(graphs / file), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, feed)[0], wanted, atol=allowed)


def test_matrix_products_are_float16_and_angles_are_not(halves):
    model = onnx.shape_inference.infer_shapes(onnx.load(halves[0] / "g.onnx"), strict_mode=True, check_type=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    found = {node.op_type: types[node.output[0]] for node in model.graph.node}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for operator in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "LayerNormalization", "Resize"):
        assert found[operator] == half, operator
    for operator in ("Sin", "Cos", "ReduceMean"):
        assert found[operator] == single, operator


def test_the_casts_of_the_stored_variant_are_folded_at_load(halves, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(halves[0] / "g.onnxruntime.onnx"), options, providers=["CPUExecutionProvider"])
    stored = onnx.load(halves[0] / "g.onnxruntime.onnx", load_external_data=False)
    assert sum(node.op_type == "Cast" for node in stored.graph.node) > 5
    left = [node.input[0] for node in onnx.load(tmp_path / "folded.onnx").graph.node if node.op_type == "Cast"]
    assert [name for name in left if name.endswith("::half")] == []


def test_every_weight_is_stored_once_in_two_bytes(halves):
    stored = onnx.load(halves[0] / "g.onnxruntime.onnx", load_external_data=False)
    large = [t for t in stored.graph.initializer if np.prod(t.dims) >= 64]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-torch.arange(128) / 16.0))
        self.out = nn.Linear(256, 4)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angles = t[:, None] * self.frequencies
        return self.out(torch.cat([angles.sin(), angles.cos()], -1))


def test_a_table_of_frequencies_keeps_its_numbers():
    part = part_of(Table(), ["t float32[batch]"], "y float32[batch, 4]")
    before = part.module.frequencies.clone()
    round_weights(part.module)
    assert torch.equal(before, part.module.frequencies)
    model = capture_part("g", part, AXES)
    store_in_half(model.graph)
    assert not any(str(name).startswith("frequencies::half") for name in model.graph.initializers)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_a_resize_by_a_given_size_becomes_float16(mode, tmp_path):
    module = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Upsample((7, 5), mode=mode))
    part = part_of(module, ["x float32[batch, 2, 4, 4]"], "y float32[batch, 2, 7, 5]")
    x = example(part.inputs[0], AXES)
    with torch.no_grad():
        wanted = module(x).numpy()
    model = capture_part("g", part, AXES)
    compute_in_half(model.graph, {"x", "y"})
    write_variants({"canonical": model}, "g", tmp_path)
    got = onnxruntime.InferenceSession(str(tmp_path / "graphs" / "g.onnx")).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, wanted, atol=1e-2)  # a few roundings to 11 bits of numbers below 4


def test_a_generator_is_exported_in_float16_and_proven(tmp_path: Path):
    from edgegen.export import export

    recipe = tmp_path / "tiny.py"
    recipe.write_text(
        "import torch\nfrom torch import nn\nfrom edgegen.export.recipe import Recipe\n"
        "def make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(16, 64), nn.Unflatten(1, (4, 4, 4)), nn.Upsample(scale_factor=2),\n"
        "        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh())\n"
        "RECIPE = Recipe('tiny', 'gan', modules=make, inputs={'generator': ('z float32[batch, 16]',)},\n"
        "    outputs={'generator': ('image float32[batch, 3, 8, 8]',)}, axes={'batch': (1, 1, 16)}, precision='fp16')\n"
    )
    report = export(str(recipe), tmp_path / "tiny.bundle")
    assert {fidelity.variant: fidelity.arithmetic for fidelity in report.fidelity} == {
        "canonical": "float16",
        "onnxruntime": "float32",
    }
    assert 50 < report.quality["image"] < 120  # dB: rounded weights are near the original ones, and not the same
    with Bundle.open(tmp_path / "tiny.bundle") as bundle:
        assert bundle.manifest.precision == "fp16"
    # On a CPU it runs what float32 runs: batch norms are fused into the convolutions, casts are folded.
    export(str(recipe), tmp_path / "wide.bundle", precision="fp32")
    wide = optimized(tmp_path / "wide.bundle" / "graphs" / "generator.onnx", tmp_path)
    assert optimized(tmp_path / "tiny.bundle" / "graphs" / "generator.onnxruntime.onnx", tmp_path) == wide


MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        up, down = nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.Conv2d(8, 3, 3, padding=1)
        self.net = nn.Sequential(up, nn.BatchNorm2d(8), nn.ReLU(), down, nn.BatchNorm2d(3))
        for norm in (self.net[1], self.net[4]):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 4)
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)

    def forward(self, z):
        x = z.view(-1, 4, 4, 4)
        return self.net(x) if {whole} else self.net(x) + self.net[0](x)[:, :3]

def make():
    return Net()
"""


@pytest.mark.parametrize(("whole", "products"), [(True, 0), (False, 2)])
def test_batch_norms_are_part_of_the_layers_before_them_where_that_is_the_same(whole, products, tmp_path, monkeypatch):
    from edgegen.export import export

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"net_{products}.py").write_text(MODULE.replace("{whole}", str(whole)))
    said = {"inputs": ["z float32[batch, 64]"], "outputs": ["image float32[batch, 3, 8, 8]"]}
    report = export(f"net_{products}:make", tmp_path / "g.bundle", family="gan", precision="fp16", **said)
    assert report.quality["image"] > 50  # dB: rounding alone; a norm that is folded where it may not be costs all of it
    nodes = onnx.load(tmp_path / "g.bundle" / "graphs" / "generator.onnx", load_external_data=False).graph.node
    assert [node.op_type for node in nodes].count("Mul") == products


def optimized(path: Path, folder: Path) -> list[str]:
    """The operators that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node]
