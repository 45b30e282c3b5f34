"""The one reader of pictures: photos become upright RGB of 8 bits, labels the ids that they store.

Training, ``prepare``, ``index``, ``evaluate`` and ``predict`` all read through it, so the same file has the
same pixels everywhere. Its rules:

- A photo is turned as its EXIF orientation says.
- A photo of more than 8 bits is scaled to 8: values LOW to HIGH of a given range become 0 to 255. Without a
  range 16-bit values are scaled by the full range of their type; a picture that would end nearly black is
  refused instead (a sensor of 12 bits fills a sixteenth of the range), and so are 32-bit values and floats,
  whose range is not known.
- CMYK, grey, palette and transparent photos become RGB as Pillow converts them; transparency is dropped.
- A label is a PNG of one channel. Its ids are the stored numbers, whatever the bit depth; a palette gives its
  indices.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError
from zlib_ng import zlib_ng

from ppar_dist.errors import UserError
from ppar_dist.text import one_line

Span = tuple[float, float]  # values that become 0 and 255

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM")  # JPEG: those of several views (MPO) too
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm"})
"""Endings of photo files, in lower case."""

MAX_PIXELS = 89_478_485  # of a picture by default: Pillow's own bound, up to which it is silent
_DARK = 32  # of 255: a picture without a brighter value fills less than an eighth of its range
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})
_UPRIGHT = 1
_EXIF = ("exif", "xmp")  # of Image.info
_PNG_KEYWORDS = (
    b"XML:com.adobe.xmp",
    b"Raw profile type exif",
    b"Raw profile type APP1",
    b"Raw profile type xmp",
)
_LONGEST_KEYWORD = 24  # bytes
_PIXELS = 41  # where they begin in a PNG that has nothing between header and pixels
_PLAIN = bytes(
    [8, 0, 0, 0, 0]
)  # of the header: 8 bits, grey, the one compression and filter method, in one pass
# EXIF orientation → what makes it upright (EXIF 2.32, tag 274).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN = (1 << 16) - 1

# The bound is held here, for every file, and may be raised by a caller that knows its files.
Image.MAX_IMAGE_PIXELS = None

# What Pillow's parsers raise for bytes that are not an image of the format, cut off, or malicious.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError),
    *(struct.error, zlib.error, RuntimeError, Image.DecompressionBombError),
)


class PictureError(UserError):
    """A picture that cannot be used; ``reason`` is unreadable, too_large, depth, pages or mode.

    The message completes "the picture is …".
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str]]:
        return PictureError, (self.reason, str(self))


def is_clutter(path: PurePath | str) -> bool:
    """Whether a relative path is, or is in, what file managers and notebooks leave behind.

    That is every dot name (``._a.jpg``, ``.DS_Store``, ``.ipynb_checkpoints``), ``Thumbs.db`` and the like.
    """
    parts = PurePath(path).parts
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in _CLUTTER for part in parts
    )


def open_picture(
    source: Path | bytes, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """A picture with its header read and its pixels not yet decoded.

    Raises:
        PictureError: not a readable picture of these formats, more than ``max_pixels``, or several pages.
    """
    try:
        image: Image.Image = Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, "r", formats
        )
        pages = getattr(image, "n_frames", 1) if image.format not in ("JPEG", "MPO") else 1
    except FileNotFoundError:
        raise PictureError("unreadable", "no such file; check the path") from None
    except UNREADABLE as error:
        known = ", ".join(formats)
        raise PictureError("unreadable", f"not a readable {known} ({_said(error)}); replace it") from None
    if image.width * image.height > max_pixels:
        found = f"{image.width}x{image.height}"
        detail = f"too large ({found}), at most {max_pixels} pixels are decoded; shrink it"
        raise PictureError("too_large", detail)
    if pages > 1:
        raise PictureError("pages", f"of {pages} pages or frames; store them one by one")
    _refuse_misread_tiff(image)
    return image


def _refuse_misread_tiff(image: Image.Image) -> None:
    """Refuse TIFFs whose values Pillow gives as others: signed bytes, and white as 0 beyond 8 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    signed = 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ())
    if signed and image.mode not in ("I", "F"):
        raise PictureError("depth", "of signed values in 8 bits; store them from 0 to 255")
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 and is_deep(image):
        raise PictureError("depth", "of more than 8 bits with white as 0 (MinIsWhite); store black as 0")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened picture, 1 (upright) to 8; 1 where it has none, or nonsense."""
    if not _has_exif(image):  # asking Pillow costs more than a header, and decodes a PNG
        return _UPRIGHT
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except UNREADABLE:
        return _UPRIGHT
    return found if isinstance(found, int) and 1 <= found <= 8 else _UPRIGHT


