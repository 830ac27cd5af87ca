"""ONNX Runtime reads weights where they are; what it cannot read there is copied, with the same result."""

import logging
import mmap

import numpy as np
import pytest

from edgegen.bundle import Bundle
from edgegen.errors import BackendError
from edgegen.graphs.walk import ExternalTensor
from edgegen.manifest import Variant
from edgegen.tensors import Axis, TensorSpec

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from edgegen.backends.ort.session import OrtSession

SUM = Variant(
    path="graphs/sum.onnx",
    weights=("graphs/w.bin",),
    inputs=(TensorSpec("x", "float32", ("row", 4)),),
    outputs=(TensorSpec("y", "float32", ("row", 4)),),
)
AXES = {"row": Axis(1, 1, 8)}
X = np.arange(8, dtype=np.float32).reshape(2, 4)
ROWS = 300
ONES = np.ones(ROWS * 4, np.float32).tobytes()


def model(*nodes, offset=0, dtype="FLOAT", length=None):
    """A graph from x [row, 4] and the external weight w [300, 4] to y [row, 4]."""
    helper, kind = onnx.helper, getattr(onnx.TensorProto, dtype)
    w = onnx.TensorProto(name="w", data_type=kind, dims=[ROWS, 4], data_location=onnx.TensorProto.EXTERNAL)
    size = length or ROWS * 4 * helper.tensor_dtype_to_np_dtype(kind).itemsize
    for key, value in {"location": "w.bin", "offset": offset, "length": size}.items():
        w.external_data.add(key=key, value=str(value))
    constants = [onnx.numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("i0", 0), ("i1", 1))]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["row", 4]) for name in "xy"]
    made = [helper.make_node(*node[:3], **node[3]) for node in nodes]
    graph = helper.make_graph(made, "g", values[:1], values[1:], [w, *constants])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return proto.SerializeToString(), ExternalTensor("w", None, (ROWS, 4), "w.bin", offset, size)


# y = x + w[0] at an index that nothing can fold: w is read by Gather, and no kernel packs it.
INDEX = [
    ("ReduceSum", ["x"], ["sum"], {"keepdims": 0}),
    ("Mul", ["sum", "sum"], ["square"], {}),
    ("Sub", ["square", "square"], ["zero"], {}),
    ("Cast", ["zero"], ["index"], {"to": 7}),
    ("Gather", ["w", "index"], ["w1"], {}),
    ("Cast", ["w1"], ["wf"], {"to": 1}),
    ("Add", ["x", "wf"], ["y"], {}),
]
# The same, but an optimizer can transpose w beforehand.
FOLDED = [
    ("Transpose", ["w"], ["t"], {}),
    ("Gather", ["t", "i0"], ["c"], {"axis": 1}),
    ("Transpose", ["c"], ["r"], {}),
    ("Add", ["x", "r"], ["y"], {}),
]


@pytest.fixture
def session(tmp_path):
    """Opens a model with `content` as its weights; a file with `in_folder` (the content if None) lies in the folder."""

    def open_it(data, tensor, content, dtype="float32", *, in_folder=None, folder=tmp_path):
        (tmp_path / "w.bin").write_bytes(content if in_folder is None else in_folder)
        described = [tensor._replace(dtype=dtype)]
        return OrtSession(data, {"w.bin": content}, SUM, AXES, threads=1, external=described, folder=folder)

    return open_it


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int32", "int64", "bool"])
@pytest.mark.parametrize("offset", [0, 64, 3])
def test_a_weight_of_any_dtype_and_offset_is_read_rightly(session, dtype, offset, caplog):
    name = {"float32": "FLOAT"}.get(dtype, dtype.upper())
    w = (np.arange(ROWS * 4) % 2 + 1).astype(dtype)
    with (
        caplog.at_level(logging.INFO, logger="edgegen"),
        session(*model(*INDEX, offset=offset, dtype=name), bytes(offset) + w.tobytes(), dtype) as opened,
    ):
        np.testing.assert_array_equal(opened.run({"x": X})["y"], X + w[:4])
    assert "copied" not in caplog.text


