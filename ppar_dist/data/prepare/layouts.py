"""Known layouts as tables: path patterns of images and labels, and what the label values are called.

Most data sets differ in nothing else. A table is one ``Form``, or several where the data set comes in
several::

    Form("images/{split}/{frame}.jpg", "labels/{split}/{frame}_labelIds.png", index_labels(NAMES))

``{split}`` stands for a published split; other placeholders are those of ``patterns.py``. An image whose name
ends in ``.{ext}`` may be of any format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.data.prepare.finding import images_below, labels_on_disk
from ppar_dist.data.prepare.legend import (
    VOID,
    Decoder,
    Label,
    LabelArray,
    Legend,
    Naming,
    either,
    index_labels,
)
from ppar_dist.data.prepare.patterns import PLACEHOLDER, PathPattern
from ppar_dist.data.prepare.source import Domains, Pair, PartOf, Source

TRAINED = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""Names by train id of Cityscapes, as its publisher numbers them."""

TRAIN_IDS = dict(enumerate(TRAINED)) | {IGNORE_INDEX: VOID}
"""Names by train id of Cityscapes, and of no class."""


class Form(NamedTuple):
    """One way in which a data set stores its pairs."""

    images: str  # pattern below the root
    labels: str
    legend: Legend


@dataclass(frozen=True)
class Table:
    """The pairs of a data set by published split.

    Args:
        name: of the data set; its domains are called so, with the split behind it.
        forms: the first of which any label is on disk is taken.
        key: of the placeholders of an image, its key.
        splits: published name of each split that has labels → the name here; empty where there are none.
    """

    name: str
    forms: tuple[Form, ...]
    key: str = "{frame}"
    splits: Mapping[str, str] | None = None

    @property
    def layout(self) -> str:
        """What the root holds, one line."""
        images = " or ".join(dict.fromkeys(_shown(form.images) for form in self.forms))
        labels = " or ".join(dict.fromkeys(_shown(form.labels) for form in self.forms))
        splits = f" (splits {', '.join(self.splits)})" if self.splits else ""
        return f"{images} and {labels}{splits}"

    @property
    def image_folders(self) -> tuple[str, ...]:
        """The folders that hold images of the splits, as globs."""
        parents = [str(PurePosixPath(form.images).parent) for form in self.forms]
        splits = self.splits or ("",)
        filled = (parent.replace("{split}", split) for parent in parents for split in splits)
        return tuple(dict.fromkeys(PLACEHOLDER.sub("*", parent) for parent in filled))

    def domains(self, root: Path) -> Domains:
        """The pairs of each split in the order of their paths; none where nothing fits."""
        found = [pairs for form in self.forms if (pairs := self._pairs(root, form))]
        labelled = [
            pairs for pairs in found if any(pair.label.is_file() for each in pairs.values() for pair in each)
        ]
        return next(iter(labelled or found), {})

    def _pairs(self, root: Path, form: Form) -> Domains:
        images, labels = PathPattern(form.images, self.name), PathPattern(form.labels, self.name)
        matched = [
            (path, values)
            for path in images_below(root / images.folder)
            if (values := images.match(PurePosixPath(path.relative_to(root)))) is not None
            and (not self.splits or values["split"] in self.splits)
        ]
        on_disk = labels_on_disk([root / labels.fill(values) for _, values in matched])
        domains: dict[str, list[Pair]] = {}
        for (path, values), label in zip(matched, on_disk, strict=True):
            key = PathPattern(self.key, self.name).fill(values)
            domains.setdefault(self._domain(values), []).append(Pair(key, path, label))
        return dict(sorted(domains.items()))

    def _domain(self, values: Mapping[str, str]) -> str:
        return f"{self.name}_{self.splits[values['split']]}" if self.splits else self.name


def tabled(
    table: Table, page: str, *, parts: Mapping[str, PartOf] | None = None, usual: str = "", told: bool = True
) -> Source:
    """The data set of a table.

    Args:
        table: where its pairs are.
        page: where to get it.
        parts: rules by which its domains can be split, and ``usual``, the rule that is applied unasked.
        told: whether pictures in its image folders that belong to no pair are told.
    """

    def domains(root: Path) -> Domains:
        found = table.domains(root)
        if not found:
            first = PathPattern(table.forms[0].images, table.name).folder
            raise source.missing(root / first) if not (root / first).is_dir() else source.empty(root)
        return found

    source = Source(
        name=table.name,
        page=page,
        layout=table.layout,
        domains=domains,
        legend=_by_form(table.forms),
        whole_like=table.image_folders if told else (),
        parts=parts or {},
        usual=usual,
    )
    return source


def cityscapes_coded(images: str, labels: str, names: Mapping[int, str]) -> tuple[Form, ...]:
    """Labels called as in Cityscapes: ``…_labelIds.png`` or, where there are none, ``…_labelTrainIds.png``.

    Args:
        images: pattern of the images.
        labels: pattern of the labels up to the underscore before ``labelIds``.
        names: by label id.
    """
    return (
        Form(images, f"{labels}_labelIds.png", index_labels(names)),
        Form(images, f"{labels}_labelTrainIds.png", index_labels(TRAIN_IDS)),
    )


def above(*levels: int) -> PartOf:
    """A rule: the names of the folders so many levels above an image, 1 the one that holds it."""

    def part(pair: Pair) -> str:
        return "_".join(pair.image.parts[-1 - level] for level in levels)

    return part


def _by_form(forms: tuple[Form, ...]) -> Legend:
    """The legend of the form whose labels end as a file does; the longest ending counts."""
    endings = sorted(
        ((PLACEHOLDER.split(form.labels)[-1].lower(), form.legend) for form in forms), key=_length
    )

    def place(path: Path) -> int:
        return next(at for at, (ending, _) in enumerate(endings) if path.name.lower().endswith(ending))

    def decoder(naming: Naming) -> Decoder:
        decoders = [legend.decoder(naming) for _, legend in endings]

        def decode(path: Path) -> LabelArray:
            return decoders[place(path)](path)

        return decode

    def labels_of(path: Path) -> tuple[Label, ...]:
        return endings[place(path)][1].labels

    return Legend(either(*(form.legend for form in forms)), decoder, labels_of)


def _length(ending: tuple[str, Legend]) -> int:
    return -len(ending[0])


def _shown(pattern: str) -> str:
    return PLACEHOLDER.sub(lambda found: f"<{found[1]}>", pattern)