def photo_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened photo when it is upright."""
    return (image.height, image.width) if orientation(image) > 4 else image.size


def is_deep(image: Image.Image) -> bool:
    """Whether an opened picture stores more than 8 bits a channel."""
    deep = image.mode in ("I", "F") or ";16" in image.mode or ";16" in _raw_mode(image)
    return deep or _ppm_white(image) > 255


def photo_rgb(image: Image.Image, span: Span | None = None) -> Image.Image:
    """Decode an opened photo: RGB, 8 bits, upright.

    Args:
        image: from ``open_picture``.
        span: the values that become 0 and 255, of a photo with more than 8 bits; others ignore it.

    Raises:
        PictureError: it is cut off or corrupt, or its depth needs a span.
    """
    turn = orientation(image)
    try:
        rgb = _scaled(image, span) if is_deep(image) else image.convert("RGB")
        if turn == _UPRIGHT:
            return rgb
        return rgb.transpose(_TURNS[turn])
    except PictureError:
        raise
    except UNREADABLE as error:
        detail = f"cut off or corrupt ({one_line(error)}); replace it"
        raise PictureError("unreadable", detail) from None


def check_span(span: Span) -> Span:
    """Raises UserError unless LOW and HIGH are numbers and LOW is below HIGH."""
    low, high = span
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--range is LOW HIGH with LOW below HIGH, got {low:g} {high:g}; for 12 bits: 0 4095")
    return span


def open_label(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A label PNG with its header read.

    Raises:
        PictureError: not a PNG of one channel, or one with an orientation.
    """
    image = open_picture(source, ("PNG",), max_pixels)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        detail = f"of mode {image.mode}; a label is a PNG of one channel that holds ids, convert it"
        raise PictureError("mode", detail)
    refuse_turned(image, source, max_pixels)
    return image


