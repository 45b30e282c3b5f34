"""SYNTHIA-RAND-CITYSCAPES: 9,400 rendered views with labels close to those of Cityscapes.

Download: https://synthia-dataset.net/downloads/ (SYNTHIA-RAND-CITYSCAPES, CVPR16).
Licence: CC BY-NC-SA 3.0; cite Ros et al., CVPR 2016.

``GT/LABELS`` holds 16-bit PNGs of several channels, the class in the first. Pillow keeps only the
upper byte of such a file, which would turn every label into void, so torchvision reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_png

from ppar_dist.data.prepare.source import Domains, Source, index_labels, same_name_pairs
from ppar_dist.errors import DataError

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
    """The first channel of a PNG of 8 or 16 bits, (H, W)."""
    try:
        raw = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        channel: NDArray[np.integer] = decode_png(raw, ImageReadMode.UNCHANGED)[0].numpy()
        return channel
    except FileNotFoundError:
        raise DataError(f"no file {path}; the data set is incomplete, unpack it again") from None
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"cannot read {path} ({reason}); fetch it again, or leave it out by --exclude"
        ) from None


def _domains(root: Path) -> Domains:
    SOURCE.require(root / "RGB", root / "GT/LABELS")
    return {"synthia": same_name_pairs(root / "RGB", root / "GT" / "LABELS")}


SOURCE = Source(
    name="synthia",
    page="https://synthia-dataset.net/downloads/",
    layout="RGB/<number>.png and GT/LABELS/<number>.png (16 bit)",
    domains=_domains,
    decoder=index_labels(dict(enumerate(NAMES)), _read),
)
