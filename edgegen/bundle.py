"""The bundle on disk: opened as untrusted input, written whole or not at all.

Layout and schema: `manifest.py`. Files of the folder that the manifest does not list are never read.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from edgegen.archive import Blob, Folder, Tar, open_archive, write_tar
from edgegen.errors import BundleError, ExportError, InputError, UnknownNameError
from edgegen.graphs import walk
from edgegen.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    Variant,
    decode,
    decode_stamp,
    encode,
)
from edgegen.tensors import Axis

_MAX_READ_BYTES = 512 << 20  # what is copied into memory at once: everything but weights
_HASH_THREADS = 4
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class GraphFiles:
    """One graph variant, checked and ready for a session.

    `weights` maps each external-data location (the file name that the graph uses) to its bytes: read-only views of the mapped
    file, valid as long as they are referenced, even after the bundle is closed. `external` says which tensor lies where.
    `folder` is where the same bytes lie as files of those names; None where the bundle is a tar.
    """

    model: bytes
    weights: Mapping[str, memoryview]
    variant: Variant
    axes: Mapping[str, Axis]
    external: tuple[walk.ExternalTensor, ...]
    folder: Path | None


class Bundle:
    """An open bundle. May be used by several threads.

    Each file's digest is checked before its bytes are handed out; a weights file's, which is mapped, the first time.
    The files must not change while the bundle or a session of it is open: weights are mapped, not copied.
    """

    def __init__(
        self, path: Path, archive: Folder | Tar, manifest: Manifest, blobs: Mapping[str, Blob], *, verify: bool = True
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._place = path.absolute()  # the process may go to another folder
        self._archive = archive
        self._blobs = blobs
        self._trusted = set() if verify else set(manifest.files)  # mapped files whose digest needs no look any more

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> "Bundle":
        """Open a bundle's folder, or the uncompressed tar of one.

        The manifest is checked, and that every file is there and as long as it says. Nothing is hashed yet: a damaged file is
        found by whoever reads it, or by `verify_all`.

        Args:
            path: the folder or the tar.
            verify: hash a weights file before it is handed out. Everything else is always hashed.

        Raises:
            BundleError: no bundle there, incomplete, newer than this edgegen, or not to be trusted.
        """
        place = Path(path)
        archive = open_archive(place)
        try:
            manifest = _read_manifest(archive, place)
            blobs = {name: archive.blob(name) for name in manifest.files}
            _check_sizes(place, manifest, blobs)
        except BaseException:
            archive.close()
            raise
        return cls(place, archive, manifest, blobs, verify=verify)

    def verify_all(self) -> None:
        """Hash every file, used or not. Raises BundleError that names one whose SHA-256 is not the manifest's."""
        with ThreadPoolExecutor(_HASH_THREADS) as pool:  # hashlib lets go of the GIL
            list(pool.map(self._check_digest, self.manifest.files))

    def read(self, path: str) -> bytes:
        """Read one file that the manifest lists; its digest is checked on the very bytes that are returned.

        Raises BundleError: not listed, changed since the bundle was opened, or larger than 512 MiB.
        """
        blob = self._blob(path)
        if blob.size_bytes > _MAX_READ_BYTES:
            raise BundleError(
                f"{self.path}: {path} has {blob.size_bytes} bytes; the most that is read at once is {_MAX_READ_BYTES}"
            )
        data = bytes(blob.view())
        if hashlib.sha256(data).hexdigest() != self.manifest.files[path].sha256:
            raise _damaged(self.path, path)
        return data

    def graph(self, name: str, variant: str) -> GraphFiles:
        """Read one variant of a graph, and walk it before any inference library does.

        Raises:
            UnknownNameError: no such graph or variant.
            BundleError: a file is damaged, or the graph is not to be trusted (`graphs.walk.check`).
        """
        graph = self.manifest.graphs.get(name)
        if graph is None:
            raise UnknownNameError("graph", name, self.manifest.graphs)
        chosen = graph.variants.get(variant)
        if chosen is None:
            raise UnknownNameError(f"variant of graph {name!r}", variant, graph.variants)
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            # Weights are hashed while the graph is walked.
            digests = pool.map(self._check_digest, [path for path in chosen.weights if path not in self._trusted])
            model = self.read(chosen.path)
            weights = {path.rpartition("/")[2]: self._blob(path).view() for path in chosen.weights}
            external = walk.check(model, {location: len(view) for location, view in weights.items()}, chosen)
            list(digests)
        folder = (self._place / chosen.path).parent if isinstance(self._archive, Folder) else None
        return GraphFiles(model, weights, chosen, graph.axes, external, folder)

    def members(self) -> Iterator[tuple[str, memoryview]]:
        """Every file, the manifest first: its path and its bytes, not hashed."""
        yield MANIFEST, self._archive.blob(MANIFEST).view()
        for path in sorted(self._blobs):
            yield path, self._blobs[path].view()

    def close(self) -> None:
        """Let go of the files. Views that were handed out stay valid. Closing twice is allowed."""
        self._blobs = {}
        self._archive.close()

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_digest(self, path: str) -> None:
        if self._blob(path).sha256() != self.manifest.files[path].sha256:
            raise _damaged(self.path, path)
        self._trusted.add(path)

    def _blob(self, path: str) -> Blob:
        blob = self._blobs.get(path)
        if blob is None:
            raise BundleError(f"{self.path}: no file {path!r} in it, or it is closed")
        return blob


