"""Data sets of small images, fetched from package archives by their digests, once. Loads without torch."""

import gzip
import io
import lzma
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import SourceError
from edgegen.export.fetch import cache_directory
from edgegen.export.sources.base import file_sha256

_TIMEOUT_S = 1800
_FASHION = Path("usr/share/datasets/fashion-mnist")
_FASHION_DEB = "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
_EMOJI_TGZ = "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
_FACES = (  # code points of round, mostly yellow faces: https://unicode.org/emoji/charts/full-emoji-list.html
    (0x1F600, 0x1F607), (0x1F609, 0x1F637), (0x1F641, 0x1F644), (0x1F910, 0x1F915), (0x1F917, 0x1F917), (0x1F920, 0x1F925),
    (0x1F927, 0x1F92F), (0x1F970, 0x1F976), (0x1F978, 0x1F97A), (0x1F9D0, 0x1F9D0), (0x1FAE0, 0x1FAE5), (0x1FAE8, 0x1FAE8),
)  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Images to learn from, in memory or mapped.

    Attributes:
        images: uint8 [image, height, width, channel].
        labels: int64 [image], the class of each; None where there are none.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Raises SourceError where the arrays are not what they should be."""
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or not self.images.size:
            described = f"{self.images.dtype}{list(self.images.shape)}"
            raise SourceError(f"images are {described}; they must be uint8[image, height, width, channel], and some")
        if self.labels is not None and (self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]):
            described = f"{self.labels.dtype}{list(self.labels.shape)}"
            raise SourceError(f"labels are {described}; {len(self.images)} images want int64[{len(self.images)}]")

    def __len__(self) -> int:
        return len(self.images)


def fashion_mnist(split: str = "train") -> Data:
    """Fashion-MNIST (Xiao 2017, arXiv:1708.07747; MIT): clothes, uint8 [60000 (train) or 10000 (t10k), 28, 28, 1], 10 classes.

    From the Debian package dataset-fashion-mnist: where it is installed, else fetched with apt-get into edgegen's cache.

    Raises:
        SourceError: It is not there and cannot be had, or is damaged.
    """
    files = {kind: f"{split}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")}
    installed = Path("/") / _FASHION
    if all((installed / name).is_file() for name in files.values()):
        images, labels = (_read_idx((installed / name).read_bytes(), name) for name in files.values())
    else:
        package = _fetched("dataset-fashion-mnist.deb", _FASHION_DEB, _apt_download)
        images, labels = (_read_idx(_member_of_deb(package, f"./{_FASHION}/{name}"), name) for name in files.values())
    return Data(images[..., None], labels.astype(np.int64))


def emoji(size: int = 64, *, faces: bool = False) -> Data:
    """Twitter's emoji (npm emoji-datasource-twitter 16.0.0; art CC-BY-4.0) over white: uint8 [3786, size, size, 3].

    Args:
        size: 64, 32 or 16 pixels; the smaller are averages of blocks of the larger.
        faces: only the 99 round faces: few enough that a small model learns them in minutes.

    Raises:
        SourceError: npm cannot get the package, or it is another one.
    """
    from PIL import Image

    package = _fetched("emoji-datasource-twitter.tgz", _EMOJI_TGZ, _npm_pack)
    images = []
    with tarfile.open(package, "r:gz") as archive:
        wanted = _is_face if faces else _is_emoji
        for member in sorted(filter(wanted, archive), key=lambda m: m.name):
            file = archive.extractfile(member)
            if file is None:
                raise SourceError(f"{package} is damaged: {member.name} cannot be read")
            picture = Image.open(io.BytesIO(file.read())).convert("RGBA")
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            images.append(np.asarray(Image.alpha_composite(white, picture).convert("RGB").reduce(64 // size)))
    return Data(np.stack(images))


def shapes(count: int = 512, size: int = 16, channels: int = 1) -> Data:
    """Synthetic images to try things with: a bright square, disc or cross (classes 0 to 2) somewhere on dark ground.

    Returns uint8 [count, size, size, channels]; the same each time.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    centre = rng.uniform(size * 0.35, size * 0.65, (count, 2, 1, 1))
    radius = rng.uniform(size * 0.15, size * 0.3, (count, 1, 1))
    down, right = (np.abs(np.indices((size, size))[None, axis] - centre[:, axis]) for axis in (0, 1))
    cross = (np.minimum(down, right) < 1) & (down + right < radius)
    inside = [np.maximum(down, right) < radius, down**2 + right**2 < radius**2, cross]
    chosen = np.choose(labels[:, None, None], inside)
    images = np.where(chosen, rng.integers(160, 256, (count, 1, 1)), 20).astype(np.uint8)
    return Data(np.repeat(images[..., None], channels, axis=-1), labels.astype(np.int64))


