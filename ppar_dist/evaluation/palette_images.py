"""Label maps as pictures: palette PNG, overlay and legend; and their files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ppar_dist.class_sets import IGNORE_INDEX, ClassSet, Colour
from ppar_dist.errors import UserError
from ppar_dist.files.durable import write_atomically

_ROW, _SWATCH, _PAD, _FONT = 28, 18, 10, 15  # pixels of a legend
_STRIP = 1 << 20  # pixels of a picture that are worked on at once
_SHARE = 25  # rows of a legend in a picture of that height, where it has few classes
_EDGE = 255  # white


@dataclass(frozen=True)
class OverlayStyle:
    """What an overlay shows.

    Raises:
        UserError: the opacity is not from 0 to 1.
    """

    opacity: float = 0.5  # of the class colours
    outlines: bool = False  # white lines where two classes meet
    legend: bool = False  # names and colours of the classes that occur, in the upper left corner

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise UserError(f"--opacity is from 0 (the photo) to 1 (the colours), got {self.opacity:g}")


def palette_image(labels: NDArray[np.uint8], classes: ClassSet) -> Image.Image:
    """An indexed picture whose pixel values are the class ids; 255 (ignore) is black.

    Args:
        labels: (H, W) class ids.
        classes: gives the palette.
    """
    flat = [0] * 768
    for k, colour in enumerate(classes.palette):
        flat[3 * k : 3 * k + 3] = colour
    stored = np.ascontiguousarray(labels, np.uint8)  # the picture looks at it, and is not a copy
    picture = Image.frombuffer("P", labels.shape[::-1], stored, "raw", "P", 0, 1)
    picture.putpalette(flat)
    return picture


def overlay_image(
    image: Image.Image,
    labels: NDArray[np.uint8],
    classes: ClassSet,
    opacity: float = 0.5,
    outlines: bool = False,
    legend: bool = False,
) -> Image.Image:
    """The photograph under the class colours; pixels to ignore stay as they are.

    Args:
        image: RGB, (H, W) pixels like ``labels``. It is changed itself: a huge one has no room twice.
        labels: (H, W) class ids.
        classes: gives the palette.
        opacity: of the colours, 0 to 1.
        outlines: see ``OverlayStyle``.
        legend: see ``OverlayStyle``.
    """
    colours = np.zeros((256, 3), np.float32)
    colours[: classes.num_classes] = np.asarray(classes.palette, np.float32)
    alphas = np.full((256, 1), opacity, np.float32)
    alphas[IGNORE_INDEX] = 0
    occurs = np.zeros(256, np.bool_)
    for box in strips(image.size):
        part = labels[box[1] : box[3]]
        occurs[part] = True
        alpha = alphas[part]  # (rows, W, 1)
        blend = np.asarray(image.crop(box), np.float32) * (1 - alpha) + colours[part] * alpha
        if outlines:
            blend[_edges(labels, box[1], box[3])] = _EDGE
        image.paste(Image.fromarray(np.rint(blend).astype(np.uint8)), box)
    if legend:
        _add_legend(image, classes, [k for k in range(classes.num_classes) if occurs[k]])
    return image


def _edges(labels: NDArray[np.uint8], top: int, bottom: int) -> NDArray[np.bool_]:
    """Which pixels of rows ``top`` to ``bottom`` have a neighbour of another class, not counting corners."""
    first = max(0, top - 1)
    around = labels[first : bottom + 1]  # with the row above and the row below
    edge = np.zeros(around.shape, np.bool_)
    down, right = around[1:] != around[:-1], around[:, 1:] != around[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge[top - first : bottom - first]


def _add_legend(image: Image.Image, classes: ClassSet, occurring: Sequence[int]) -> None:
    """Draw a legend of these classes into the upper left corner of a picture; what has no room is cut off."""
    if occurring:
        row = max(1, image.height // max(_SHARE, len(occurring) + 1))
        names, colours = [classes.classes[k] for k in occurring], [classes.palette[k] for k in occurring]
        image.paste(_legend(names, colours, row), (0, 0))


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
    return _legend(classes.classes, classes.palette, _ROW)


def _legend(names: Sequence[str], colours: Sequence[Colour], row: int) -> Image.Image:
    """Swatches and names in rows of so many pixels."""
    swatch, pad, size = (max(1, length * row // _ROW) for length in (_SWATCH, _PAD, _FONT))
    font = ImageFont.load_default(size=size)
    width = swatch + 3 * pad + round(max(font.getlength(name) for name in names))
    picture = Image.new("RGB", (width, row * len(names) + pad), "white")
    draw = ImageDraw.Draw(picture)
    for k, name in enumerate(names):
        top = pad // 2 + k * row
        box = (pad, top + (row - swatch) // 2, pad + swatch, top + (row + swatch) // 2)
        draw.rounded_rectangle(box, swatch // 6, fill=colours[k], outline=(120, 120, 120))
        draw.text((2 * pad + swatch, top + row / 2), name, fill="black", font=font, anchor="lm")
    return picture
