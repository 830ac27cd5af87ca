import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgegen.errors import SourceError
from edgegen.train import data


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def tar(files: dict[str, bytes], mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    made = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", tar(files, "w:xz"))):
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    return made


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stand in for apt-get and npm: they give these bytes, which are the pinned ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_FASHION", Path("no/such/place"))
    calls: list[str] = []

    def give(content: bytes, name: str, pin: str) -> list[str]:
        def run(command: list[str], directory: Path) -> str:
            calls.append(" ".join(command))
            (directory / name).write_bytes(content)
            return ""

        monkeypatch.setattr(data, "_run", run)
        monkeypatch.setattr(data, pin, hashlib.sha256(content).hexdigest())
        return calls

    return give


def test_fashion_mnist_is_read_out_of_the_debian_package_and_fetched_once(archive) -> None:
    images, labels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28), np.array([3, 9], np.uint8)
    place = "./no/such/place/train-"
    package = deb({f"{place}images-idx3-ubyte.gz": idx(images), f"{place}labels-idx1-ubyte.gz": idx(labels)})
    calls = archive(package, "thing.deb", "_FASHION_DEB")
    for _ in range(2):
        read = data.fashion_mnist()
        np.testing.assert_array_equal(read.images, images[..., None])
        assert read.labels is not None
        assert read.labels.tolist() == [3, 9]
    assert calls == ["apt-get download dataset-fashion-mnist"]
    with pytest.raises(SourceError, match="t10k-images"):
        data.fashion_mnist("t10k")


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(b"\0\0\x08\x03\0\0"), gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc")]
)
def test_a_damaged_idx_file_is_one_line(content: bytes) -> None:
    with pytest.raises(SourceError, match="labels is damaged"):
        data._read_idx(content, "labels")


def test_emoji_are_put_on_white_and_only_the_right_size_is_taken(archive) -> None:
    def png(colour: tuple[int, int, int, int]) -> bytes:
        made = io.BytesIO()
        Image.new("RGBA", (64, 64), colour).save(made, "png")
        return made.getvalue()

    files = {
        "package/img/twitter/64/1f600.png": png((255, 0, 0, 255)),
        "package/img/twitter/64/1f601-fe0f.png": png((255, 0, 0, 0)),
        "package/img/twitter/sheets/64.png": b"no emoji",
        "package/img/twitter/64/../x.png": b"no emoji",
    }
    calls = archive(tar(files, "w:gz"), "thing.tgz", "_EMOJI_TGZ")
    assert data.emoji().images.shape == (2, 64, 64, 3)
    assert data.emoji(faces=True).images.shape == (1, 64, 64, 3)
    small = data.emoji(16).images
    assert small.shape == (2, 16, 16, 3)
    assert small[0, 0, 0].tolist() == [255, 0, 0]
    assert small[1, 0, 0].tolist() == [255, 255, 255]
    assert len(calls) == 1


def test_another_package_is_never_kept(archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(b"content", "thing.tgz", "_EMOJI_TGZ")
    monkeypatch.setattr(data, "_EMOJI_TGZ", "0" * 64)
    with pytest.raises(SourceError, match=r"thing\.tgz has sha256 [0-9a-f]{64}; edgegen was made with 0000"):
        data.emoji()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_without_the_package_manager_it_says_where_the_file_may_be_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data, "_FASHION", Path("no/such/place"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SourceError, match=r"cannot fetch dataset-fashion-mnist\.deb: apt-get is not installed; .* copy the file to"
    ):
        data.fashion_mnist()
    with pytest.raises(SourceError, match=r"cannot fetch emoji-datasource-twitter\.tgz: npm is not installed"):
        data.emoji()


def test_synthetic_shapes_are_the_same_each_time_and_of_three_kinds() -> None:
    first, second = data.shapes(60, 16, 3), data.shapes(60, 16, 3)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.images.shape == (60, 16, 16, 3)
    assert first.images.dtype == np.uint8
    assert first.labels is not None
    assert set(first.labels) == {0, 1, 2}
    assert all(image.max() >= 160 and image.min() == 20 for image in first.images)
