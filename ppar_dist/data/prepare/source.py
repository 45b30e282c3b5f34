"""What a data set is: where its pairs are, and what its label values are called.

A reader supplies a ``Source``; everything behind it (mapping to train ids, checks, shards) is shared.
Letters: (H, W) pixels of a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ppar_dist.class_sets import ClassSet
from ppar_dist.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
Colour = tuple[int, int, int]
LabelArray = NDArray[np.uint8]
Decoder = Callable[[Path], LabelArray]  # label file → train ids, (H, W)
Domains = Mapping[str, list["Pair"]]

_UNKNOWN = -1


class Pair(NamedTuple):
    """One labelled image: the name it has within its domain, and its two files."""

    key: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Source:
    """A data set in its native layout."""

    name: str
    page: str  # where to get it
    layout: str  # what its root folder holds, one line
    domains: Callable[[Path], Domains]  # root → pairs of each domain, in a fixed order
    decoder: Callable[[ClassSet], Decoder]

    def missing(self, path: Path) -> DataError:
        """The error for a file or folder that the layout asks for and the root does not hold."""
        return DataError(
            f"{self.name}: no {path}; --root holds {self.layout}. Get the data set from {self.page}"
        )

    def require(self, *folders: Path) -> None:
        """Raise the error of ``missing`` for the first of the folders that does not exist."""
        for folder in folders:
            if not folder.is_dir():
                raise self.missing(folder)


def index_labels(
    names: Mapping[int, str], read: Callable[[Path], NDArray[np.integer]] | None = None
) -> Callable[[ClassSet], Decoder]:
    """Decoders for labels that store a number per pixel; ``read`` returns it as (H, W)."""

    def decoder(classes: ClassSet) -> Decoder:
        table = np.full(1 << 16, _UNKNOWN, np.int16)
        for value, name in names.items():
            table[value] = classes.train_id(name)

        def decode(path: Path) -> LabelArray:
            values = (read or read_index)(path)
            ids: NDArray[np.int16] = table[values]
            if (ids == _UNKNOWN).any():
                raise _unknown(
                    path,
                    f"value {int(values[ids == _UNKNOWN][0])}",
                    f"{len(names)} values, {min(names)} to {max(names)}",
                )
            return ids.astype(np.uint8)

        return decode

    return decoder


def colour_labels(names: Mapping[Colour, str]) -> Callable[[ClassSet], Decoder]:
    """Decoders for labels that store an RGB colour per pixel."""

    def decoder(classes: ClassSet) -> Decoder:
        table = np.full(1 << 24, _UNKNOWN, np.int16)  # one look-up a pixel; sorting would take seconds
        for (red, green, blue), name in names.items():
            table[red << 16 | green << 8 | blue] = classes.train_id(name)

        def decode(path: Path) -> LabelArray:
            colours = read_colour(path)
            wide = colours.astype(np.int32)
            packed = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
            ids: NDArray[np.int16] = table[packed]
            if (ids == _UNKNOWN).any():
                found = tuple(int(channel) for channel in colours[ids == _UNKNOWN][0])
                raise _unknown(path, f"colour {found}", f"the {len(names)} colours of its legend")
            return ids.astype(np.uint8)

        return decode

    return decoder


def open_file(path: Path) -> Image.Image:
    """Open and decode an image or label file.

    Raises:
        DataError: it is missing, cut off, or not an image.
    """
    try:
        image = Image.open(path, formats=("JPEG", "PNG"))
        image.load()
    except FileNotFoundError:
        raise DataError(f"no file {path}; the data set is incomplete, unpack it again") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"cannot read {path} ({error}); fetch it again, or leave it out by --exclude"
        ) from None
    return image


def read_index(path: Path) -> NDArray[np.integer]:
    """The numbers of a grey or palette PNG, (H, W)."""
    image = open_file(path)
    if image.mode not in ("L", "P", "I;16", "I"):
        raise DataError(
            f"{path} holds one number per pixel, got an image of mode {image.mode}; use the id labels"
        )
    return np.asarray(image, dtype=np.int64 if image.mode == "I" else None)


def read_colour(path: Path) -> NDArray[np.uint8]:
    """The colours of a PNG, (H, W, 3)."""
    image = open_file(path)
    if image.mode not in ("RGB", "RGBA", "P"):
        raise DataError(
            f"{path} holds a colour per pixel, got an image of mode {image.mode}; use the colour labels"
        )
    return np.asarray(image.convert("RGB"))


def images_below(folder: Path) -> list[Path]:
    """Image files of a folder and its subfolders, sorted by path; none when there is no folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def same_name_pairs(images: Path, labels: Path) -> list[Pair]:
    """Pairs of two folders whose files have the same names (a label is a PNG)."""
    return [
        Pair(image.stem, image, labels / image.relative_to(images).with_suffix(".png"))
        for image in images_below(images)
    ]


def _unknown(path: Path, found: str, known: str) -> DataError:
    return DataError(
        f"{path}: {found} is not a label of this data set (known: {known}); check that it is the label file "
        "of the right release, or describe it to `prepare folder` with a mapping file"
    )
