"""Label maps as pictures: palette PNG, overlay and legend; and their files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ppar_dist.class_sets import IGNORE_INDEX, ClassSet
from ppar_dist.files.durable import write_atomically

_ROW, _SWATCH, _PAD = 28, 18, 10
_STRIP = 1 << 20  # pixels of a picture that are worked on at once


def palette_image(labels: NDArray[np.uint8], classes: ClassSet) -> Image.Image:
    """An indexed picture whose pixel values are the class ids; 255 (ignore) is black.

    Args:
        labels: (H, W) class ids.
        classes: gives the palette.
    """
    flat = [0] * 768
    for k, colour in enumerate(classes.palette):
        flat[3 * k : 3 * k + 3] = colour
    stored = np.ascontiguousarray(labels, np.uint8)  # the picture looks at it, and is no copy
    picture = Image.frombuffer("P", labels.shape[::-1], stored, "raw", "P", 0, 1)
    picture.putpalette(flat)
    return picture


def overlay_image(
    image: Image.Image, labels: NDArray[np.uint8], classes: ClassSet, opacity: float = 0.5
) -> Image.Image:
    """The photograph under the class colours; pixels to ignore stay as they are.

    Args:
        image: RGB, (H, W) pixels like ``labels``. It is changed itself: a huge one has no room twice.
        labels: (H, W) class ids.
        classes: gives the palette.
        opacity: of the colours, 0 to 1.
    """
    colours = np.zeros((256, 3), np.float32)
    colours[: classes.num_classes] = np.asarray(classes.palette, np.float32)
    alphas = np.full((256, 1), opacity, np.float32)
    alphas[IGNORE_INDEX] = 0
    for box in strips(image.size):
        part = labels[box[1] : box[3]]
        alpha = alphas[part]  # (rows, W, 1)
        blend = np.asarray(image.crop(box), np.float32) * (1 - alpha) + colours[part] * alpha
        image.paste(Image.fromarray(np.rint(blend).astype(np.uint8)), box)
    return image


def write_picture(picture: Image.Image, path: Path, quality: int = 92) -> None:
    """Write a picture, ``.jpg`` as JPEG and others as PNG; who finds it under its name finds all of it.

    Raises:
        OSError: it cannot be written.
    """
    encoded = io.BytesIO()  # of a file that Pillow writes itself, it overlooks what a full disk does not take
    picture.save(encoded, "JPEG" if path.suffix == ".jpg" else "PNG", quality=quality)
    write_atomically(path, encoded.getbuffer())


def strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes over the whole width, from the top down, of about ``_STRIP`` pixels each.

    Args:
        size: (width, height) in pixels.
    """
    width, height = size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield (0, top, width, min(top + rows, height))


def legend_image(classes: ClassSet) -> Image.Image:
    """Swatch and name of every class, one below the other."""
    font = ImageFont.load_default(size=15)
    width = _SWATCH + 3 * _PAD + round(max(font.getlength(name) for name in classes.classes))
    picture = Image.new("RGB", (width, _ROW * classes.num_classes + _PAD), "white")
    draw = ImageDraw.Draw(picture)
    for k, name in enumerate(classes.classes):
        top = _PAD // 2 + k * _ROW
        box = (_PAD, top + (_ROW - _SWATCH) // 2, _PAD + _SWATCH, top + (_ROW + _SWATCH) // 2)
        draw.rounded_rectangle(box, 3, fill=classes.palette[k], outline=(120, 120, 120))
        draw.text((2 * _PAD + _SWATCH, top + _ROW / 2), name, fill="black", font=font, anchor="lm")
    return picture
