"""WildDash 2: hard scenes of roads from all over the world, one domain (``wilddash``).

Download (registration needed): https://wilddash.cc/download/wd_public_v2p0.zip ; its semantic labels are
made of the panoptic ones by the publisher's script (https://github.com/ozendelait/wilddash_scripts)::

    python pano2sem.py --json_path panoptic.json --outp_dir_sem semantic

The beta release ``wd_public_02.zip`` has them as ``labels/<name>.png``. Licence: WildDash licence,
non-commercial; cite Zendel et al., "Unifying panoptic segmentation for autonomous driving", CVPR 2022.

Names, and those in Cityscapes, are of the publisher's ``wd2_unified_label_policy.json``.
"""

from __future__ import annotations

from collections.abc import Mapping

from ppar_dist.data.prepare import cityscapes
from ppar_dist.data.prepare.layouts import Form, Table, tabled
from ppar_dist.data.prepare.legend import Label, index_labels

BEYOND = {
    34: Label("pickup", ("truck",)),
    35: Label("van", ("car",)),
    36: Label("billboard", ("static",)),
    37: Label("streetlight", ("static",)),
    38: Label("roadmarking", ("road",)),
    39: Label("junctionbox", ("static",)),
    40: Label("mailbox", ("static",)),
    41: Label("manhole", ("road",)),
    42: Label("phonebooth", ("static",)),
    43: Label("pothole", ("road",)),
    44: Label("bikerack", ("static",)),
    45: Label("trafficsignframe", ("pole",)),
    46: Label("utilitypole", ("pole",)),
    47: Label("motorcyclist", ("rider",)),
    48: Label("bicyclist", ("rider",)),
    49: Label("otherrider", ("rider",)),
    50: Label("bird", ("dynamic",)),
    51: Label("groundanimal", ("dynamic",)),
    52: Label("curb", ("sidewalk",)),
    53: Label("trafficsignany", ("static",)),
    54: Label("trafficsignback", ("static",)),
    55: Label("trashcan", ("static",)),
    56: Label("otherbarrier", ("wall",)),
    57: Label("othervehicle", ("dynamic",)),
    58: Label("autorickshaw", ("motorcycle",)),
    59: Label("bench", ("static",)),
    60: Label("mountain", ("static",)),
    61: Label("tramtrack", ("road",)),
    62: Label("wheeledslow", ("dynamic",)),
    63: Label("boat", ("dynamic",)),
    64: Label("bikelane", ("road",)),
    65: Label("bikelanesidewalk", ("sidewalk",)),
    66: Label("banner", ("dynamic",)),
    67: Label("dashcammount", ("ego vehicle",)),
    68: Label("water", ("ground",)),
    69: Label("sand", ("ground",)),
    70: Label("pedestrianarea", ("road",)),
    71: Label("firehydrant", ("static",)),
    72: Label("cctvcamera", ("static",)),
    73: Label("snow", ("ground",)),
    74: Label("catchbasin", ("road",)),
    75: Label("crosswalkplain", ("road",)),
    76: Label("crosswalkzebra", ("road",)),
    77: Label("manholesidewalk", ("sidewalk",)),
    78: Label("curbterrain", ("terrain",)),
    79: Label("servicelane", ("road",)),
    80: Label("curbcut", ("sidewalk",)),
}
"""The label ids that Cityscapes does not have, and their names there; its own ids mean the same."""

NAMES: Mapping[int, str | Label] = {**dict(enumerate(cityscapes.NAMES)), **BEYOND}
"""Names by label id."""

_LEGEND = index_labels(NAMES)

SOURCE = tabled(
    Table(
        "wilddash",
        (
            Form("images/{frame}.jpg", "labels/{frame}.png", _LEGEND),
            Form("images/{frame}.jpg", "semantic/{frame}_labelIds.png", _LEGEND),
        ),
    ),
    "https://wilddash.cc/download (wd_public_v2p0.zip, then pano2sem.py; or wd_public_02.zip)",
)
