import errno
import hashlib
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from bundles import DATA, fill, make_bundle, manifest

from edgegen import bundle as bundle_module
from edgegen.archive import Blob, Folder, _read_header
from edgegen.bundle import Bundle, BundleWriter, pack
from edgegen.errors import BundleError, ExportError, InputError, UnknownNameError
from edgegen.manifest import decode, encode


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def publish(path, meddle, *, force=False):
    """Write the tiny bundle; `meddle` with its folder before it is published."""
    with BundleWriter(path, force=force) as writer:
        fill(writer.directory)
        meddle(writer.directory)
        writer.publish(manifest())


def test_a_published_bundle_opens_and_gives_back_every_byte(tiny_bundle):
    with Bundle.open(tiny_bundle) as opened:
        assert opened.path == tiny_bundle
        assert opened.manifest.name == "tiny"
        assert opened.read("card.md") == b"# tiny\n"
        files = opened.graph("decoder", "onnxruntime")
    # After closing: sessions may outlive the bundle.
    assert files.model == (DATA / "decoder.onnxruntime.onnx").read_bytes()
    assert bytes(files.weights["decoder.weights"]) == (DATA / "decoder.weights").read_bytes()
    assert files.weights["decoder.weights"].readonly
    assert files.variant.path == "graphs/decoder.onnxruntime.onnx"
    assert files.axes["batch"].max == 4


def test_the_graphs_of_a_bundle_run(tiny_bundle):
    ort = pytest.importorskip("onnxruntime")
    state = {f"past_key_values.0.{part}": np.zeros((1, 1, 8, 4), np.float32) for part in ("key", "value")}
    feeds = {
        "canonical": {"write_indices": np.zeros(1, np.int64)},
        "onnxruntime": {"attention_mask": np.ones((1, 3), np.int64)},
    }
    logits = []
    with Bundle.open(tiny_bundle) as opened:
        for variant, feed in feeds.items():
            files = opened.graph("decoder", variant)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            weights = {name: bytes(view) for name, view in files.weights.items()}
            sizes = [len(data) for data in weights.values()]
            options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes)
            session = ort.InferenceSession(files.model, options)
            logits.append(session.run(["logits"], {"input_ids": np.array([[3, 4, 5]]), **feed, **state})[0])
    assert logits[0].shape == (1, 1, 16)
    np.testing.assert_array_equal(*logits)  # the same arithmetic in the same order


def test_unknown_names_are_told_with_the_known_ones(tiny_bundle):
    with Bundle.open(tiny_bundle) as opened:
        with pytest.raises(UnknownNameError, match="no graph named 'decoder_'; did you mean 'decoder'"):
            opened.graph("decoder_", "canonical")
        with pytest.raises(
            UnknownNameError, match="no variant of graph 'decoder' named 'tensorrt'; known: canonical, onnxruntime"
        ):
            opened.graph("decoder", "tensorrt")


def test_a_file_that_is_not_listed_is_never_read(tiny_bundle):
    (tiny_bundle / "stray.txt").write_text("?")
    with Bundle.open(tiny_bundle) as opened, pytest.raises(BundleError, match=r"no file 'stray\.txt'"):
        opened.read("stray.txt")


def test_a_closed_bundle_reads_nothing(tiny_bundle):
    opened = Bundle.open(tiny_bundle)
    opened.close()
    opened.close()
    with pytest.raises(BundleError, match="closed"):
        opened.read("card.md")


def test_opening_and_closing_leaves_no_descriptor(tiny_bundle, tmp_path):
    tar = pack(tiny_bundle, tmp_path / "tiny.tar")
    before = descriptors()
    for place in (tiny_bundle, tar):
        Bundle.open(place).close()
    (tiny_bundle / "card.md").unlink()
    with pytest.raises(BundleError):
        Bundle.open(tiny_bundle)
    assert descriptors() == before


def test_without_verify_only_weights_go_unhashed(tiny_bundle):
    weights = tiny_bundle / "graphs/decoder.weights"
    weights.write_bytes(bytes(weights.stat().st_size))
    (tiny_bundle / "card.md").write_bytes(b"# tinY\n")
    with Bundle.open(tiny_bundle, verify=False) as opened:
        opened.graph("decoder", "canonical")
        with pytest.raises(BundleError, match=r"card\.md is damaged"):
            opened.read("card.md")
        with pytest.raises(BundleError, match="is damaged"):
            opened.verify_all()


