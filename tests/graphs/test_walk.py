import time

import msgspec
import pytest
from bundles import DATA, manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegen.errors import BundleError
from edgegen.graphs import walk
from edgegen.manifest import Variant
from edgegen.tensors import TensorSpec

VARIANTS = manifest().graphs["decoder"].variants
SIZES = {"decoder.weights": 512}
TINY = Variant("graphs/tiny.onnx", (), (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))


def decoder(variant):
    return (DATA / VARIANTS[variant].path.rpartition("/")[2]).read_bytes()


@pytest.fixture(scope="module")
def onnx():
    return pytest.importorskip("onnx")


def build(onnx, *nodes, initializers=(), **fields):
    """A model from x to y around the given nodes."""
    value = onnx.helper.make_tensor_value_info
    x, y = (value(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy")
    nodes = nodes or [onnx.helper.make_node("Neg", ["x"], ["y"])]
    graph = onnx.helper.make_graph(list(nodes), "g", [x], [y], list(initializers))
    return onnx.helper.make_model(graph, ir_version=11, **fields)


def external(onnx, **entries):
    """A tensor of 4 floats in another file."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in ({"location": "w.bin", "offset": "0", "length": "16"} | entries).items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return tensor


def check(model, sizes=None, variant=TINY):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return walk.check(data, {"w.bin": 64} if sizes is None else sizes, variant)


def assert_refused(model, message):
    with pytest.raises(BundleError, match=message) as caught:
        check(model)
    assert str(caught.value).startswith("graphs/tiny.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["canonical", "onnxruntime"])
def test_the_graphs_that_edgegen_writes_pass(variant):
    walk.check(decoder(variant), SIZES, VARIANTS[variant])


def test_three_thousand_nodes_take_milliseconds(onnx):
    node = onnx.helper.make_node
    nodes = [
        node("GroupQueryAttention", [f"a{i}", f"b{i}"], [f"a{i + 1}"], domain="com.microsoft", num_heads=3) for i in range(3000)
    ]
    data = build(onnx, *nodes, doc_string="d" * 100_000).SerializeToString()
    check(data)
    start = time.process_time()
    check(data)
    # 20 to 40 ms on a slow core; the margin is for a busy machine.
    assert time.process_time() - start < 0.25


# Operators


def test_a_custom_operator_is_refused(onnx):
    for domain in ("com.acme", "ai.onnx.contrib", "com.microsoft.nchwc", "COM.MICROSOFT"):
        assert_refused(
            build(onnx, onnx.helper.make_node("Evil", ["x"], ["y"], domain=domain)), f"'Evil' of domain '{domain}'.*custom"
        )


def test_an_operator_of_onnxruntime_must_be_in_the_table(onnx):
    assert_refused(
        build(onnx, onnx.helper.make_node("Inverse", ["x"], ["y"], domain="com.microsoft")), "'Inverse'.*not allowed"
    )


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_an_ep_context_node_is_refused(onnx, domain):
    assert_refused(build(onnx, onnx.helper.make_node("EPContext", ["x"], ["y"], domain=domain)), "EPContext")


def branch(onnx, node):
    """A graph to stand in an attribute."""
    return onnx.helper.make_graph([node], "branch", [], [])


def test_nested_graphs_are_walked(onnx):
    evil = branch(onnx, onnx.helper.make_node("Evil", [], [], domain="com.acme"))
    assert_refused(build(onnx, onnx.helper.make_node("If", ["x"], ["y"], then_branch=evil)), "'Evil'")
    assert_refused(build(onnx, onnx.helper.make_node("If", ["x"], ["y"], branches=[evil])), "'Evil'")
    inner = onnx.helper.make_node("If", [], [], then_branch=evil)
    assert_refused(build(onnx, onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch(onnx, inner))), "'Evil'")


def test_functions_are_walked(onnx):
    helper = onnx.helper

    def function(domain, *nodes):
        return helper.make_function(domain, "f", ["x"], ["y"], nodes, [helper.make_opsetid("", 24)])

    evil = helper.make_node("Evil", ["x"], ["y"], domain="com.acme")
    assert_refused(build(onnx, functions=[function("", evil)]), "'Evil'")
    assert_refused(build(onnx, functions=[function("com.acme")]), "'f' of domain 'com.acme'")
    check(build(onnx, functions=[function("", helper.make_node("Neg", ["x"], ["y"]))]))


def test_graphs_nested_too_deep_are_refused(onnx):
    def nested(depth):
        node = onnx.helper.make_node("Neg", ["x"], ["y"])
        for _ in range(depth):
            node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch(onnx, node))
        return build(onnx, node)

    check(nested(walk.MAX_DEPTH))
    assert_refused(nested(walk.MAX_DEPTH + 1), "nested deeper than 16")


def test_training_graphs_and_sparse_tensors_are_refused(onnx):
    model = build(onnx)
    model.training_info.add()
    assert_refused(model, "field 20 in a model")
    model = build(onnx)
    model.graph.sparse_initializer.add()
    assert_refused(model, "field 15 in a graph")


# Tensors


def test_external_data_within_its_file_passes(onnx):
    check(build(onnx, initializers=[external(onnx)]))
    check(build(onnx, initializers=[external(onnx, offset="48", checksum="0")]))
    check(build(onnx, initializers=[external(onnx, offset=None, length=None)]))  # ONNX's defaults


def test_external_tensors_are_listed_with_their_places(onnx):
    tensors = [external(onnx, offset="16"), external(onnx, location="w.bin")]
    tensors[1].name, tensors[1].data_type = "v", onnx.TensorProto.INT4
    tensors[1].dims[:] = [8, 4]
    constant = onnx.helper.make_node("Constant", [], ["y"], value=external(onnx))
    assert check(build(onnx, constant, initializers=tensors)) == (
        (None, "float32", (4,), "w.bin", 0, 16),  # an attribute: no one can name it
        ("w", "float32", (4,), "w.bin", 16, 16),
        ("v", None, (8, 4), "w.bin", 0, 16),  # numpy has no integers of 4 bits
    )
    assert check(build(onnx)) == ()


def test_an_initializer_that_stands_twice_is_refused(onnx):
    inline = onnx.TensorProto(name="w", data_type=1, dims=[1], raw_data=bytes(4))
    assert_refused(build(onnx, initializers=[external(onnx), inline]), "the initializer 'w' stands twice")


def test_absurd_names_and_ranks_are_refused(onnx):
    data = build(onnx, initializers=[external(onnx)]).SerializeToString()
    assert_refused(data.replace(b"B\x01w", b"B\x01\xff"), "not UTF-8")
    assert_refused(build(onnx, initializers=[onnx.TensorProto(name="w", data_type=1, dims=[1] * 33)]), "33 axes")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "49"}, "out of range: bytes 49 to 65 of 'w.bin', which has 64"),
        ({"offset": str(2**63 - 8)}, "out of range"),
        ({"offset": "-16"}, "not an offset"),
        ({"offset": "9" * 5000}, "not an offset"),
        ({"offset": "1e3"}, "not an offset"),
        ({"length": "17"}, "17 bytes for a tensor of 16 bytes"),
        ({"length": "0"}, "0 bytes for a tensor of 16"),
        ({"location": "../w.bin"}, "'../w.bin', which is not one of"),
        ({"location": "./w.bin"}, "is not one of"),
        ({"location": "/etc/passwd"}, "is not one of"),
        ({"location": None}, "'', which is not one of"),
        # onnxruntime takes this one as an address in its own memory.
        ({"location": "*/_ORT_MEM_ADDR_/*"}, "is not one of"),
        ({"basepath": "/"}, "unknown or repeated key 'basepath'"),
    ],
)
def test_external_data_elsewhere_is_refused(onnx, entries, message):
    tensor = external(onnx, **entries)
    assert_refused(build(onnx, initializers=[tensor]), message)
    assert_refused(build(onnx, onnx.helper.make_node("Constant", [], ["y"], value=tensor)), message)


def test_a_key_that_stands_twice_is_refused(onnx):
    tensor = external(onnx)
    tensor.external_data.add(key="location", value="/etc/passwd")
    assert_refused(build(onnx, initializers=[tensor]), "repeated key 'location'")


@pytest.mark.parametrize("dims", [[1 << 50], [-1], [1 << 30, 1 << 30], [1 << 20, 1 << 20, 1 << 20]])
def test_absurd_axis_sizes_of_a_tensor_are_refused(onnx, dims):
    tensor = onnx.TensorProto(name="w", data_type=1, dims=dims)
    assert_refused(build(onnx, initializers=[tensor]), "absurd axis size")


def test_a_tensor_without_its_bytes_is_refused(onnx):
    assert_refused(build(onnx, initializers=[onnx.TensorProto(name="w", data_type=1, dims=[1 << 39])]), "elements lies in")
    assert_refused(
        build(onnx, initializers=[onnx.TensorProto(name="w", data_type=1, dims=[4], raw_data=bytes(15))]), "has 15 bytes"
    )
    assert_refused(
        build(onnx, initializers=[onnx.TensorProto(name="w", data_type=99, dims=[4], raw_data=bytes(16))]), "type 99"
    )


def test_every_dtype_that_onnx_packs_has_its_size(onnx):
    for dtype, bits in walk.ELEMENT_BITS.items():
        raw = bytes((5 * bits + 7) // 8)
        check(build(onnx, initializers=[onnx.TensorProto(name="w", data_type=dtype, dims=[5], raw_data=raw)]))
        if bits >= 8:
            assert onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize * 8 == bits


# Inputs and outputs


def test_other_inputs_and_outputs_than_the_manifest_says_are_refused(onnx):
    model = build(onnx)
    replace = msgspec.structs.replace
    for field, spec in (("inputs", TINY.inputs[0]), ("outputs", TINY.outputs[0])):
        for other in ((), (spec, replace(spec, name="z")), (replace(spec, dtype="int64"),)):
            with pytest.raises(BundleError, match=f"its {field} are not those of the manifest"):
                check(model, variant=replace(TINY, **{field: other}))


# The wire


MESSAGES = {
    "ModelProto": walk._MODEL,
    "GraphProto": walk._GRAPH,
    "NodeProto": walk._NODE,
    "AttributeProto": walk._ATTRIBUTE,
    "FunctionProto": walk._FUNCTION,
    "TensorProto": walk._TENSOR,
    "StringStringEntryProto": walk._ENTRY,
    "ValueInfoProto": walk._VALUE,
    "TypeProto": walk._TYPE,
    "TypeProto.Tensor": walk._TENSOR_TYPE,
}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_tables_agree_with_onnx_proto(onnx, name):
    found = onnx
    for part in name.split("."):
        found = getattr(found, part)
    # Wire types by protobuf's kinds: 1 double, 2 float, 3 int64, 4 uint64, 5 int32, 9 string, 11 message, 12 bytes, 14 enum.
    wires = {1: 1, 2: 5, 3: 0, 4: 0, 5: 0, 9: 2, 11: 2, 12: 2, 14: 0}
    fields = {found.number: found for found in found.DESCRIPTOR.fields}
    for tag, bits in MESSAGES[name].tags.items():
        described = fields[tag >> 3]
        packed = described.is_repeated and tag & 7 == 2
        assert packed or tag & 7 == wires[described.type], described.name
        assert (bits >> 1 == 0) == described.is_repeated, described.name


def field(number, wire, *body):
    return bytes([number << 3 | wire, *body])


def wrap(number, body):
    """A field with a length of two bytes."""
    return field(number, 2, len(body) & 0x7F | 0x80, len(body) >> 7) + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no graph"),
        (field(7, 2), "truncated"),
        (field(7, 2, 5, 1), "truncated model"),
        (field(7, 2, *[0xFF] * 9, 1), "truncated model"),
        (field(1, 0, *[0xFF] * 20), "overlong"),
        (field(1, 0), "overlong"),
        (field(1, 0, 11) * 2, "field 1 stands twice in a model"),
        (field(7, 0, 0), "mistyped field 7 in a model"),
        (field(7, 3), "mistyped field 7"),  # a group
        (field(7, 6), "mistyped field 7"),
        (field(0, 2, 0), "mistyped field 0"),
        (b"\xff" * 100, "overlong"),
        # Text to protobuf, a flatbuffer with native kernels' names to onnxruntime.
        (field(2, 2, 6) + b"\0\0ORTM", "onnxruntime's own format"),
        # data_location 2**32 + 1, which protobuf cuts to 1: external.
        (wrap(7, wrap(5, field(14, 0, 0x81, 0x80, 0x80, 0x80, 0x10))), "data location 4294967297"),
    ],
)
def test_bytes_that_readers_could_take_in_two_ways_are_refused(data, message):
    assert_refused(data, message)


def test_the_number_of_fields_is_bounded(monkeypatch):
    monkeypatch.setattr(walk, "MAX_FIELDS", 1000)
    assert_refused(field(8, 2, 0) * 1001, "more than 1000 fields")
    assert_refused(wrap(7, wrap(5, wrap(1, bytes([1]) * 2000))), "more than 1000 fields")


def test_a_file_too_large_to_be_a_graph_is_refused(monkeypatch):
    monkeypatch.setattr(walk, "MAX_MODEL_BYTES", 10)
    assert_refused(bytes(11), "keep weights external")


@settings(max_examples=3000, deadline=None, database=None)
@given(
    st.sampled_from(list(VARIANTS)),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255), st.booleans()), min_size=1, max_size=4),
)
def test_any_damage_is_refused_or_harmless(variant, edits):
    data = bytearray(decoder(variant))
    for anywhere, byte, insert in edits:
        place = anywhere % len(data)
        data[place : place + (not insert)] = [byte]
    try:
        walk.check(bytes(data), SIZES, VARIANTS[variant])
    except BundleError as error:
        refusal = str(error)
        assert "\n" not in refusal


@settings(max_examples=1000, deadline=None, database=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    with pytest.raises(BundleError):
        walk.check(data, SIZES, VARIANTS["canonical"])
