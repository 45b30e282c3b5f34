"""The one reader of pictures: orientation, depth, ids of labels, clutter."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ppar_dist import pictures
from ppar_dist.data.shards.sample import encode_label
from ppar_dist.pictures import PictureError, Span, is_clutter, label_ids, open_label, open_picture, photo_rgb

ORIENTATION = 0x112
PIXELS = (np.arange(6 * 4 * 3).reshape(6, 4, 3) * 3).astype(np.uint8)


def encode(pixels: np.ndarray, form: str, **options: object) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, form, **options)
    return packed.getvalue()


def read_photo(source: Path | bytes, span: Span | None = None) -> Image.Image:
    with open_picture(source) as image:
        return photo_rgb(image, span)


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


def grey_png(rows: bytes, packed: bytes | None = None) -> bytes:
    """A PNG of 11x7 grey pixels: rows behind their filters, or bytes instead of their compressed form."""
    content = zlib.compress(rows) if packed is None else packed
    empty = png(11, 7, 8, 0, [])
    kind, at = b"IDAT", empty.index(b"IDAT") - 4
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return empty[:at] + struct.pack(">I", len(content)) + kind + content + crc + empty[-12:]


IDS = np.random.default_rng(5).integers(0, 256, (7, 11)).astype(np.uint8)
ROWS = b"".join(b"\0" + row.tobytes() for row in IDS)


@pytest.mark.parametrize(
    "raw",
    [
        encode_label(IDS),
        grey_png(ROWS),
        encode(IDS, "PNG"),  # with filters
        grey_png(b"\1" + ROWS[1:12] + ROWS[12:]),  # one row with a filter
        grey_png(ROWS + b"\0" * 12),  # a row too many
        grey_png(ROWS[:-12]),  # a row too few
        encode_label(IDS)[:-20],  # cut off behind the pixels
        grey_png(ROWS).replace(b"IEND", b"tIME"),  # no end
    ],
)
def test_plain_labels_are_read_as_pillow_reads_them(raw: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(raw)))
    np.testing.assert_array_equal(label_ids(open_label(raw)), expected)


def test_what_prepare_writes_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "asarray", None)  # what Pillow's pixels would be taken with
    np.testing.assert_array_equal(label_ids(open_label(encode_label(IDS))), IDS)


@pytest.mark.parametrize(
    "raw",
    [
        encode_label(IDS)[:-40],  # cut off
        grey_png(b"", zlib.compress(ROWS)[:-9]),
        grey_png(b"", b"\x78\x9c" + bytes(30)),
        grey_png(b"\7" + ROWS[1:]),  # no such filter
    ],
)
def test_damaged_labels_are_refused_as_pillow_refuses_them(raw: bytes) -> None:
    with pytest.raises((OSError, SyntaxError, ValueError)):
        Image.open(io.BytesIO(raw)).load()
    with pytest.raises(PictureError, match="not a readable PNG"):
        label_ids(open_label(raw))


def test_a_bomb_is_inflated_no_further_than_its_pixels() -> None:
    raw = grey_png(ROWS + bytes(1 << 26))
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(label_ids(open_label(raw)), IDS)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


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


def ppm(kind: bytes, values: np.ndarray, white: int) -> bytes:
    head = b"%s\n%d %d\n%d\n" % (kind, values.shape[1], values.shape[0], white)
    return head + values.astype(">u2").tobytes()


def test_deep_ppms_are_read_by_their_range_or_refused() -> None:
    grey = np.arange(0, 65536, 257).reshape(16, 16)
    expected = np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2)
    for raw in (ppm(b"P5", grey, 65535), ppm(b"P6", np.repeat(grey[..., None], 3, axis=2), 65535)):
        np.testing.assert_array_equal(np.asarray(read_photo(raw)), expected)
    np.testing.assert_array_equal(np.asarray(read_photo(ppm(b"P5", grey // 16, 65535), (0, 4095))), expected)
    dark = np.full((4, 4, 3), 4095)
    with pytest.raises(PictureError, match="nearly black on the full range"):
        read_photo(ppm(b"P6", dark, 65535))
    with pytest.raises(PictureError, match="16-bit colours in PPM; a range needs PNG"):
        read_photo(ppm(b"P6", dark, 65535), (0, 4095))
    # Pillow has stretched these before the range is applied.
    assert np.asarray(read_photo(ppm(b"P5", dark[..., 0], 4095))).min() == 255
    with pytest.raises(PictureError, match="values up to 4095, which fill its range; leave --range out"):
        read_photo(ppm(b"P5", dark[..., 0], 4095), (0, 4095))


def tiff(pixels: np.ndarray, photometric: int, sample_format: int) -> bytes:
    """A grey TIFF of one strip, written from the specification."""
    height, width = pixels.shape
    bits = 8 * pixels.itemsize
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 120 + 4)]
    entries += [(277, 1), (278, height), (279, pixels.nbytes), (339, sample_format)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + pixels.tobytes()


def test_tiffs_whose_values_would_be_others_are_refused() -> None:
    deep = np.arange(0, 65536, 257, dtype="<u2").reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(read_photo(tiff(deep, 1, 1)))[..., 0], deep // 257)
    with pytest.raises(PictureError, match="white as 0"):
        read_photo(tiff(deep, 0, 1))
    shallow = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(read_photo(tiff(shallow, 0, 1)))[..., 0], 255 - shallow)
    with pytest.raises(PictureError, match="signed values in 8 bits"):
        read_photo(tiff(shallow.view(np.int8), 1, 2))
