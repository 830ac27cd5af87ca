"""Images in files: what goes out comes back, and a bad file is one line."""

import io
import struct
import zlib

import numpy as np
import pytest

from edgegen import media
from edgegen.errors import InputError
from edgegen.media import drawn, read_folder, read_image, sheet, with_channels, write_folder, write_png

pytest.importorskip("PIL")
from PIL import Image


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def one_line(path, **options):
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_written_is_read_back(tmp_path, channels):
    pixels = random_pixels(5, 7, channels)
    write_png(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]  # no partial file is left


def test_metadata_is_text_chunks(tmp_path):
    write_png(tmp_path / "a.png", random_pixels(2, 2, 3), {"seed": "3", "prompt": "ein Fuchs 狐"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"seed": "3", "prompt": "ein Fuchs 狐"}
    assert b"tEXtseed\x003" in (tmp_path / "a.png").read_bytes()


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_png(tmp_path / "no" / "a.png", random_pixels(2, 2, 3))
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_png(tmp_path / "taken", random_pixels(2, 2, 3))
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.float32), np.zeros((0, 2, 3), np.uint8)]
)
def test_pixels_that_are_no_image_are_refused(tmp_path, pixels):
    with pytest.raises(InputError, match=r"uint8 \[height, width, channel\]"):
        write_png(tmp_path / "a.png", pixels)


def test_a_sheet_has_every_image_at_its_place():
    pixels = random_pixels(5, 3, 4, 3)
    whole = sheet(pixels, gap=1)
    assert whole.shape == (2 * 3 + 1, 3 * 4 + 2, 3)
    np.testing.assert_array_equal(whole[0:3, 5:9], pixels[1])
    np.testing.assert_array_equal(whole[4:7, 5:9], pixels[4])
    assert (whole[4:7, 10:] == 255).all()  # the sixth place is empty
    assert sheet(pixels, columns=5, gap=0).shape == (3, 20, 3)


def test_places_are_drawn_from_all_over_the_same_ones_each_time():
    places = drawn(10_000, 100)
    assert places == drawn(10_000, 100) == sorted(set(places))
    # The mean of 100 of them, within 4 sigma of the middle: each has a deviation of 10,000 / sqrt(12).
    assert abs(np.mean(places) - 5000) < 4 * 10_000 / np.sqrt(12 * 100)
    assert drawn(3, 7) == [0, 1, 2]


def test_a_folder_is_written_and_read_in_order(tmp_path):
    pixels = random_pixels(3, 4, 5, 1)
    files = write_folder(tmp_path / "out", pixels, ["0", "1", "2"], [{"seed": str(i)} for i in range(3)])
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(read_folder(tmp_path / "out"), pixels)
    np.testing.assert_array_equal(read_folder(tmp_path / "out", most=2), pixels[drawn(3, 2)])
    assert read_folder(tmp_path / "out", channels=3).shape == (3, 4, 5, 3)
    write_png(tmp_path / "out" / "3.png", random_pixels(5, 5, 1))
    with pytest.raises(InputError, match=r"3\.png is 5 x 5, .*0\.png is 5 x 4"):
        read_folder(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in"):
        read_folder(tmp_path / "empty")
    with pytest.raises(InputError, match="cannot read the folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match="cannot make the folder"):
        write_folder(files[0], pixels, ["0", "1", "2"])


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    pixels, whole = random_pixels(3, 4, 5, 1), media.write_png

    def fill_up(path, *rest):
        if path.name == "2.png":
            raise InputError("the disk is full")
        whole(path, *rest)

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").touch()
    monkeypatch.setattr(media, "write_png", fill_up)
    for name in ("new", "there"):
        with pytest.raises(InputError, match="disk is full"):
            write_folder(tmp_path / name, pixels, ["0", "1", "2"])
    assert sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")) == ["there", "there/mine.txt"]


def test_16_bit_grey_is_rounded_to_8(tmp_path):
    deep = np.array([[0, 128, 129, 257, 65535, 65278]], np.uint16)  # 128 / 257 is below a half, 129 / 257 above
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[:, :, 0].tolist() == [[0, 0, 1, 1, 255, 254]]


def test_16_bits_of_a_pgm_and_of_a_big_endian_tiff_are_read_alike(tmp_path):
    deep = np.array([[0, 257, 65535]], np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535 " + deep.astype(">u2").tobytes())
    Image.fromarray(deep.astype(">u2")).save(tmp_path / "a.tiff")
    for name in ("a.pgm", "a.tiff"):
        assert read_image(tmp_path / name)[:, :, 0].tolist() == [[0, 1, 255]]


def test_32_bit_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tiff")
    assert "32-bit" in one_line(tmp_path / "a.tiff")


def test_palettes_bits_and_cmyk_become_plain_colours(tmp_path):
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0] = (255, 0, 0)
    Image.fromarray(pixels).convert("P").save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), pixels)
    Image.fromarray(pixels).convert("P").save(tmp_path / "clear.png", transparency=0)
    assert read_image(tmp_path / "clear.png").shape == (2, 2, 4)
    Image.new("1", (3, 2), 1).save(tmp_path / "bits.png")
    assert (read_image(tmp_path / "bits.png") == 255).all()
    assert read_image(tmp_path / "bits.png").shape == (2, 3, 1)
    Image.new("LA", (3, 2), (9, 5)).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png")[0, 0].tolist() == [9, 9, 9, 5]
    Image.new("CMYK", (3, 2), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert (read_image(tmp_path / "cmyk.jpg") == 255).all()


def test_the_exif_orientation_turns_the_image_upright(tmp_path):
    pixels = random_pixels(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, -1))


