"""IDD, the India Driving Dataset, and IDD-Lite: unstructured roads; one domain per split (``idd_val``).

Download (registration needed): https://idd.insaan.iiit.ac.in , "IDD Segmentation" (parts I and II may be
unpacked into one folder) or "IDD Lite". Licence: its own, research; cite Varma et al., "IDD: a dataset for
exploring problems of autonomous navigation in unconstrained environments", WACV 2019.

The label PNGs of IDD are made of its polygons by the publisher (https://github.com/AutoNUE/public-code)::

    python preperation/createLabels.py --datadir ROOT --id-type id

``id`` tells most. Those of ``csTrainId`` and ``level3Id``, the script's default, are read too; level 3 has
several names in one id. ``NAMES`` follows ``helpers/anue_labels.py`` there.

IDD-Lite (``idd_lite``) comes with labels of seven groups. A group counts as a class where all of it that a
class set knows is that class: its vehicles are cars in ``roads6``, which has no other vehicle, and no class
in ``cityscapes19``.
"""

from __future__ import annotations

from collections.abc import Mapping

from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.data.prepare.cityscapes import SPLITS
from ppar_dist.data.prepare.layouts import TRAIN_IDS, Form, Table, above, tabled
from ppar_dist.data.prepare.legend import VOID, Label, index_labels

_NON_DRIVABLE = Label("non-drivable fallback", ("terrain",))  # the publisher maps it so

NAMES: tuple[str | Label, ...] = (
    "road",
    "parking",
    "drivable fallback",
    "sidewalk",
    "rail track",
    _NON_DRIVABLE,
    "person",
    "animal",
    "rider",
    "motorcycle",
    "bicycle",
    "autorickshaw",
    "car",
    "truck",
    "bus",
    "caravan",
    "trailer",
    "train",
    "vehicle fallback",
    "curb",
    "wall",
    "fence",
    "guard rail",
    "billboard",
    "traffic sign",
    "traffic light",
    "pole",
    "polegroup",
    "obs-str-bar-fallback",
    "building",
    "bridge",
    "tunnel",
    "vegetation",
    "sky",
    "fallback background",
    "unlabeled",
    "ego vehicle",
    "rectification border",
    "out of roi",
    "license plate",
)
"""Names by id."""

LEVEL3: Mapping[int, str | Label] = {
    0: "road",
    1: "drivable fallback",  # and parking
    2: "sidewalk",
    3: _NON_DRIVABLE,  # and rail track
    4: "person",  # and animal
    5: "rider",
    6: "motorcycle",
    7: "bicycle",
    8: "autorickshaw",
    9: "car",
    10: "truck",
    11: "bus",
    12: "vehicle fallback",  # and caravan, trailer, train
    13: "curb",
    14: "wall",
    15: "fence",
    16: "guard rail",
    17: "billboard",
    18: "traffic sign",
    19: "traffic light",
    20: "pole",  # and polegroup
    21: "obs-str-bar-fallback",
    22: "building",
    23: "bridge",  # and tunnel
    24: "vegetation",
    25: "sky",  # and fallback background
    IGNORE_INDEX: VOID,
}
"""Names by id of level 3."""

_STATIC = ("wall", "fence", "guard rail", "pole", "traffic sign", "traffic light", "billboard")
_GROUPS: Mapping[int, tuple[str, ...]] = {
    0: ("drivable", "road"),
    1: ("non-drivable", "sidewalk", "terrain"),
    2: ("living-things", "person", "animal", "rider"),
    3: ("vehicles", "car", "truck", "bus", "train", "motorcycle", "bicycle", "caravan", "trailer"),
    4: ("road-side-objs", *_STATIC),
    5: ("far-objects", "building", "bridge", "tunnel", "vegetation"),
    6: ("sky",),
    IGNORE_INDEX: (VOID,),
}
LITE = {value: Label(names[0], names) for value, names in _GROUPS.items()}
"""Groups of IDD-Lite by id: the publisher's name of the group, and names of what is in it."""


_IMAGES = "leftImg8bit/{split}/{sequence}/{frame}_leftImg8bit.{ext}"  # png in part I, jpg in part II
_LABELS = "gtFine/{split}/{sequence}/{frame}_gtFine_label"
_PARTS = {"sequence": above(1)}

SOURCE = tabled(
    Table(
        "idd",
        (
            Form(_IMAGES, f"{_LABELS}ids.png", index_labels(dict(enumerate(NAMES)) | {IGNORE_INDEX: VOID})),
            Form(_IMAGES, f"{_LABELS}csTrainIds.png", index_labels(TRAIN_IDS)),
            Form(_IMAGES, f"{_LABELS}level3Ids.png", index_labels(LEVEL3)),
        ),
        key="{sequence}_{frame}",
        splits=SPLITS,
    ),
    "https://idd.insaan.iiit.ac.in (IDD Segmentation; label PNGs by createLabels.py of AutoNUE/public-code)",
    parts=_PARTS,
)

LITE_SOURCE = tabled(
    Table(
        "idd_lite",
        (
            Form(
                "leftImg8bit/{split}/{sequence}/{frame}_image.{ext}",
                "gtFine/{split}/{sequence}/{frame}_label.png",
                index_labels(LITE),
            ),
        ),
        key="{sequence}_{frame}",
        splits=SPLITS,
    ),
    "https://idd.insaan.iiit.ac.in (IDD Lite)",
    parts=_PARTS,
)
