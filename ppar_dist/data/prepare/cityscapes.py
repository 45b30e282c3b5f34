"""Cityscapes: one domain per split (``cityscapes_train``, ``cityscapes_val``).

Download (registration needed): https://www.cityscapes-dataset.com/downloads/ , the packages
``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip`` unpacked into one folder.
Licence: Cityscapes licence, non-commercial research; cite Cordts et al., CVPR 2016.
The labels of the split ``test`` are not published, and it is left out.
"""

from __future__ import annotations

from pathlib import Path

from ppar_dist.data.prepare.source import Domains, Pair, Source, index_labels

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

SPLITS = ("train", "val")
_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def _domains(root: Path) -> Domains:
    images, labels = root / "leftImg8bit", root / "gtFine"
    SOURCE.require(images, labels)
    domains: dict[str, list[Pair]] = {}
    for split in SPLITS:
        for image in sorted((images / split).glob(f"*/*{_IMAGE}")):
            stem = image.name.removesuffix(_IMAGE)
            label = labels / split / image.parent.name / f"{stem}{_LABEL}"
            domains.setdefault(f"cityscapes_{split}", []).append(Pair(stem, image, label))
    return domains


SOURCE = Source(
    name="cityscapes",
    page="https://www.cityscapes-dataset.com/downloads/",
    layout=f"leftImg8bit/<split>/<city>/*{_IMAGE} and gtFine/<split>/<city>/*{_LABEL}",
    whole=("leftImg8bit",),
    domains=_domains,
    decoder=index_labels(dict(enumerate(NAMES))),
)
