"""Bundles for tests of the planner, made without torch: a stack of convolutions, and devices of any size."""

import itertools
import json

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgegen.bundle import BundleWriter
from edgegen.devices.table import Device, PowerMode
from edgegen.manifest import Graph, Manifest, Source, Variant
from edgegen.tensors import Axis, TensorSpec

CHANNELS = 64
LAYERS = 3


def convolutions(path, *, channels=CHANNELS, layers=LAYERS, most=512):
    """An image to an image of the same size, by 3 x 3 convolutions with a shortcut round each of the inner ones."""
    widths = [3, *[channels] * layers, 3]
    generator = np.random.default_rng(0)
    constants, nodes, name = [], [], "image"
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        weights = (generator.standard_normal((after, before, 3, 3)) / 30).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"w{place}"))
        is_last = place == layers
        nodes.append(helper.make_node("Conv", [name, f"w{place}"], ["out" if is_last else f"c{place}"], pads=[1, 1, 1, 1]))
        if before == after and not is_last:
            nodes += [helper.make_node("Sigmoid", [f"c{place}"], [f"s{place}"])]
            nodes += [helper.make_node("Add", [f"s{place}", name], [f"a{place}"])]
        name = f"a{place}" if before == after else f"c{place}"
    axes = ["batch", 3, "height", "width"]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, axes) for end in ("image", "out")]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    specs = [TensorSpec(end, "float32", tuple(axes)) for end in ("image", "out")]
    sides = {side: Axis(8, 64, most, 8) for side in ("height", "width")}
    variant = Variant("graphs/translator.onnx", (), (specs[0],), (specs[1],))
    manifest = Manifest(
        format=1,
        name="convolutions",
        family="gan",
        precision="fp32",
        source=Source("test", "tests", "0" * 64, "CC0-1.0"),
        tools={},
        graphs={"translator": Graph({"canonical": variant}, {"batch": Axis(1, 1, 8), **sides})},
        settings={},
        proof="proof/proof.json",
        files={},
    )
    with BundleWriter(path) as writer:
        (writer.directory / "graphs").mkdir()
        (writer.directory / "graphs/translator.onnx").write_bytes(model.SerializeToString())
        (writer.directory / "proof").mkdir()
        (writer.directory / "proof/proof.json").write_text(json.dumps({}))
        return writer.publish(manifest)


MODE = PowerMode(name="default", watts=None, default=True, bandwidth_bytes_s=1e9, fp16_flops=1e12, int8_ops=4e12)
SLOW = msgspec.structs.replace(MODE, name="7W", default=False, bandwidth_bytes_s=5e8, fp16_flops=5e11, int8_ops=2e12)


def device(free_mib, *, kind="cpu", reserved_mib=100, unified=True):
    """A device with so many MiB free."""
    return Device(
        name="toy",
        title="a toy",
        kind=kind,
        sm=None if kind == "cpu" else 87,
        memory_bytes=(free_mib + reserved_mib) << 20,
        unified_memory=unified,
        bandwidth_bytes_s=MODE.bandwidth_bytes_s,
        fp16_flops=MODE.fp16_flops,
        int8_ops=MODE.int8_ops,
        fp8=False,
        fp4=False,
        modes=(MODE, SLOW),
        reserved_bytes=reserved_mib << 20,
        source="made up",
        confidence="low",
    )
