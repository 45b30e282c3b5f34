"""Find JPEGs whose data are damaged in the middle.

Pillow decodes them without a word: what follows the damage is grey, shifted or of another colour. The
decoder here tells what is wrong with the data. It finds most damage: now and then other bytes make a valid
picture too.
"""

from __future__ import annotations

from PIL import Image
from simplejpeg import decode_jpeg

from ppar_dist.pictures import PictureError, photo_rgb
from ppar_dist.text import one_line

JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names of the formats that this is for."""

_NO_END = "Premature end of JPEG file"
_DAMAGED = ("Corrupt JPEG data", _NO_END)
_END = b"\xff\xd9"


def check_jpeg(raw: bytes, image: Image.Image) -> None:
    """Decode all data of a JPEG, and few pixels.

    A file that lacks its end marker alone is whole: all its pixels are there.

    Args:
        raw: the file.
        image: the same, as ``open_picture`` opened it.

    Raises:
        PictureError: its data are cut off or damaged.
    """
    colours = "CMYK" if image.mode == "CMYK" else "RGB"
    said = _said(raw, colours)
    if said == _NO_END and not image.info.get("progressive"):  # of a progressive one a scan may be missing
        said = _said(raw + _END, colours)
    if said is None:
        return
    if said.startswith(_DAMAGED):
        raise PictureError("unreadable", f"cut off or corrupt ({said}); replace it")
    image.draft(None, (1, 1))  # something else, such as an odd header: what Pillow decodes is accepted
    photo_rgb(image)


def _said(raw: bytes, colours: str) -> str | None:
    """The first complaint of the decoder; None where it has none."""
    try:
        decode_jpeg(raw, colours, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        return one_line(error)
    return None
