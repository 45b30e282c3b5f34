"""Dark Zurich: the 50 labelled images of its validation split, by night (``dark_zurich_val``).

Download: https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/ , the package ``Dark_Zurich_val_anon.zip``.
Licence: its own, non-commercial research; cite Sakaridis et al., "Guided curriculum model adaptation and
uncertainty-aware evaluation for semantic nighttime image segmentation", ICCV 2019.
The training images have no labels, and those of the split ``test`` are not published.
"""

from __future__ import annotations

from ppar_dist.data.prepare import acdc
from ppar_dist.data.prepare.layouts import Table, above, cityscapes_coded, tabled

SOURCE = tabled(
    Table(
        "dark_zurich",
        cityscapes_coded(
            "rgb_anon/{split}/night/{sequence}/{frame}_rgb_anon.png",
            "gt/{split}/night/{sequence}/{frame}_gt",
            acdc.NAMES,
        ),
        splits={"val": "val"},
    ),
    "https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/ (Dark_Zurich_val_anon.zip)",
    parts={"sequence": above(1)},
)
