"""What a data set is: where its pairs are, and what its label values are called.

A reader supplies a ``Source``; everything behind it (mapping to train ids, checks, shards) is shared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ppar_dist.class_sets import ClassSet
from ppar_dist.data.prepare.finding import OTHER_SUFFIXES, images_below, labels_on_disk
from ppar_dist.data.prepare.legend import Decoder, Legend, Naming
from ppar_dist.data.shards.writer import LONGEST_NAME
from ppar_dist.errors import DataError
from ppar_dist.pictures import SUFFIXES

Domains = Mapping[str, list["Pair"]]

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
    legend: Legend
    whole: tuple[str, ...] = ()  # folders below the root of which every picture should belong to a pair
    whole_like: tuple[str, ...] = ()  # more of them, as globs
    parts: Mapping[str, PartOf] = field(default_factory=dict)  # rules by which domains can be split
    usual: str = ""  # the rule that is applied unasked

    def decoder(self, classes: ClassSet) -> Decoder:
        """A reader of its label files: train ids of a class set."""
        return self.legend.decoder(self.naming(classes))

    def naming(self, classes: ClassSet) -> Naming:
        """What its labels count as in a class set."""
        return Naming(classes, self.name)

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
            f"{self.name}: there is no {path}; --root holds {self.layout}. Check --root, or get the data set "
            f"from {self.page}; one with another layout is described to `prepare folder` with a mapping "
            "file (--mapping)"
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


def same_name_pairs(images: Path, labels: Path) -> list[Pair]:
    """Pairs of two folders whose files have the same names (a label is a PNG)."""
    found = images_below(images)
    wanted = [labels / image.relative_to(images).with_suffix(".png") for image in found]
    return [
        Pair(image.stem, image, label) for image, label in zip(found, labels_on_disk(wanted), strict=True)
    ]
