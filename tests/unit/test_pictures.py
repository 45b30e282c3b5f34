"""The one reader of pictures: orientation, depth, ids of labels, clutter."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ppar_dist import pictures
from ppar_dist.pictures import PictureError, is_clutter, label_ids, open_label, open_picture, read_photo

ORIENTATION = 0x112
PIXELS = (np.arange(6 * 4 * 3).reshape(6, 4, 3) * 3).astype(np.uint8)


def encode(pixels: np.ndarray, form: str, **options: object) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, form, **options)
    return packed.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes]) -> bytes:
    """A PNG made by hand, of any bit depth."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_applied_as_pillow_does(form: str, turn: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    raw = encode(PIXELS, form, exif=exif)
    with Image.open(io.BytesIO(raw)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_photo(raw)), expected)
    assert pictures.photo_size(open_picture(raw)) == expected.shape[1::-1]


def test_an_orientation_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    raw = encode(PIXELS, "PNG", exif=exif)
    start = raw.index(b"eXIf") - 4
    length = int.from_bytes(raw[start : start + 4], "big") + 12
    end = raw.index(b"IEND") - 4
    moved = raw[:start] + raw[start + length : end] + raw[start : start + length] + raw[end:]
    np.testing.assert_array_equal(np.asarray(read_photo(moved)), PIXELS[::-1, ::-1])
    assert pictures.orientation(open_picture(moved)) == 3


@pytest.mark.parametrize("nonsense", [0, 9, 200])
def test_an_orientation_that_does_not_exist_is_none(nonsense: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = nonsense
    np.testing.assert_array_equal(np.asarray(read_photo(encode(PIXELS, "PNG", exif=exif))), PIXELS)


def test_sixteen_bits_fill_eight_by_the_full_range_of_the_type() -> None:
    values = np.linspace(0, 65535, 24).reshape(6, 4).astype(np.uint16)
    found = np.asarray(read_photo(encode(values, "PNG")))
    np.testing.assert_array_equal(found, np.rint(values / 257)[..., None].repeat(3, 2))
    np.testing.assert_array_equal(np.asarray(read_photo(encode(values, "TIFF"))), found)


def test_twelve_bits_are_refused_without_their_range() -> None:
    values = np.linspace(0, 4095, 24).reshape(6, 4).astype(np.uint16)
    with pytest.raises(PictureError, match=r"of 16-bit values that end at 4095, .*--range 0 4095"):
        read_photo(encode(values, "PNG"))
    found = np.asarray(read_photo(encode(values, "PNG"), (0, 4095)))[..., 0]
    np.testing.assert_array_equal(found, np.rint(values * (255 / 4095)))
    dark = np.asarray(read_photo(encode(values, "PNG"), (0, 65535)))
    assert dark.max() == 16, "a range that is given is believed"


def test_sixteen_bit_colours() -> None:
    values = np.array([[[0, 30000, 65535], [4095, 2048, 300]]], ">u2")
    raw = png(2, 1, 16, 2, [values.tobytes()])
    np.testing.assert_allclose(np.asarray(read_photo(raw)), values / 257, atol=1)
    expected = np.rint(np.clip(values / 4095, 0, 1) * 255)
    np.testing.assert_array_equal(np.asarray(read_photo(raw, (0, 4095))), expected)


def test_floats_need_a_range_and_finite_values() -> None:
    values = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
    with pytest.raises(PictureError, match="floats, whose range is not known; give --range") as error:
        read_photo(encode(values, "TIFF"))
    assert error.value.reason == "depth"
    found = np.asarray(read_photo(encode(values, "TIFF"), (0, 1)))[..., 0]
    np.testing.assert_array_equal(found, np.rint(np.clip(values, 0, 1) * 255))
    values[0, 0] = np.nan
    with pytest.raises(PictureError, match="not finite"):
        read_photo(encode(values, "TIFF"), (0, 1))


def test_several_pages_are_no_picture() -> None:
    packed = io.BytesIO()
    first = Image.fromarray(PIXELS)
    first.save(packed, "TIFF", save_all=True, append_images=[first, first])
    with pytest.raises(PictureError, match="of 3 pages or frames"):
        read_photo(packed.getvalue())


def test_the_two_views_of_a_phone_are_their_first() -> None:
    packed = io.BytesIO()
    first = Image.fromarray(PIXELS)
    first.save(packed, "MPO", save_all=True, append_images=[Image.fromarray(255 - PIXELS)])
    np.testing.assert_allclose(np.asarray(read_photo(packed.getvalue())), PIXELS, atol=30)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "LAB"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode: str) -> None:
    packed = io.BytesIO()
    image = Image.fromarray(PIXELS)
    image = image.convert("L").convert("LA") if mode == "LA" else image
    image = Image.new("LAB", (4, 6), (100, 20, 30)) if mode == "LAB" else image.convert(mode)
    image.save(packed, "TIFF" if mode in ("CMYK", "LAB") else "PNG")
    expected = np.asarray(Image.open(io.BytesIO(packed.getvalue())).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_photo(packed.getvalue())), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour", [0, 3])