def test_weights_are_hashed_once_and_only_when_their_graph_is_opened(tiny_bundle, monkeypatch):
    hashed = []
    sha256 = Blob.sha256
    monkeypatch.setattr(Blob, "sha256", lambda blob: hashed.append(blob.size_bytes) or sha256(blob))
    with Bundle.open(tiny_bundle) as opened:
        assert hashed == []
        opened.graph("decoder", "canonical")
        opened.graph("decoder", "onnxruntime")
        assert hashed == [512]
        opened.verify_all()
        assert len(hashed) == 1 + len(opened.manifest.files)


def test_a_graph_says_where_its_tensors_lie(tiny_bundle):
    with Bundle.open(tiny_bundle) as opened:
        files = opened.graph("decoder", "canonical")
    assert len(files.external) > 0
    for tensor in files.external:
        weights = files.weights[tensor.location][tensor.offset : tensor.offset + tensor.size_bytes]
        assert np.frombuffer(weights, tensor.dtype).size == np.prod(tensor.shape)


def test_a_file_changed_while_the_bundle_is_open_is_not_handed_out(tiny_bundle):
    with Bundle.open(tiny_bundle) as opened:
        with (tiny_bundle / "card.md").open("r+b") as file:
            file.write(b"#!tiny\n")
        with pytest.raises(BundleError, match="damaged"):
            opened.read("card.md")


def test_a_digest_across_many_chunks_is_that_of_the_bytes(tmp_path):
    data = np.random.default_rng(0).bytes((9 << 20) + 5)  # two chunks of 4 MiB, and an odd rest
    (tmp_path / "large").write_bytes(data)
    folder = Folder(tmp_path)
    blob = folder.blob("large")
    assert blob.sha256() == hashlib.sha256(data).hexdigest()
    part = Blob(blob._mapping, 512, (5 << 20) + 3)  # as in a tar: it begins within a page
    assert part.sha256() == hashlib.sha256(data[512 : 512 + (5 << 20) + 3]).hexdigest()
    assert Blob(None, 0, 0).sha256() == hashlib.sha256().hexdigest()
    folder.close()


def test_several_threads_read_one_bundle(tiny_bundle):
    found = []
    with Bundle.open(tiny_bundle) as opened:
        work = [threading.Thread(target=lambda: found.append(opened.graph("decoder", "canonical").model)) for _ in range(8)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
    assert found == [(DATA / "decoder.onnx").read_bytes()] * 8


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, second = (make_bundle(tmp_path / name) for name in ("first", "second"))
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    time.sleep(0.01)  # another time of writing
    one, two = pack(first, tmp_path / "first.tar"), pack(second, tmp_path / "second.tar")
    assert one.read_bytes() == two.read_bytes()


def test_a_manifest_survives_the_round_trip(tiny_bundle):
    data = (tiny_bundle / "manifest.json").read_bytes()
    assert encode(decode(data)) == data


def test_a_manifest_that_could_not_be_read_is_not_written():
    with pytest.raises(BundleError, match=r"proof 'proof/proof\.json' is not in `files`"):
        encode(manifest())


# The tar


def test_a_tar_reads_like_the_folder(tiny_bundle, tmp_path):
    tar = pack(tiny_bundle, tmp_path / "tiny.tar")
    with Bundle.open(tiny_bundle) as folder, Bundle.open(tar) as packed:
        assert packed.manifest == folder.manifest
        for path in folder.manifest.files:
            assert packed.read(path) == folder.read(path)
        weights = packed.graph("decoder", "canonical").weights
    assert bytes(weights["decoder.weights"]) == (DATA / "decoder.weights").read_bytes()


def test_a_tar_made_by_the_usual_tool_opens(tiny_bundle, tmp_path):
    with tarfile.open(
        tmp_path / "usual.tar", "w", format=tarfile.GNU_FORMAT
    ) as file:  # with folders, owners, times and a leading ./
        file.add(tiny_bundle, arcname="./")
    with Bundle.open(tmp_path / "usual.tar") as opened:
        assert opened.manifest.name == "tiny"


def test_packing_replaces_a_file_only_when_told_to(tiny_bundle, tmp_path):
    target = tmp_path / "tiny.tar"
    target.write_text("mine")
    with pytest.raises(InputError, match="--force"):
        pack(tiny_bundle, target)
    assert target.read_text() == "mine"
    pack(tiny_bundle, target, force=True)
    Bundle.open(target).close()
    assert listing(tmp_path) == ["tiny.bundle", "tiny.tar"]


def test_a_large_member_has_a_size_that_octal_cannot_hold():
    header = tarfile.TarInfo("graphs/decoder.weights")
    header.size = 20 << 30
    assert _read_header(header.tobuf(tarfile.GNU_FORMAT)) == ("graphs/decoder.weights", b"0", 20 << 30)


# The writer


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, SystemExit])
def test_leaving_without_publishing_leaves_nothing(tmp_path, interruption):
    def interrupt(folder):
        raise interruption

    with pytest.raises(interruption):
        publish(tmp_path / "new.bundle", interrupt)
    assert listing(tmp_path) == []


