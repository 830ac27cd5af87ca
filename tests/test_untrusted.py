"""Bundles from a stranger: each attack is one clear line, never a traceback, a hang or gigabytes of memory."""

import contextlib
import gzip
import hashlib
import json
import os
import tarfile
import tracemalloc

import pytest
from bundles import make_bundle
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgegen.bundle import Bundle, pack
from edgegen.errors import BundleError, EdgegenError
from edgegen.manifest import MAX_MANIFEST_BYTES, decode


def edit(bundle, change):
    """Change the manifest of `bundle` as JSON."""
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def relist(bundle, name):
    """Make the manifest agree with what now lies at `name`: the attacker knows SHA-256 too."""
    data = (bundle / name).read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def assert_refused(place, message):
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(place)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# Files


@pytest.mark.parametrize("size_bytes", [500, 0])
def test_a_truncated_file_is_refused(tiny_bundle, size_bytes):
    os.truncate(tiny_bundle / "graphs/decoder.weights", size_bytes)
    assert_refused(tiny_bundle, rf"decoder\.weights has {size_bytes} bytes, the manifest says 512")


@pytest.mark.parametrize(
    "name", ["graphs/decoder.weights", "graphs/decoder.onnx", "tokenizer/tokenizer.json", "proof/proof.json"]
)
def test_one_flipped_bit_is_refused(tiny_bundle, name):
    data = bytearray((tiny_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny_bundle / name).write_bytes(data)
    refusal = rf"{name} is damaged: its SHA-256 is not the manifest's"
    with Bundle.open(tiny_bundle) as opened:
        with pytest.raises(BundleError, match=refusal):
            opened.verify_all()
        with pytest.raises(BundleError, match=refusal):
            opened.read(name)
        if name.startswith("graphs/"):
            with pytest.raises(BundleError, match=refusal):
                opened.graph("decoder", "canonical")
    with pytest.raises(BundleError, match=refusal):
        pack(tiny_bundle, tiny_bundle.with_suffix(".tar"))
    assert not tiny_bundle.with_suffix(".tar").exists()


@pytest.mark.parametrize("name", ["manifest.json", "graphs/decoder.weights", "card.md"])
def test_a_missing_file_is_refused(tiny_bundle, name):
    (tiny_bundle / name).unlink()
    assert_refused(tiny_bundle, f"{name} is missing")


def test_a_missing_bundle_is_refused(tmp_path):
    assert_refused(tmp_path / "none", "no bundle at .*none")


@pytest.mark.parametrize("name", ["manifest.json", "card.md", "graphs/decoder.weights"])
def test_a_symbolic_link_is_refused(tiny_bundle, tmp_path, name):
    (tiny_bundle / name).rename(tmp_path / "elsewhere")
    (tiny_bundle / name).symlink_to(tmp_path / "elsewhere")
    assert_refused(tiny_bundle, f"{name} is a symbolic link")


def test_a_folder_that_is_a_symbolic_link_is_refused(tiny_bundle, tmp_path):
    (tiny_bundle / "graphs").rename(tmp_path / "elsewhere")
    (tiny_bundle / "graphs").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert_refused(tiny_bundle, r"graphs/decoder\S+ .*symbolic link")


@pytest.mark.parametrize("name", ["manifest.json", "graphs/decoder.weights"])
def test_a_hard_link_is_refused(tiny_bundle, tmp_path, name):
    (tmp_path / "elsewhere").hardlink_to(tiny_bundle / name)
    assert_refused(tiny_bundle, f"{name} is a hard link")


def test_a_pipe_is_refused_without_waiting(tiny_bundle):
    (tiny_bundle / "card.md").unlink()
    os.mkfifo(tiny_bundle / "card.md")
    assert_refused(tiny_bundle, r"card\.md is not a regular file")


def test_a_folder_in_place_of_a_file_is_refused(tiny_bundle):
    (tiny_bundle / "card.md").unlink()
    (tiny_bundle / "card.md").mkdir()
    assert_refused(tiny_bundle, r"card\.md is not a regular file")


# The manifest


@pytest.mark.parametrize(
    "path", ["../secret", "graphs/../../secret", "/etc/passwd", "./card.md", "a//b", "a\\b", "", "a/", "x" * 200]
)
def test_a_path_out_of_the_bundle_is_refused(tiny_bundle, path):
    edit(tiny_bundle, lambda manifest: manifest["files"].update({path: manifest["files"]["card.md"]}))
    assert_refused(tiny_bundle, "is not a plain relative path inside the bundle")


def test_an_unknown_key_and_a_missing_one_are_named(tiny_bundle):
    edit(tiny_bundle, lambda manifest: manifest.update(plugins=["evil.so"]))
    assert_refused(tiny_bundle, r"manifest\.json: .*`plugins`")
    edit(tiny_bundle, lambda manifest: [manifest.pop("plugins"), manifest.pop("precision")])
    assert_refused(tiny_bundle, r"manifest\.json: .*`precision`")


def test_a_newer_format_is_told_even_where_its_keys_are_unknown(tiny_bundle):
    edit(tiny_bundle, lambda manifest: manifest.update(format=2, plugins=[]))
    assert_refused(tiny_bundle, "made by a newer edgegen: format 2, this one reads 1")


def test_a_large_manifest_is_refused_before_it_is_read(tiny_bundle):
    os.truncate(tiny_bundle / "manifest.json", 1 << 40)  # a sparse file: no such disk is needed
    tracemalloc.start()
    assert_refused(tiny_bundle, f"the most that is read is {MAX_MANIFEST_BYTES}")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format":' * 100_000, "", "null", "\xff", '{"format": 1e400}', '{"format": ' + "9" * 5000 + "}"]
)
def test_json_that_is_none_is_refused(tiny_bundle, text):
    (tiny_bundle / "manifest.json").write_bytes(text.encode("latin-1"))
    assert_refused(tiny_bundle, r"manifest\.json: ")