def test_ids_are_the_stored_numbers_at_any_depth(depth: int, colour: int) -> None:
    if colour == 3 and depth == 16:
        pytest.skip("PNG has no palette of 16 bits")
    ids = np.arange(16).reshape(2, 8) % (1 << min(depth, 4))
    if depth == 16:
        ids = ids + 300
        rows = [row.astype(">u2").tobytes() for row in ids]
    else:
        bits = [format(value, f"0{depth}b") for value in ids.ravel()]
        text = "".join(bits)
        packed = bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))
        rows = [packed[: len(packed) // 2], packed[len(packed) // 2 :]]
    raw = png(8, 2, depth, colour, rows)
    if colour == 3:  # a palette between header and data
        palette = bytes(range(3 * (1 << depth)) if depth < 8 else [n % 256 for n in range(768)])
        chunk = struct.pack(">I", len(palette)) + b"PLTE" + palette
        chunk += struct.pack(">I", zlib.crc32(b"PLTE" + palette))
        raw = raw[:33] + chunk + raw[33:]
    np.testing.assert_array_equal(label_ids(open_label(raw)), ids)


def test_labels_of_colours_with_transparency_or_turned_are_refused() -> None:
    for pixels in (PIXELS, np.dstack([PIXELS, PIXELS[..., :1]]), PIXELS[..., :2]):
        with pytest.raises(PictureError, match="a label is a PNG of one channel"):
            open_label(encode(pixels, "PNG"))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    with pytest.raises(PictureError, match="turned by an EXIF orientation"):
        open_label(encode(PIXELS[..., 0], "PNG", exif=exif))


def test_too_many_pixels_are_not_decoded(tmp_path: Path) -> None:
    raw = png(20_000, 20_000, 8, 0, [b""])
    with pytest.raises(PictureError, match=r"too large .20000x20000., at most 89478485 pixels"):
        read_photo(raw)
    with pytest.raises(PictureError, match=r"not a readable .*; replace it"):
        read_photo(b"%PDF-1.7")
    with pytest.raises(PictureError, match="no such file"):
        read_photo(tmp_path / "nothing.png")


@pytest.mark.parametrize(
    "name",
    [
        "._a.jpg",
        ".DS_Store",
        "a/.ipynb_checkpoints/a-checkpoint.jpg",
        "Thumbs.db",
        "__MACOSX/a.jpg",
        "x/@eaDir/a.jpg",
    ],
)
def test_clutter(name: str) -> None:
    assert is_clutter(name)


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "../a.jpg", "a.b/c.jpg", "thumbs.jpg"])
def test_no_clutter(name: str) -> None:
    assert not is_clutter(name)