def test_a_sealed_bundle_opens_before_it_is_published(tmp_path):
    with BundleWriter(tmp_path / "new.bundle") as writer:
        fill(writer.directory)
        (writer.directory / "proof/proof.json").unlink()
        writer.seal(manifest(proof=""))
        with Bundle.open(writer.directory) as draft:
            draft.graph("decoder", "canonical")
        assert not (tmp_path / "new.bundle").exists()
        (writer.directory / "proof/proof.json").write_text("{}")
        writer.publish(manifest())
    with Bundle.open(tmp_path / "new.bundle") as opened:
        assert opened.read("proof/proof.json") == b"{}"
    assert listing(tmp_path) == ["new.bundle"]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ExportError, match=r"cannot write .*new\.bundle: No space left on device \(\d+ MiB are free"):
        publish(tmp_path / "new.bundle", fail)
    assert listing(tmp_path) == []
    monkeypatch.setattr(bundle_module, "_flush", fail)
    with pytest.raises(ExportError, match="MiB are free"):
        make_bundle(tmp_path / "new.bundle")
    assert listing(tmp_path) == []


def test_a_full_disk_while_packing_leaves_nothing(tiny_bundle, tmp_path, monkeypatch):
    def write(file, members):
        file.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module, "write_tar", write)
    with pytest.raises(ExportError, match="No space left"):
        pack(tiny_bundle, tmp_path / "tiny.tar")
    assert listing(tmp_path) == ["tiny.bundle"]


def test_a_place_that_is_taken_is_refused_before_any_work(tiny_bundle):
    with pytest.raises(InputError, match="already exists; use --force"), BundleWriter(tiny_bundle):
        pytest.fail("entered")
    with pytest.raises(InputError, match="does not exist"), BundleWriter(tiny_bundle / "none/x"):
        pytest.fail("entered")


def test_a_place_that_was_taken_meanwhile_is_refused(tmp_path):
    with pytest.raises(InputError, match="already exists"):
        publish(tmp_path / "new.bundle", lambda folder: (tmp_path / "new.bundle").mkdir())
    assert listing(tmp_path) == ["new.bundle"]
    assert listing(tmp_path / "new.bundle") == []


def test_force_replaces_a_bundle(tiny_bundle, tmp_path):
    publish(tiny_bundle, lambda folder: (folder / "card.md").write_text("# new\n"), force=True)
    with Bundle.open(tiny_bundle) as opened:
        assert opened.read("card.md") == b"# new\n"
    assert listing(tmp_path) == ["tiny.bundle"]


def test_force_replaces_nothing_but_a_bundle(tiny_bundle, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension/manifest.json").write_text('{"manifest_version": 3}')
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tiny_bundle)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    before = listing(tmp_path)
    for name in ("folder", "extension", "file", "link", "dangling"):
        with pytest.raises(InputError, match="is not a bundle"), BundleWriter(tmp_path / name, force=True):
            pytest.fail("entered")
    assert listing(tmp_path) == before


def test_the_old_bundle_comes_back_when_replacing_fails(tiny_bundle, tmp_path, monkeypatch):
    rename = Path.rename

    def interrupted(self, target):
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(tiny_bundle, lambda folder: None, force=True)
    Bundle.open(tiny_bundle).close()
    assert listing(tmp_path) == ["tiny.bundle"]


def test_links_and_odd_names_are_not_published(tmp_path):
    for spoil in (lambda folder: (folder / "link").symlink_to("card.md"), lambda folder: (folder / "a b").touch()):
        with pytest.raises(BundleError):
            publish(tmp_path / "new.bundle", spoil)
    assert listing(tmp_path) == []


def test_a_published_bundle_has_the_permissions_of_any_new_folder(tmp_path, tiny_bundle):
    (tmp_path / "plain").mkdir()
    assert tiny_bundle.stat().st_mode == (tmp_path / "plain").stat().st_mode
