"""SYNTHIA-RAND-CITYSCAPES: 9,400 rendered views with labels close to those of Cityscapes.

Download: https://synthia-dataset.net/downloads/ (SYNTHIA-RAND-CITYSCAPES, CVPR16).
Licence: CC BY-NC-SA 3.0; cite Ros et al., CVPR 2016.

``GT/LABELS`` holds 16-bit PNGs of several channels, the class in the first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppar_dist.data.prepare.legend import index_labels, unusable
from ppar_dist.data.prepare.source import Domains, Source, same_name_pairs
from ppar_dist.pictures import (
    PictureError,
    label_ids,
    open_label,
    open_picture,
    png_channels,
    refuse_turned,
)

NAMES = (
    "void",
    "sky",
    "building",
    "road",
    "sidewalk",
    "fence",
    "vegetation",
    "pole",
    "car",
    "traffic sign",
    "pedestrian",
    "bicycle",
    "motorcycle",
    "parking-slot",
    "road-work",
    "traffic light",
    "terrain",
    "rider",
    "truck",
    "bus",
    "train",
    "wall",
    "lanemarking",
)
"""Native names by label id."""


def _read(path: Path) -> NDArray[np.integer]:
    """The first channel of a PNG, as stored, (H, W)."""
    try:
        raw = path.read_bytes()
        image = open_picture(raw, ("PNG",))
        if len(image.getbands()) == 1:  # grey or palette of any depth
            return label_ids(open_label(raw))
        refuse_turned(image, raw)
        first: NDArray[np.integer] = png_channels(raw)[0]
    except PictureError as error:
        raise unusable(path, error) from None
    return first


def _domains(root: Path) -> Domains:
    SOURCE.require(root / "RGB", root / "GT/LABELS")
    return {"synthia": same_name_pairs(root / "RGB", root / "GT" / "LABELS")}


SOURCE = Source(
    name="synthia",
    page="https://synthia-dataset.net/downloads/",
    layout="RGB/<number>.png and GT/LABELS/<number>.png (16 bit)",
    whole=("RGB", "GT/LABELS"),
    domains=_domains,
    legend=index_labels(dict(enumerate(NAMES)), _read),
)