def test_settings_nested_too_deep_are_refused(tiny_bundle):
    file = tiny_bundle / "manifest.json"
    file.write_text(file.read_text().replace('"vocab_size": 16', '"vocab_size": ' + "[" * 100_000 + "]" * 100_000))
    assert_refused(tiny_bundle, "nested too deep")


@pytest.mark.parametrize(
    ("axis", "sizes"),
    [
        ("sequence", (1, 8, 1 << 62)),
        ("sequence", (8, 1, 64)),
        ("sequence", (1, 8, 4)),
        ("batch", (-1, 1, 4)),
        ("batch", (1, 1, 4, 0)),
    ],
)
def test_absurd_sizes_of_a_named_axis_are_refused(tiny_bundle, axis, sizes):
    bounds = dict(zip(("min", "opt", "max", "step"), sizes, strict=False))
    edit(tiny_bundle, lambda manifest: manifest["graphs"]["decoder"]["axes"].update({axis: bounds}))
    assert_refused(tiny_bundle, f"axis '{axis}' has absurd sizes")


@pytest.mark.parametrize("axes", [[1 << 40], [-1], [1 << 30, 1 << 30], [1] * 40])
def test_absurd_fixed_sizes_are_refused(tiny_bundle, axes):
    def change(manifest):
        manifest["graphs"]["decoder"]["variants"]["canonical"]["inputs"][0]["axes"] = axes

    edit(tiny_bundle, change)
    assert_refused(tiny_bundle, "absurd axis sizes")


def change_variant(**changes):
    return lambda manifest: manifest["graphs"]["decoder"]["variants"]["canonical"].update(changes)