def _is_emoji(member: tarfile.TarInfo) -> bool:
    return member.isfile() and re.fullmatch(r"package/img/twitter/64/[0-9a-f-]+\.png", member.name) is not None


def _is_face(member: tarfile.TarInfo) -> bool:
    name = Path(member.name).stem
    return _is_emoji(member) and "-" not in name and any(first <= int(name, 16) <= last for first, last in _FACES)


def _read_idx(packed: bytes, name: str) -> NDArray[np.uint8]:
    """An array of bytes in LeCun's idx format: two zeros, type 8, the number of axes, each axis big-endian, the bytes."""
    try:
        content = gzip.decompress(packed)
        axes = np.frombuffer(content, ">u4", content[3], 4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(axes)).reshape(axes)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise SourceError(f"{name} is damaged: {error}") from error


def _member_of_deb(package: Path, member: str) -> bytes:
    """One file of a Debian package: an `ar` archive (deb(5)) with 60-byte headers, whose data.tar holds the files."""
    content = package.read_bytes()
    at = 8  # after "!<arch>\n"
    while at < len(content):
        name, size = content[at : at + 16].decode("ascii").strip(" /"), int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            try:
                with tarfile.open(fileobj=io.BytesIO(content[at + 60 : at + 60 + size]), mode="r:*") as archive:
                    file = archive.extractfile(member)
                    if file is not None:
                        return file.read()
            except (KeyError, tarfile.TarError, lzma.LZMAError) as error:
                raise SourceError(f"{package}: {error}") from error
        at += 60 + size + size % 2
    raise SourceError(f"{package} holds no {member}")


def _fetched(name: str, sha256: str, download: Callable[[Path], str]) -> Path:
    """The file of that digest from the cache, downloaded first where it is not there."""
    path = cache_directory().parent / "data" / sha256 / name
    if path.is_file() and file_sha256(path) == sha256:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as scratch:
            said = download(Path(scratch))
            files = [file for file in Path(scratch).iterdir() if file.suffix in {".deb", ".tgz"}]
            if not files:
                raise SourceError(f"cannot fetch {name}: {said}; where another machine can, copy the file to {path}")
            if (found := file_sha256(files[0])) != sha256:
                raise SourceError(f"{files[0].name} has sha256 {found}; edgegen was made with {sha256}")
            files[0].replace(path)
    except OSError as error:
        raise SourceError(f"cannot keep {name} in {path.parent}: {error.strerror or error}") from error
    return path


def _apt_download(directory: Path) -> str:
    # Its sandbox user may not enter a private folder; it then downloads as the user who asks, and warns.
    return _run(["apt-get", "download", "dataset-fashion-mnist"], directory)


def _npm_pack(directory: Path) -> str:
    return _run(["npm", "pack", "--silent", "emoji-datasource-twitter@16.0.0"], directory)


def _run(command: list[str], directory: Path) -> str:
    """Run a package manager in `directory`; what it said last."""
    try:
        environment = os.environ | {"LC_ALL": "C"}
        done = subprocess.run(  # noqa: S603  # a list, no shell
            command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)} did not end within {_TIMEOUT_S} s"
    return next(iter((done.stderr or done.stdout).strip().splitlines()[-1:]), f"{command[0]} gave nothing")
