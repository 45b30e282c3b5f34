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

from ppar_dist.data.prepare import cityscapes
from ppar_dist.data.prepare.legend import (
    Colour,
    Decoder,
    LabelArray,
    Legend,
    Naming,
    colour_labels,
    either,
    index_labels,
    is_coloured,
)
from ppar_dist.data.prepare.source import Domains, Source, same_name_pairs

NAMES = dict(enumerate((*cityscapes.NAMES, "license plate")))
"""Native names by label id."""

COLOURS: dict[Colour, str] = {
    (128, 64, 128): "road",
    (244, 35, 232): "sidewalk",
    (70, 70, 70): "building",
    (102, 102, 156): "wall",
    (190, 153, 153): "fence",
    (153, 153, 153): "pole",
    (250, 170, 30): "traffic light",
    (220, 220, 0): "traffic sign",
    (107, 142, 35): "vegetation",
    (152, 251, 152): "terrain",
    (70, 130, 180): "sky",
    (220, 20, 60): "person",
    (255, 0, 0): "rider",
    (0, 0, 142): "car",
    (0, 0, 70): "truck",
    (0, 60, 100): "bus",
    (0, 80, 100): "train",
    (0, 0, 230): "motorcycle",
    (119, 11, 32): "bicycle",
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


_BY_INDEX, _BY_COLOUR = index_labels(NAMES), colour_labels(COLOURS)


def _decoder(naming: Naming) -> Decoder:
    by_index = _BY_INDEX.decoder(naming)
    by_colour: list[Decoder] = []  # made when the first RGB label turns up

    def decode(path: Path) -> LabelArray:
        if not is_coloured(path):
            return by_index(path)
        if not by_colour:
            by_colour.append(_BY_COLOUR.decoder(naming))
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
    legend=Legend(either(_BY_INDEX, _BY_COLOUR), _decoder),
)