PAIR = {"input": "past_key_values.0.key", "output": "present.0.key", "axis": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(graphs={}), "0 graphs"),
        (lambda manifest: manifest.update(family="../x"), "family '../x' is not a name"),
        (lambda manifest: manifest.update(name="a\x1b[2J"), "name .* is not printable"),
        (lambda manifest: manifest.update(proof="none.json"), "proof 'none.json' is not in `files`"),
        (
            lambda manifest: manifest["files"].update({"manifest.json": manifest["files"]["card.md"]}),
            "lists manifest.json itself",
        ),
        (lambda manifest: manifest["files"]["card.md"].update(sha256="0"), "is not a SHA-256 digest"),
        (lambda manifest: manifest["files"]["card.md"].update(size_bytes=-1), "absurd size -1"),
        (lambda manifest: manifest["files"].update({f"f{i}": manifest["files"]["card.md"] for i in range(600)}), "at most 512"),
        (lambda manifest: manifest["graphs"]["decoder"]["variants"].pop("canonical"), "no variant 'canonical'"),
        (lambda manifest: manifest["graphs"]["decoder"]["axes"].pop("cache"), "axes without bounds"),
        (change_variant(path="graphs/none.onnx"), "is not in `files`"),
        (change_variant(weights=["card.md"]), "do not lie beside"),
        (change_variant(state=[PAIR, PAIR]), "is not in the graph"),
        (change_variant(state=[PAIR | {"output": "logits"}]), "dtype, rank or axis does not fit"),
        (change_variant(state=[PAIR | {"axis": 4}]), "dtype, rank or axis does not fit"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(tiny_bundle, change, message):
    edit(tiny_bundle, change)
    assert_refused(tiny_bundle, message)


def test_a_graph_that_agrees_with_its_digest_is_walked_all_the_same(tiny_bundle):
    name = "graphs/decoder.onnxruntime.onnx"
    model = (tiny_bundle / name).read_bytes()
    (tiny_bundle / name).write_bytes(model.replace(b"com.microsoft", b"com.acmecorps"))
    relist(tiny_bundle, name)
    with Bundle.open(tiny_bundle) as opened, pytest.raises(BundleError, match="custom operators are refused"):
        opened.graph("decoder", "onnxruntime")


def test_weights_cut_short_with_their_digest_are_out_of_range(tiny_bundle):
    os.truncate(tiny_bundle / "graphs/decoder.weights", 300)
    relist(tiny_bundle, "graphs/decoder.weights")
    with Bundle.open(tiny_bundle) as opened, pytest.raises(BundleError, match="external data out of range"):
        opened.graph("decoder", "canonical")


# The tar


def member(name, kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (member("../secret"), "not a plain relative path"),
        (member("/etc/passwd"), "not a plain relative path"),
        (member("card.md", tarfile.SYMTYPE, linkname="/etc/passwd"), "is a symbolic link"),
        (member("card.md", tarfile.LNKTYPE, linkname="other"), "is a hard link"),
        (member("card.md", tarfile.CHRTYPE), "is a device"),
        (member("card.md", tarfile.FIFOTYPE), "is a pipe"),
        (member("card.md", tarfile.GNUTYPE_SPARSE), "is a sparse file"),
        (member("card.md", tarfile.XHDTYPE), "is a pax header"),
        (member("card.md", tarfile.XGLTYPE), "is a pax header"),
        (member("a" * 101), "is a long name"),
        (member("card.md", b"Z"), "is of the unknown type"),
        (member("folder", tarfile.DIRTYPE, size=512), "is a folder with 512 bytes"),
        (member("card.md") * 2, "is there twice"),
        (member("./card.md") + member("card.md"), "is there twice"),
        (member("card.md", size=1200), "truncated"),
        (member("card.md", size=1 << 50), "truncated"),
        (member("card.md").replace(b"card", b"cart"), "checksum"),
        (member("a")[:300], "truncated, or not a tar"),
        (b"MZ" + bytes(1000), "not a tar file"),
        (b"", "truncated, or not a tar"),
        (bytes(1024), r"manifest\.json is missing"),
        (member("folder", tarfile.DIRTYPE) * 5000, "more than 4096 members"),
    ],
)
def test_a_tar_that_is_more_than_plain_files_is_refused(tmp_path, data, message):
    (tmp_path / "evil.tar").write_bytes(data if "not a tar" in message else data + bytes(1024))
    assert_refused(tmp_path / "evil.tar", message)


