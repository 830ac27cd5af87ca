"""Images in files: PNG out, with what made them inside; any common still image in, as a stranger's file.

Arrays are uint8 [height, width, channel]: 1 channel is grey, 3 are RGB, 4 are RGBA.
"""

import contextlib
import math
import shutil
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

MAX_PIXELS = 1 << 26  # 64 megapixels, 256 MiB as RGBA: more than any camera that a model of today is fed from
MAX_FILE_BYTES = 1 << 28
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others have readers that few people look after
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_KINDS = {1: "grey", 3: "RGB", 4: "RGBA"}


def write_png(path: Path, pixels: Pixels, metadata: Mapping[str, str] | None = None) -> None:
    """Write one PNG, whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        pixels: uint8 [height, width, channel].
        metadata: text chunks by keyword (PNG third edition, 11.3.3); none if None.

    Raises:
        InputError: the pixels are no image, pillow is missing, or the file cannot be written.
    """
    _check_pixels(pixels, 3)
    module = _pillow()
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for keyword, text in (metadata or {}).items():
        info.add_text(keyword, text)  # becomes iTXt where the text is not Latin-1
    partial = path.with_name(f".{path.name}.partial")
    try:
        module.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])).save(
            partial, format="PNG", pnginfo=info
        )
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_folder(folder: Path, pixels: Pixels, names: Sequence[str], metadata: Sequence[Mapping[str, str]] = ()) -> list[Path]:
    """Write each image of uint8 [image, height, width, channel] to `folder`, made where it is missing, as its name with .png.

    All of them or none. Returns the files. Raises InputError as `write_png` does, or where `folder` is a file.
    """
    _check_pixels(pixels, 4)
    done: list[Path] = []
    with _making(folder):
        is_new = not folder.exists()
    try:
        with _making(folder):
            folder.mkdir(exist_ok=True)
        for index, (name, image) in enumerate(zip(names, pixels, strict=True)):
            file = folder / f"{name}.png"
            write_png(file, image, metadata[index] if metadata else None)
            done.append(file)
    except BaseException:  # a full disk, Ctrl-C at any moment: some of the images are not what was asked for
        for file in done:
            file.unlink(missing_ok=True)
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return done


