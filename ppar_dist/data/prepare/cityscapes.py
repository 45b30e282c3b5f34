"""Cityscapes: one domain per split (``cityscapes_train``, ``cityscapes_val``), or per split and city.

Download (registration needed): https://www.cityscapes-dataset.com/downloads/ , the packages
``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip`` unpacked into one folder.
Licence: Cityscapes licence, non-commercial research; cite Cordts et al., CVPR 2016.
The labels of the split ``test`` are not published, and it is left out.
"""

from __future__ import annotations

from ppar_dist.data.prepare.layouts import Form, Table, above, tabled
from ppar_dist.data.prepare.legend import index_labels

NAMES = (
    "unlabeled",
    "ego vehicle",
    "rectification border",
    "out of roi",
    "static",
    "dynamic",
    "ground",
    "road",
    "sidewalk",
    "parking",
    "rail track",
    "building",
    "wall",
    "fence",
    "guard rail",
    "bridge",
    "tunnel",
    "pole",
    "polegroup",
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
    "caravan",
    "trailer",
    "train",
    "motorcycle",
    "bicycle",
)
"""Native names by label id (``labelIds``, not ``labelTrainIds``)."""

SPLITS = {"train": "train", "val": "val"}
BY_CITY = {"city": above(1)}
"""The rule by which Cityscapes and what is made of it can be split."""

SOURCE = tabled(
    Table(
        "cityscapes",
        (
            Form(
                "leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png",
                "gtFine/{split}/{city}/{frame}_gtFine_labelIds.png",
                index_labels(dict(enumerate(NAMES))),
            ),
        ),
        splits=SPLITS,
    ),
    "https://www.cityscapes-dataset.com/downloads/",
    parts=BY_CITY,
)