def test_weights_are_read_where_they_are(session):
    content = bytearray(ROWS * 16)
    with session(*model(*INDEX), memoryview(content)) as opened:
        content[:16] = np.full(4, 7, np.float32).tobytes()  # forbidden to everyone else: it shows where the session reads
        np.testing.assert_array_equal(opened.run({"x": X})["y"], X + 7)


def test_a_session_keeps_the_map_that_its_caller_let_go(session, tmp_path):
    (tmp_path / "w").write_bytes(ONES)
    with (tmp_path / "w").open("rb") as file:
        opened = session(*model(*INDEX), memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    (tmp_path / "w").unlink()
    np.testing.assert_array_equal(opened.run({"x": X})["y"], X + 1)
    opened.close()


def test_an_optimizer_may_fold_a_weight(session):
    w = np.arange(ROWS * 4, dtype=np.float32)
    with session(*model(*FOLDED), w.tobytes()) as opened:
        np.testing.assert_array_equal(opened.run({"x": X})["y"], X + w[:4])


@pytest.mark.parametrize("place", ["nowhere", None])
@pytest.mark.parametrize("graph", [INDEX, FOLDED])
def test_without_files_weights_are_copied(session, place, graph, monkeypatch, tmp_path):
    folder = place and tmp_path / place
    (tmp_path / "here").mkdir()
    (tmp_path / "here/w.bin").write_bytes(bytes(ROWS * 16))
    monkeypatch.chdir(tmp_path / "here")  # what lies here is not what was asked for
    with session(*model(*graph), ONES, folder=folder) as opened:
        np.testing.assert_array_equal(opened.run({"x": X})["y"], X + 1)


def test_a_file_that_was_cut_is_not_folded(session, caplog):
    with (
        caplog.at_level(logging.INFO, logger="edgegen"),
        session(*model(*FOLDED), ONES, in_folder=b"") as opened,
    ):
        np.testing.assert_array_equal(opened.run({"x": X})["y"], X + 1)
    assert "its weights are copied" in caplog.text


def test_a_dtype_that_numpy_lacks_is_copied(session):
    ones = np.full(ROWS * 4, 0x3F80, np.uint16)  # 1.0 in bfloat16
    data, tensor = model(
        ("Cast", ["w"], ["wf"], {"to": 1}),
        ("Gather", ["wf", "i0"], ["r"], {}),
        ("Add", ["x", "r"], ["y"], {}),
        dtype="BFLOAT16",
    )
    with session(data, tensor, ones.tobytes(), None) as opened:
        np.testing.assert_array_equal(opened.run({"x": X})["y"], X + 1)


def test_a_graph_that_onnxruntime_refuses_is_refused_in_one_line(session):
    data, tensor = model(("NoSuchOperator", ["x", "w"], ["y"], {}))
    with pytest.raises(BackendError, match=r"refuses graphs/sum\.onnx") as caught:
        session(data, tensor, bytes(ROWS * 16))
    assert "\n" not in str(caught.value)


def test_an_onnxruntime_that_is_too_old_to_copy_from_memory_is_named_with_its_cure(monkeypatch, tiny_bundle):
    from edgegen.backends.ort import create

    class Old(create.ort.SessionOptions):
        """The session options of onnxruntime 1.23."""

        @property
        def add_external_initializers_from_files_in_memory(self):
            raise AttributeError

    monkeypatch.setattr(create.ort, "SessionOptions", Old)
    with Bundle.open(tiny_bundle) as bundle:
        files = bundle.graph("decoder", "onnxruntime")
        with pytest.raises(BackendError, match=r"onnxruntime .* install 1\.24 or newer"):
            OrtSession(files.model, files.weights, files.variant, files.axes)
