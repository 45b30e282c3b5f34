"""What the label values of a data set are called, and how its labels become train ids.

Letters: (H, W) pixels of a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppar_dist.class_sets import IGNORE_INDEX, ClassSet
from ppar_dist.errors import DataError
from ppar_dist.pictures import PictureError, label_ids, open_label, open_picture, photo_rgb, refuse_turned

Colour = tuple[int, int, int]
LabelArray = NDArray[np.uint8]
Decoder = Callable[[Path], LabelArray]  # label file → train ids, (H, W)

VOID = "void"
"""A name that no class set holds."""

_UNKNOWN = -1


class Label(NamedTuple):
    """A native label by its names.

    ``known`` are the names by which the general lists of class sets know it. Several are those of a group:
    its own name, and what is in it.
    """

    native: str  # as the publisher calls it
    known: tuple[str, ...]

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names by which a list for its data set alone knows it; the publisher's counts first."""
        return tuple(dict.fromkeys((self.native, *(name for name in self.known[:1] if name != VOID))))


def as_label(name: str | Label) -> Label:
    """A name alone is a label that class sets know by the name that its publisher gives it."""
    return Label(name, (name,)) if isinstance(name, str) else name


@dataclass(frozen=True)
class Naming:
    """What the labels of one data set count as in a class set."""

    classes: ClassSet
    dataset: str

    def train_id(self, label: Label) -> int:
        """The class of a label; ``IGNORE_INDEX`` where it has none.

        The lists for this data set count before the general ones. A group counts as a class where all of it
        that the class set knows is that class.
        """
        for name in label.own_names:
            if (own := self.classes.own_train_id(self.dataset, name)) != IGNORE_INDEX:
                return own
        ids = [self.classes.train_id(name) for name in label.known]
        known = set(ids) - {IGNORE_INDEX}
        return ids[0] if ids[0] in known else known.pop() if len(known) == 1 else IGNORE_INDEX


@dataclass(frozen=True)
class Legend:
    """The labels of a data set, and how its label files are read.

    Args:
        labels: all that there are.
        decoder: makes a reader of label files.
        labels_of: those that a label file tells apart, where files differ in that.
    """

    labels: tuple[Label, ...]
    decoder: Callable[[Naming], Decoder]
    labels_of: Callable[[Path], tuple[Label, ...]] | None = None


def index_labels(
    names: Mapping[int, str | Label],
    read: Callable[[Path], NDArray[np.integer]] | None = None,
    rest: str | None = None,
) -> Legend:
    """The legend of labels that store a number per pixel.

    Args:
        names: what the numbers are called.
        read: returns the numbers as (H, W).
        rest: what all other numbers are called; without it they are refused.
    """

    def decoder(naming: Naming) -> Decoder:
        table = np.full(1 << 16, _rest_id(naming, rest), np.int16)
        for value, name in names.items():
            table[value] = naming.train_id(as_label(name))

        def decode(path: Path) -> LabelArray:
            values = (read or read_index)(path)
            ids: NDArray[np.int16] = table[values]
            if (unknown := ids == _UNKNOWN).any():
                found = int(values[unknown][0])
                known = f"{len(names)} values, {min(names)} to {max(names)}"
                raise _unknown(path, f"value {found}", known, values == found, unknown)
            return ids.astype(np.uint8)

        return decode

    return Legend(_each_once(names[value] for value in names if value != IGNORE_INDEX), decoder)


def colour_labels(names: Mapping[Colour, str], rest: str | None = None) -> Legend:
    """The legend of labels that store an RGB colour per pixel; ``rest`` names all other colours."""

    def decoder(naming: Naming) -> Decoder:
        # One look-up a pixel; sorting would take seconds.
        table = np.full(1 << 24, _rest_id(naming, rest), np.int16)
        for (red, green, blue), name in names.items():
            table[red << 16 | green << 8 | blue] = naming.train_id(as_label(name))

        def decode(path: Path) -> LabelArray:
            colours = read_colour(path)
            wide = colours.astype(np.int32)
            packed = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
            ids: NDArray[np.int16] = table[packed]
            if (unknown := ids == _UNKNOWN).any():
                found = tuple(int(channel) for channel in colours[unknown][0])
                known = f"the {len(names)} colours of its legend"
                raise _unknown(path, f"colour {found}", known, packed == packed[unknown][0], unknown)
            return ids.astype(np.uint8)

        return decode

    return Legend(_each_once(names.values()), decoder)


def either(first: Legend, *others: Legend) -> tuple[Label, ...]:
    """The labels of several legends, each once."""
    return _each_once(label for legend in (first, *others) for label in legend.labels)


def _each_once(names: Iterable[str | Label]) -> tuple[Label, ...]:
    return tuple(dict.fromkeys(map(as_label, names)))


def _rest_id(naming: Naming, rest: str | None) -> int:
    return _UNKNOWN if rest is None else naming.train_id(as_label(rest))


def read_index(path: Path) -> NDArray[np.integer]:
    """The numbers of a grey or palette PNG, (H, W).

    Raises:
        DataError: it is missing, cut off, or no such label.
    """
    try:
        return label_ids(open_label(path))
    except PictureError as error:
        raise unusable(path, error) from None


def read_colour(path: Path) -> NDArray[np.uint8]:
    """The colours of a PNG, (H, W, 3); raises DataError where it has none, or is turned by its EXIF."""
    try:
        image = open_picture(path, ("PNG",))
        if image.mode not in ("RGB", "RGBA", "P"):
            raise PictureError("mode", f"of mode {image.mode}, not of colours; use the colour labels")
        refuse_turned(image, path)
        return np.asarray(photo_rgb(image))
    except PictureError as error:
        raise unusable(path, error) from None


def is_coloured(path: Path) -> bool:
    """Whether a label PNG stores colours instead of numbers; raises DataError for another file."""
    try:
        return open_picture(path, ("PNG",)).mode in ("RGB", "RGBA")
    except PictureError as error:
        raise unusable(path, error) from None


def unusable(path: Path, error: PictureError) -> DataError:
    """The error of a file that cannot be used."""
    return DataError(f"{path} is {error}")


def _unknown(
    path: Path, found: str, known: str, same: NDArray[np.bool_], unknown: NDArray[np.bool_]
) -> DataError:
    """The error of a label value. (H, W): ``same`` marks its pixels, ``unknown`` all that are not known."""
    others = f", {unknown.sum()} one that is not known" if unknown.sum() > same.sum() else ""
    return DataError(
        f"{path}: {found} is not a label of this data set (known: {known}); {same.sum()} of {same.size} "
        f"pixels have it{others}. Check that it is the label file of the right release, or describe the data "
        "set to `prepare folder` with a mapping file, "
        """where `"*": ignore` makes all that is not listed no class"""
    )