class BundleWriter:
    """Makes a bundle in a hidden folder beside its place, and moves it there when it is whole.

    Leaving without `publish`, by Ctrl-C too, removes everything. A full disk becomes an ExportError.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """`force`: replace a bundle that is already there (and nothing but a bundle)."""
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link that is to be refused)
        self.directory = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        self._force = force

    def __enter__(self) -> "BundleWriter":
        """Raises InputError where the place is taken, or its parent is no folder."""
        check_place(self.path, self._force)
        with _writing(self.path):
            self.directory.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise _full_disk(self.path, error) from error

    def seal(self, manifest: Manifest) -> Manifest:
        """Write manifest.json with the digests of all files, so that `Bundle.open(writer.directory)` works before publishing.

        manifest: its `files` are ignored. Returns the manifest as written. May be called again after files changed.
        """
        with _writing(self.path):
            (self.directory / MANIFEST).unlink(missing_ok=True)
            sealed = msgspec.structs.replace(manifest, files=_list_files(self.directory))
            (self.directory / MANIFEST).write_bytes(encode(sealed))
        return sealed

    def publish(self, manifest: Manifest) -> Path:
        """Seal, flush to the disk, and move to the final place. Returns that place.

        Where a bundle is replaced, the old one stays under a hidden name until the new one is in place.
        Raises InputError where the place has been taken meanwhile, ExportError where the disk is full.
        """
        self.seal(manifest)
        with _writing(self.path):
            for folder, _, names in os.walk(self.directory):
                for name in names:
                    _flush(Path(folder, name))
                _flush(Path(folder))
            check_place(self.path, self._force)
            self._move()
            _flush(self.path.parent)
        return self.path

    def _move(self) -> None:
        if not self.path.exists():
            self.directory.rename(self.path)
            return
        old = self.directory.with_suffix(".old")
        self.path.rename(old)
        try:
            self.directory.rename(self.path)
        except BaseException:
            old.rename(self.path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def pack(bundle: str | os.PathLike[str], tar: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write a bundle as one uncompressed tar: the same bundle gives the same bytes.

    Raises:
        BundleError: the bundle does not open, or is damaged.
        InputError: `tar` exists (unless `force`), or its folder does not.
        ExportError: the disk is full.
    """
    place = Path(os.path.abspath(tar))  # noqa: PTH100
    _check_parent(place)
    if place.is_dir():
        raise InputError(f"cannot write {place}: it is a folder; name a .tar file")
    if place.exists() and not force:
        raise InputError(f"{place} already exists; use --force to replace it, or choose another place")
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    with Bundle.open(bundle) as opened, _writing(place):
        opened.verify_all()
        try:
            with partial.open("xb") as file:
                write_tar(file, opened.members())
            _flush(partial)
            partial.rename(place)
        finally:
            partial.unlink(missing_ok=True)
    return place


def _read_manifest(archive: Folder | Tar, place: Path) -> Manifest:
    blob = archive.blob(MANIFEST)
    # Before it is copied, let alone parsed.
    if blob.size_bytes > MAX_MANIFEST_BYTES:
        raise BundleError(f"{place}: {MANIFEST} has {blob.size_bytes} bytes; the most that is read is {MAX_MANIFEST_BYTES}")
    try:
        return decode(bytes(blob.view()))
    except BundleError as error:
        raise BundleError(f"{place}: {error}") from None


def _check_sizes(place: Path, manifest: Manifest, blobs: Mapping[str, Blob]) -> None:
    for name, entry in manifest.files.items():
        if blobs[name].size_bytes != entry.size_bytes:
            raise BundleError(
                f"{place}: {name} has {blobs[name].size_bytes} bytes, the manifest says {entry.size_bytes}; copy it again"
            )


def _damaged(place: Path, name: str) -> BundleError:
    return BundleError(f"{place}: {name} is damaged: its SHA-256 is not the manifest's; copy the bundle again")


def _list_files(directory: Path) -> dict[str, FileEntry]:
    folder = Folder(directory)
    try:
        paths = sorted(
            path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()
        )
        blobs = {path: folder.blob(path) for path in paths}
        return {path: FileEntry(blob.sha256(), blob.size_bytes) for path, blob in blobs.items()}
    finally:
        folder.close()


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")


def check_place(path: Path, force: bool) -> None:
    """Raise InputError where a bundle cannot be put at `path`: no folder, or taken (with `force`: by anything but a bundle)."""
    _check_parent(path)
    if not os.path.lexists(path):
        return
    if not force:
        raise InputError(f"{path} already exists; use --force to replace it, or choose another place")
    if not _is_bundle(path):
        raise InputError(f"{path} is not a bundle, so --force does not replace it; remove it, or choose another place")


def _is_bundle(path: Path) -> bool:
    """Tell a bundle of any format from a folder that happens to have some manifest.json."""
    manifest = path / MANIFEST
    if path.is_symlink() or not manifest.is_file() or manifest.stat().st_size > MAX_MANIFEST_BYTES:
        return False
    try:
        decode_stamp(manifest.read_bytes())
    except BundleError:
        return False
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _full_disk(path, error) from error
        raise ExportError(f"cannot write {path}: {error.strerror}") from error


def _full_disk(path: Path, error: OSError) -> ExportError:
    free = shutil.disk_usage(path.parent).free
    return ExportError(
        f"cannot write {path}: {error.strerror} ({free >> 20} MiB are free there); make room, or choose another place"
    )
