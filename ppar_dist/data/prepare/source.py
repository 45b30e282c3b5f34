"""What a data set is: where its pairs are, and what its label values are called.

A reader supplies a ``Source``; everything behind it (mapping to train ids, checks, shards) is shared.
Letters: (H, W) pixels of a label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppar_dist.class_sets import ClassSet
from ppar_dist.data.prepare.finding import OTHER_SUFFIXES, images_below, labels_on_disk
from ppar_dist.data.shards.writer import LONGEST_NAME
from ppar_dist.errors import DataError
from ppar_dist.pictures import (
    SUFFIXES,
    PictureError,
    label_ids,
    open_label,
    open_picture,
    photo_rgb,
    refuse_turned,
)

Colour = tuple[int, int, int]
LabelArray = NDArray[np.uint8]
Decoder = Callable[[Path], LabelArray]  # label file → train ids, (H, W)
Domains = Mapping[str, list["Pair"]]

_UNKNOWN = -1
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
UNSPLIT = "none"
"""The rule that leaves published splits whole."""


class Pair(NamedTuple):
    """One labelled image: the name it has within its domain, and its two files."""

    key: str
    image: Path
    label: Path


PartOf = Callable[[Pair], str]  # a pair's part of its data set, such as its city


@dataclass(frozen=True)
class Source:
    """A data set in its native layout."""

    name: str
    page: str  # where to get it
    layout: str  # what its root folder holds, one line
    domains: Callable[[Path], Domains]  # root → pairs of each published split, in a fixed order
    decoder: Callable[[ClassSet], Decoder]
    whole: tuple[str, ...] = ()  # folders below the root of which every picture should belong to a pair
    whole_like: tuple[str, ...] = ()  # more of them, as globs
    parts: Mapping[str, PartOf] = field(default_factory=dict)  # rules by which domains can be split
    usual: str = ""  # the rule that is applied unasked

    def parted(self, root: Path, rule: str | None = None) -> Domains:
        """The pairs of each domain: those of the published splits, split again by a rule.

        Args:
            root: the data set.
            rule: one of ``parts``, or ``none``; None is the usual one.

        Raises:
            DataError: no such rule, a part whose name no domain can have, or no pairs.
        """
        rule = (self.usual or UNSPLIT) if rule is None else rule
        if rule not in (*self.parts, UNSPLIT):
            raise DataError(f"--split-by {rule}: {self._rules()}")
        splits = self.domains(root)
        if rule == UNSPLIT:
            return splits
        found: dict[str, list[Pair]] = {}
        for split, pairs in splits.items():
            for pair in pairs:
                found.setdefault(self._part(split, self.parts[rule](pair), pair), []).append(pair)
        return dict(sorted(found.items()))

    def _part(self, split: str, part: str, pair: Pair) -> str:
        domain = f"{self.name}_{part}{split.removeprefix(self.name)}"
        if not _DOMAIN.fullmatch(domain) or len(domain) > LONGEST_NAME:
            raise DataError(
                f"a domain's name holds at most {LONGEST_NAME} letters, digits, _ and -, got {domain!r} for "
                f"{pair.image}; rename the folder, or split by another rule: {self._rules()}"
            )
        return domain

    def _rules(self) -> str:
        if not self.parts:
            return f"{self.name} has no parts to split by; leave the option out"
        usual = f" (usually {self.usual})" if self.usual else ""
        return f"{self.name} can be split by {', '.join((*self.parts, UNSPLIT))}{usual}"

    def empty(self, root: Path) -> DataError:
        """The error for a root that holds no pair."""
        return DataError(f"{self.name}: no samples in {root}; --root holds {self.layout}")

    def missing(self, path: Path) -> DataError:
        """The error for a file or folder that the layout asks for and the root does not hold."""
        return DataError(
            f"{self.name}: no {path}; --root holds {self.layout}. Get the data set from {self.page}"
        )

    def passed_over(self, domains: Domains, root: Path) -> list[Path]:
        """The pictures of those folders, whatever their format, that belong to no pair."""
        folders = {root / folder for folder in self.whole}
        folders |= {found for pattern in self.whole_like for found in root.glob(pattern)}
        there = {path for folder in folders for path in images_below(folder, SUFFIXES | OTHER_SUFFIXES)}
        return sorted(there - {path for pairs in domains.values() for pair in pairs for path in pair[1:]})

    def require(self, *folders: Path) -> None:
        """Raise the error of ``missing`` for the first of the folders that does not exist."""
        for folder in folders:
            if not folder.is_dir():
                raise self.missing(folder)


def index_labels(
    names: Mapping[int, str],
    read: Callable[[Path], NDArray[np.integer]] | None = None,
    rest: str | None = None,
) -> Callable[[ClassSet], Decoder]:
    """Decoders for labels that store a number per pixel.

    Args:
        names: what the numbers are called.
        read: returns the numbers as (H, W).
        rest: what all other numbers are called; without it they are refused.
    """

    def decoder(classes: ClassSet) -> Decoder:
        table = np.full(1 << 16, _rest_id(classes, rest), np.int16)
        for value, name in names.items():
            table[value] = classes.train_id(name)

        def decode(path: Path) -> LabelArray:
            values = (read or read_index)(path)
            ids: NDArray[np.int16] = table[values]
            if (unknown := ids == _UNKNOWN).any():
                found = int(values[unknown][0])
                known = f"{len(names)} values, {min(names)} to {max(names)}"
                raise _unknown(path, f"value {found}", known, values == found, unknown)
            return ids.astype(np.uint8)

        return decode

    return decoder


def colour_labels(names: Mapping[Colour, str], rest: str | None = None) -> Callable[[ClassSet], Decoder]:
    """Decoders for labels that store an RGB colour per pixel; ``rest`` names all other colours."""

    def decoder(classes: ClassSet) -> Decoder:
        # One look-up a pixel; sorting would take seconds.
        table = np.full(1 << 24, _rest_id(classes, rest), np.int16)
        for (red, green, blue), name in names.items():
            table[red << 16 | green << 8 | blue] = classes.train_id(name)

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

    return decoder


def _rest_id(classes: ClassSet, rest: str | None) -> int:
    return _UNKNOWN if rest is None else classes.train_id(rest)


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


def same_name_pairs(images: Path, labels: Path) -> list[Pair]:
    """Pairs of two folders whose files have the same names (a label is a PNG)."""
    found = images_below(images)
    wanted = [labels / image.relative_to(images).with_suffix(".png") for image in found]
    return [
        Pair(image.stem, image, label) for image, label in zip(found, labels_on_disk(wanted), strict=True)
    ]


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