def test_channels_change_only_where_nothing_is_lost(tmp_path):
    grey, colour = random_pixels(2, 2, 1), random_pixels(2, 2, 3)
    np.testing.assert_array_equal(with_channels(with_channels(grey, 4), 1), grey)
    np.testing.assert_array_equal(with_channels(with_channels(colour, 4), 3), colour)
    write_png(tmp_path / "colour.png", colour)
    assert "in colour, grey is wanted" in one_line(tmp_path / "colour.png", channels=1)
    write_png(tmp_path / "clear.png", random_pixels(2, 2, 4))
    assert "transparency, RGB is wanted" in one_line(tmp_path / "clear.png", channels=3)
    with pytest.raises(InputError, match="2 channels were asked for"):
        with_channels(grey, 2)


def test_what_is_no_image_is_one_line(tmp_path):
    assert "no image at" in one_line(tmp_path / "none.png")
    assert "no image at" in one_line(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    assert "cannot read" in one_line(tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "cannot read" in one_line(tmp_path / "empty.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_a_truncated_file_of_any_kind_is_one_line(tmp_path, kind):
    whole = io.BytesIO()
    Image.fromarray(random_pixels(40, 40, 3)).save(whole, format={"jpg": "JPEG"}.get(kind, kind.upper()))
    for share in (0.1, 0.5, 0.8):
        path = tmp_path / f"{share}.{kind}"
        path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
        assert "cannot read" in one_line(path)


def test_damaged_bytes_never_give_a_traceback(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(random_pixels(16, 16, 3)).save(whole, format="PNG")
    rng, path = np.random.default_rng(1), tmp_path / "a.png"
    refused = 0
    for _ in range(200):
        data = bytearray(whole.getvalue())
        for place in rng.integers(8, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_image(path)
        except InputError:
            refused += 1
    assert refused > 100  # most changes break a checksum


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for width, height in ((10_000, 10_000), (60_000, 60_000)):  # pillow warns at the first, and refuses the second itself
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))
        said = one_line(tmp_path / "bomb.png")
        assert f"{media.MAX_PIXELS} pixels" in said
        assert "DOS" not in said
    monkeypatch.setattr(media, "MAX_FILE_BYTES", 10)
    assert "bytes" in one_line(tmp_path / "bomb.png")


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_an_animated_image_is_one_line(tmp_path, kind):
    frames = [Image.fromarray(random_pixels(8, 8, 3)), Image.new("RGB", (8, 8), "red")]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
    assert "animated or has several pages (2)" in one_line(tmp_path / f"a.{kind}")


def test_without_pillow_the_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    (tmp_path / "a.png").write_bytes(b"")
    for call in (lambda: read_image(tmp_path / "a.png"), lambda: write_png(tmp_path / "b.png", random_pixels(2, 2, 3))):
        with pytest.raises(InputError, match=r'pip install "edgegen\[media\]"'):
            call()