def test_a_compressed_tar_is_refused_unopened(tmp_path):
    bomb = gzip.compress(bytes(50 << 20))
    for name, data in {
        "a.gz": bomb,
        "b.zip": b"PK\3\4",
        "c.xz": b"\xfd7zXZ\0",
        "d.bz2": b"BZh9",
        "e.zst": b"\x28\xb5\x2f\xfd",
    }.items():
        (tmp_path / name).write_bytes(data)
        tracemalloc.start()
        assert_refused(tmp_path / name, "only an uncompressed tar is read")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_a_damaged_file_in_a_tar_is_refused(tiny_bundle, tmp_path):
    tar = pack(tiny_bundle, tmp_path / "tiny.tar")
    data = tar.read_bytes()
    tar.write_bytes(data.replace(b"# tiny", b"# tinY"))
    with Bundle.open(tar) as opened, pytest.raises(BundleError, match=r"card\.md is damaged"):
        opened.verify_all()
    tar.write_bytes(data[: len(data) // 2])
    assert_refused(tar, "truncated")


# Anything at all

FEW = settings(max_examples=1500, deadline=None, database=None)
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "drop", "double"]), st.integers(0, 1 << 20), st.integers(1, 255)),
    min_size=1,
    max_size=4,
)


def damage(data, edits):
    """Flip, cut, drop and double bytes."""
    data = bytearray(data)
    for kind, anywhere, amount in edits:
        place = anywhere % (len(data) + 1)
        if kind == "flip" and place < len(data):
            data[place] ^= amount
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + amount]
        elif kind == "double":
            data[place:place] = data[place : place + amount]
    return bytes(data)


def assert_sound_or_refused(place):
    """Open it and use all of it: an EdgegenError, or every byte has its digest."""
    with contextlib.suppress(EdgegenError), Bundle.open(place) as opened:
        opened.verify_all()
        for name, entry in opened.manifest.files.items():
            assert hashlib.sha256(opened.read(name)).hexdigest() == entry.sha256
        for name, graph in opened.manifest.graphs.items():
            for variant in graph.variants:
                opened.graph(name, variant)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrusted")
    pack(make_bundle(folder / "tiny.bundle"), folder / "tiny.tar")
    return folder


NAMES = [
    "manifest.json",
    "graphs/decoder.onnx",
    "graphs/decoder.onnxruntime.onnx",
    "graphs/decoder.weights",
    "tokenizer/tokenizer.json",
]


@FEW
@given(name=st.sampled_from(NAMES), edits=EDITS)
@example(name="manifest.json", edits=[("cut", 0, 1)])
def test_any_damage_to_a_folder_is_refused_or_harmless(place, name, edits):
    file = place / "tiny.bundle" / name
    good = file.read_bytes()
    try:
        file.write_bytes(damage(good, edits))
        assert_sound_or_refused(place / "tiny.bundle")
    finally:
        file.write_bytes(good)


@FEW
@given(edits=EDITS)
def test_any_damage_to_a_tar_is_refused_or_harmless(place, edits):
    tar = place / "damaged.tar"
    tar.write_bytes(damage((place / "tiny.tar").read_bytes(), edits))
    assert_sound_or_refused(tar)


def locations(value, path=()):
    """The path of every value in nested JSON."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from locations(child, (*path, key))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(NAMES)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@FEW
@given(data=st.data(), value=VALUES)
def test_any_value_anywhere_in_the_manifest_is_refused_or_harmless(place, data, value):
    file = place / "tiny.bundle/manifest.json"
    good = file.read_bytes()
    tree = json.loads(good)
    path = data.draw(st.sampled_from([path for path in locations(tree) if path]))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    try:
        file.write_text(json.dumps(tree))
        assert_sound_or_refused(place / "tiny.bundle")
    finally:
        file.write_bytes(good)


@FEW
@given(st.binary(max_size=2000))
def test_any_bytes_are_no_manifest(data):
    with pytest.raises(EdgegenError):
        decode(data)


def test_the_bundle_was_sound_all_along(place):
    Bundle.open(place / "tiny.bundle").close()
