"""GTA5, "Playing for Data": 24,966 frames of a game with the label ids and colours of Cityscapes.

Download: https://download.visinf.tu-darmstadt.de/data/from_games/ , ten archives of images and ten
of labels unpacked into one folder. Licence: research and education, non-commercial; cite Richter
et al., ECCV 2016.

The label PNGs carry a palette whose index is the Cityscapes label id (34 is the licence plate);
RGB copies of them are understood by their colours. Where image and label of a frame differ in
size, name the frame in ``exclude``.
"""

from __future__ import annotations

from pathlib import Path

from ppar_dist.class_sets import CITYSCAPES19, ClassSet
from ppar_dist.data.prepare import cityscapes
from ppar_dist.data.prepare.source import (
    Colour,
    Decoder,
    Domains,
    LabelArray,
    Source,
    colour_labels,
    index_labels,
    is_coloured,
    same_name_pairs,
)

NAMES = dict(enumerate((*cityscapes.NAMES, "license plate")))
"""Native names by label id."""

COLOURS: dict[Colour, str] = dict(zip(CITYSCAPES19.palette, CITYSCAPES19.classes, strict=True)) | {
    (0, 0, 0): "unlabeled",
    (20, 20, 20): "static",
    (111, 74, 0): "dynamic",
    (81, 0, 81): "ground",
    (250, 170, 160): "parking",
    (230, 150, 140): "rail track",
    (180, 165, 180): "guard rail",
    (150, 100, 100): "bridge",
    (150, 120, 90): "tunnel",
    (0, 0, 90): "caravan",
    (0, 0, 110): "trailer",
}
"""Native names by colour."""


def _decoder(classes: ClassSet) -> Decoder:
    by_index = index_labels(NAMES)(classes)
    by_colour: list[Decoder] = []  # made when the first RGB label turns up

    def decode(path: Path) -> LabelArray:
        if not is_coloured(path):
            return by_index(path)
        if not by_colour:
            by_colour.append(colour_labels(COLOURS)(classes))
        return by_colour[0](path)

    return decode


def _domains(root: Path) -> Domains:
    SOURCE.require(root / "images", root / "labels")
    return {"gta5": same_name_pairs(root / "images", root / "labels")}


SOURCE = Source(
    name="gta5",
    page="https://download.visinf.tu-darmstadt.de/data/from_games/",
    layout="images/<number>.png and labels/<number>.png",
    whole=("images", "labels"),
    domains=_domains,
    decoder=_decoder,
)