def refuse_turned(image: Image.Image, source: Path | bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Raise PictureError for a label PNG, opened from that source, with an orientation."""
    # Asked of another one: it may be decoded for that.
    if _has_exif(image) and orientation(open_picture(source, ("PNG",), max_pixels)) != _UPRIGHT:
        detail = "turned by an EXIF orientation, which programs treat differently; store it upright"
        raise PictureError("mode", detail)


def label_ids(image: Image.Image) -> NDArray[np.integer[Any]]:
    """The stored numbers of a label from ``open_label``, (H, W) uint8, or uint16 of a 16-bit PNG."""
    plain = _plain_ids(image)
    if plain is not None:
        return plain
    raw_mode = _raw_mode(image)  # forgotten once the pixels are decoded
    try:
        values: NDArray[Any] = np.asarray(image)
    except UNREADABLE as error:
        raise PictureError("unreadable", f"not a readable PNG ({_said(error)}); replace it") from None
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if image.mode.startswith("I"):
        return values.astype(np.uint16)
    # Pillow stretches grey values of 2 and 4 bits to the range of 8.
    stretch = {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
    return values if stretch == 1 else values // np.uint8(stretch)


def _plain_ids(image: Image.Image) -> NDArray[np.uint8] | None:
    """The ids of a label as `prepare` writes it: grey, 8 bits, one chunk of rows without filters.

    Several times as fast as Pillow, which decodes, or refuses, all else: None of it and of what is damaged.
    """
    stream = _stream(image)
    if stream is None:
        return None
    stream.seek(0)
    raw = stream.read()
    end = _PIXELS + int.from_bytes(raw[33:37], "big")  # the header stands at 8 to 33
    whole = raw[24:29] == _PLAIN and raw[37:_PIXELS] == b"IDAT" and raw[end + 8 : end + 12] == b"IEND"
    if not whole or zlib.crc32(raw[37:end]) != int.from_bytes(raw[end : end + 4], "big"):
        return None
    rows, inflate = image.height * (1 + image.width), zlib_ng.decompressobj()
    try:
        pixels = inflate.decompress(raw[_PIXELS:end], rows + 1)  # never more, whatever the chunk holds
    except zlib_ng.error:  # type: ignore[misc]  # it is a class, whatever its stub says
        return None
    if len(pixels) != rows or not inflate.eof:
        return None
    ids = np.frombuffer(pixels, np.uint8).reshape(image.height, 1 + image.width)
    return None if ids[:, 0].any() else ids[:, 1:]  # behind the number of each row's filter


def png_channels(raw: bytes) -> NDArray[np.integer[Any]]:
    """All channels of a PNG as stored, (C, H, W) uint8 or uint16; Pillow would halve 16 bits of colours.

    Raises:
        PictureError: it is not a PNG.
    """
    import torch  # late, with torchvision: who reads labels of other kinds makes no tensors
    from torchvision.io import ImageReadMode, decode_png

    open_picture(raw, ("PNG",))  # size and header first: the decoder has no bound
    try:
        buffer = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        channels: NDArray[np.integer[Any]] = decode_png(buffer, ImageReadMode.UNCHANGED).numpy()
    except (RuntimeError, ValueError) as error:
        detail = f"not a readable PNG ({one_line(error).partition(' at ')[0]}); replace it"
        raise PictureError("unreadable", detail) from None
    return channels


def _has_exif(image: Image.Image) -> bool:
    """Whether an opened picture may say how it is turned, as EXIF or XMP."""
    stream = _stream(image)
    if image.format != "PNG" or stream is None:
        # Pillow turns a TIFF by itself.
        return image.format != "TIFF" and any(key in image.info for key in _EXIF)
    at = stream.tell()
    try:
        return any(_tells_orientation(*chunk) for chunk in _png_chunks(stream))
    finally:
        stream.seek(at)


def _stream(image: Image.Image) -> IO[bytes] | None:
    """The file of an opened picture; None once it is closed."""
    return image.fp if isinstance(image, ImageFile.ImageFile) else None


def _png_chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Kind and first bytes of a PNG's chunks; what says the orientation may stand behind the pixels."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        size = int.from_bytes(head[:4], "big")
        start = stream.read(min(size, _LONGEST_KEYWORD))
        yield head[4:], start
        stream.seek(size - len(start) + 4, os.SEEK_CUR)


def _tells_orientation(kind: bytes, start: bytes) -> bool:
    return kind == b"eXIf" or (kind in (b"iTXt", b"zTXt", b"tEXt") and start.startswith(_PNG_KEYWORDS))


def _raw_mode(image: Image.Image) -> str:
    """How the file stores a pixel, in Pillow's words ("L;4", "RGB;16B"); "" once decoded."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _ppm_white(image: Image.Image) -> int:
    """The greatest value that an opened PPM can hold; 0 of other pictures, floats, and once decoded."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) and image.format == "PPM" else []
    arguments: Any = tiles[0][3] if tiles else ""
    if arguments == "I;16B":
        return _SIXTEEN
    return arguments[1] if isinstance(arguments, tuple) and len(arguments) == 2 else 0


def _scaled(image: Image.Image, span: Span | None) -> Image.Image:
    """A deep picture as RGB of 8 bits; see the module's rules."""
    white = _ppm_white(image)  # Pillow stretches values up to that to the full range
    if span is not None and 0 < white < _SIXTEEN:
        raise PictureError("depth", f"a PPM of values up to {white}, which fill its range; leave --range out")
    if span is None and image.mode in ("I", "F") and not white:
        kind = "floats" if image.mode == "F" else "32-bit values"
        raise PictureError("depth", f"of {kind}, whose range is not known; give --range LOW HIGH")
    values = _deep_values(image, colours_exact=span is not None)
    low, high = span or (0, _SIXTEEN)
    if not np.isfinite(values).all():
        raise PictureError("depth", "of values that are not finite; replace it")
    scaled = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    pixels = np.rint(scaled).astype(np.uint8)
    if span is None and pixels.max(initial=0) < _DARK:
        raise PictureError(
            "depth",
            f"of 16-bit values that end at {values.max()}, nearly black on the full range; give the sensor's "
            f"range (12 bits: --range 0 4095), or --range 0 {_SIXTEEN} where it is meant so",
        )
    return Image.fromarray(pixels).convert("RGB")


def _deep_values(image: Image.Image, colours_exact: bool) -> NDArray[Any]:
    """The values of a deep picture, (H, W) or (H, W, 3)."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    if not colours_exact:  # Pillow keeps the upper byte of 16-bit colours
        return np.asarray(image.convert("RGB")).astype(np.uint16) * np.uint16(257)
    stream = _stream(image)
    if image.format != "PNG" or stream is None:
        raise PictureError("depth", f"of 16-bit colours in {image.format}; a range needs PNG, convert it")
    stream.seek(0)
    channels = png_channels(stream.read())  # (C, H, W)
    colours = channels[:3] if len(channels) >= 3 else np.repeat(channels[:1], 3, axis=0)
    return colours.transpose(1, 2, 0)


def _said(error: Exception) -> str:
    """What a decoder said; Pillow names the buffer it could not identify, which tells a user nothing."""
    return "unknown format" if isinstance(error, UnidentifiedImageError) else one_line(error)
