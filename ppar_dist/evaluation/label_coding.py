"""Label maps as others number them: the ``labelIds`` of Cityscapes, for its test server.

Its evaluator looks, in all folders below one, for a picture ``<city>_<sequence>_<frame>*.png`` of each
frame, and refuses two. Results keep the names of their images, so labels are found; no other PNG may be.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppar_dist.class_sets import ClassSet
from ppar_dist.data.prepare.cityscapes import NAMES
from ppar_dist.errors import UserError
from ppar_dist.evaluation.palette_images import palette_image
from ppar_dist.text import some, visible

log = logging.getLogger(__name__)

Coding = Literal["train", "cityscapes"]

_FRAME = re.compile(r"([^_/]+_\d{6}_\d{6})(?!\d)")  # <city>_<sequence>_<frame>, as file names begin
_UNLABELED = NAMES.index("unlabeled")


def label_image(labels: NDArray[np.uint8], classes: ClassSet, coding: Coding) -> Image.Image:
    """A label map as it is stored: ``palette_image``, or grey pixels of Cityscapes' label ids.

    Args:
        labels: (H, W) class ids; 255 (ignore) becomes Cityscapes' "unlabeled".
        classes: for ``cityscapes``, one that ``check_coding`` lets pass.
        coding: how the stored pixels number the classes.
    """
    if coding == "train":
        return palette_image(labels, classes)
    ids = np.full(256, _UNLABELED, np.uint8)
    ids[: classes.num_classes] = [NAMES.index(name) for name in classes.classes]
    return Image.fromarray(ids[labels])


def check_coding(coding: Coding, classes: ClassSet) -> None:
    """Raise UserError where a class has no number in the coding."""
    unknown = [name for name in classes.classes if name not in NAMES]
    if coding == "cityscapes" and unknown:
        raise UserError(
            f"--coding cityscapes is for classes that Cityscapes has, and {classes.name} has others: "
            f"{some(unknown)}; use --coding train, or a model of cityscapes19"
        )


def check_frame_names(names: Sequence[PurePath]) -> None:
    """Raise UserError where several results are of one frame of Cityscapes; tell those that are of none."""
    found = [(name, _FRAME.match(name.name)) for name in names]
    others = [visible(str(name)) for name, match in found if match is None]
    if others:
        told = (
            "Cityscapes' evaluator finds labels by <city>_<6 digits>_<6 digits>; %d are named otherwise: %s"
        )
        log.warning(told, len(others), some(others))
    counted = Counter(match.group(1) for _, match in found if match is not None)
    twice = [frame for frame, count in counted.items() if count > 1]
    if twice:
        raise UserError(
            "Cityscapes' evaluator takes one result for each frame, and several images are named as "
            f"{some(twice)}; give one of each"
        )
