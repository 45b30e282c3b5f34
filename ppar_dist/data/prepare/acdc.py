"""ACDC: fog, night, rain and snow around Zurich; one domain per condition and split (``acdc_fog_val``).

Download (registration needed): https://acdc.vision.ee.ethz.ch/download , the packages
``rgb_anon_trainvaltest.zip`` and ``gt_trainval.zip``, unpacked into one folder. Licence: ACDC licence,
non-commercial research; cite Sakaridis et al., "ACDC: the adverse conditions dataset with correspondences
for semantic driving scene understanding", ICCV 2021. The labels of the split ``test`` are not published,
and it is left out; so are the reference images.
"""

from __future__ import annotations

from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.data.prepare import cityscapes
from ppar_dist.data.prepare.layouts import Table, above, cityscapes_coded, tabled
from ppar_dist.data.prepare.legend import VOID

NAMES = dict(enumerate(cityscapes.NAMES)) | {IGNORE_INDEX: VOID}
"""Native names by label id: those of Cityscapes."""

SOURCE = tabled(
    Table(
        "acdc",
        cityscapes_coded(
            "rgb_anon/{condition}/{split}/{sequence}/{frame}_rgb_anon.png",
            "gt/{condition}/{split}/{sequence}/{frame}_gt",
            NAMES,
        ),
        splits=cityscapes.SPLITS,
    ),
    "https://acdc.vision.ee.ethz.ch/download",
    parts={"condition": above(3), "sequence": above(3, 1)},
    usual="condition",
)
