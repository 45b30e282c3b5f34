"""BDD100K, semantic segmentation: streets of the United States; one domain per split (``bdd100k_val``).

Download (registration needed): https://bdd-data.berkeley.edu , the packages "10K Images" and
"Segmentation", unpacked into one folder. Licence: its own, see https://doc.bdd100k.com/license.html ; cite
Yu et al., "BDD100K: a diverse driving dataset for heterogeneous multitask learning", CVPR 2020.

The masks store the train ids of Cityscapes. The release of 2018 has them as ``seg/labels/…_train_id.png``.
"""

from __future__ import annotations

from ppar_dist.data.prepare.cityscapes import SPLITS
from ppar_dist.data.prepare.layouts import TRAIN_IDS, Form, Table, tabled
from ppar_dist.data.prepare.legend import index_labels

_LEGEND = index_labels(TRAIN_IDS)

SOURCE = tabled(
    Table(
        "bdd100k",
        (
            Form("images/10k/{split}/{frame}.jpg", "labels/sem_seg/masks/{split}/{frame}.png", _LEGEND),
            Form("seg/images/{split}/{frame}.jpg", "seg/labels/{split}/{frame}_train_id.png", _LEGEND),
        ),
        splits=SPLITS,
    ),
    "https://bdd-data.berkeley.edu (10K Images, Segmentation)",
)