@contextlib.contextmanager
def _making(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def sheet(pixels: Pixels, columns: int | None = None, gap: int = 2) -> Pixels:
    """Lay uint8 [image, height, width, channel] out as one image, row by row, on white.

    Args:
        pixels: the images.
        columns: images in a row; as near to a square as can be if None.
        gap: pixels between images, and none around them.

    Returns:
        uint8 [height, width, channel].
    """
    _check_pixels(pixels, 4)
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = (height + gap) * (index // columns), (width + gap) * (index % columns)
        whole[top : top + height, left : left + width] = image
    return whole


def read_image(path: Path, channels: int | None = None) -> Pixels:
    """Read a still image that a stranger made, turned upright (EXIF orientation).

    Args:
        path: of a file in one of `FORMATS`.
        channels: 1, 3 or 4: how many are wanted; the file's own if None. Converted only where nothing is lost.

    Returns:
        uint8 [height, width, channel]. 16 bits become 8, palettes and CMYK become RGB, a transparent colour becomes RGBA.

    Raises:
        InputError: in one line: missing, no image, damaged, animated, larger than `MAX_PIXELS` or `MAX_FILE_BYTES`, or with
            colours or transparency that `channels` has no room for.
    """
    module = _pillow()
    from PIL import ImageOps

    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if size is None:
        raise InputError(f"no image at {path}; give a file of the kind {', '.join(FORMATS)}")
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path} has {size} bytes; an image may have {MAX_FILE_BYTES} at most")
    with _reading(path), module.open(path, formats=FORMATS) as image:
        _check_header(path, image)
        image.load()
        pixels = _to_pixels(path, ImageOps.exif_transpose(image), str(image.format))
    return pixels if channels is None else with_channels(pixels, channels, str(path))


def read_folder(folder: Path, channels: int | None = None, most: int | None = None) -> Pixels:
    """Read the images of a folder in the order of their names; all must have the same size.

    Returns uint8 [image, height, width, channel]; with `most`, those that `drawn` draws. Raises InputError as `read_image`
    does, or where there are none, or sizes differ.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    if not files:
        raise InputError(f"no images in {folder}; give a folder of {', '.join(SUFFIXES)} files")
    files = files if most is None else [files[place] for place in drawn(len(files), most)]
    first = read_image(files[0], channels)
    images = [first]
    for file in files[1:]:
        images.append(read_image(file, first.shape[2]))
        if images[-1].shape != first.shape:
            raise InputError(f"{file} is {_size(images[-1])}, {files[0]} is {_size(first)}; images of one folder have one size")
    return np.stack(images)


def drawn(count: int, most: int) -> list[int]:
    """Draw `most` of `count` places, in order, the same ones each time: the first of a sorted set are of one kind."""
    return sorted(np.random.default_rng(0).permutation(count)[:most].tolist())


def with_channels(pixels: Pixels, channels: int, name: str = "the image") -> Pixels:
    """Give uint8 [height, width, channel] another number of channels, where nothing is lost.

    Raises InputError where colours or transparency would be.
    """
    if channels not in _KINDS:
        raise InputError(f"{channels} channels were asked for; an image has 1, 3 or 4")
    if pixels.shape[2] == 4 and channels != 4:
        if (pixels[:, :, 3] != 255).any():
            raise InputError(f"{name} has transparency, {_KINDS[channels]} is wanted; put it on a background first")
        pixels = pixels[:, :, :3]
    if channels == 1 and pixels.shape[2] == 3:
        if (pixels != pixels[:, :, :1]).any():
            raise InputError(f"{name} is in colour, grey is wanted; convert it first")
        pixels = pixels[:, :, :1]
    if pixels.shape[2] == 1 and channels > 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if channels == 4 and pixels.shape[2] == 3:
        pixels = np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 255, np.uint8)], axis=2)
    return np.ascontiguousarray(pixels)


def _check_header(path: Path, image: "Image") -> None:
    """What can be known before a pixel is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{path} is {width} x {height}; an image may have {MAX_PIXELS} pixels at most")
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise InputError(f"{path} is animated or has several pages ({frames}); give one still image")


def _to_pixels(path: Path, image: "Image", kind: str) -> Pixels:
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in {"PNG", "PPM"}):  # whose most is 65535
        deep = np.asarray(image).astype(np.uint32)
        return ((deep * 255 + 32767) // 65535).astype(np.uint8)[:, :, None]  # rounded to the nearest
    if image.mode in {"I", "F"}:
        raise InputError(f"{path} has 32-bit pixels, whose black and white are unknown; convert it to 8 or 16 bits")
    clear = "transparency" in image.info or image.mode in {"LA", "PA", "La", "RGBa"}
    mode = "RGBA" if clear else {"1": "L", "L": "L", "RGBA": "RGBA"}.get(image.mode, "RGB")
    pixels = np.array(image if image.mode == mode else image.convert(mode), np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pillow raises on a bad file into one line."""
    wrong_content = (
        *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError),
        *(RuntimeError, AssertionError, struct.error, zlib.error),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size is checked here; a damaged EXIF block only loses the orientation
            yield
    except InputError:
        raise
    except _pillow().DecompressionBombError as error:
        raise InputError(f"{path} has far more than {MAX_PIXELS} pixels, the most that an image may have") from error
    except wrong_content as error:
        first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"cannot read {path} as an image: {first_line[:200]}") from error


def _check_pixels(pixels: Pixels, rank: int) -> None:
    names = ("image", "height", "width", "channel")[-rank:]
    good = pixels.dtype == np.uint8 and pixels.ndim == rank and pixels.size > 0 and pixels.shape[-1] in _KINDS
    if not good:
        said = f"{pixels.dtype}{list(pixels.shape)}"
        raise InputError(f"images are uint8 [{', '.join(names)}] with 1, 3 or 4 channels, not {said}")


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f'image files need pillow, which cannot be imported; pip install "edgegen[media]" ({error})'
        ) from error
    return Image
