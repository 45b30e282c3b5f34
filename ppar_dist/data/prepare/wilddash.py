"""WildDash 2: hard scenes of roads from all over the world, one domain (``wilddash``).

Download (registration needed): https://wilddash.cc/download/wd_public_v2p0.zip ; its semantic labels are
made of the panoptic ones by the publisher's script (https://github.com/ozendelait/wilddash_scripts)::

    python pano2sem.py --json_path panoptic.json --outp_dir_sem semantic

The beta release ``wd_public_02.zip`` has them as ``labels/<name>.png``. Licence: WildDash licence,
non-commercial; cite Zendel et al., "Unifying panoptic segmentation for autonomous driving", CVPR 2022.

The names are those of Cityscapes that the publisher's ``wd2_unified_label_policy.json`` gives.
"""

from __future__ import annotations

from ppar_dist.data.prepare import cityscapes
from ppar_dist.data.prepare.layouts import Form, Table, tabled
from ppar_dist.data.prepare.source import index_labels

BEYOND = {
    34: "truck",  # pickup
    35: "car",  # van
    36: "static",  # billboard
    37: "static",  # street light
    38: "road",  # road marking
    39: "static",  # junction box
    40: "static",  # mailbox
    41: "road",  # manhole
    42: "static",  # phone booth
    43: "road",  # pothole
    44: "static",  # bike rack
    45: "pole",  # frame of a traffic sign
    46: "pole",  # utility pole
    47: "rider",  # motorcyclist
    48: "rider",  # bicyclist
    49: "rider",  # other rider
    50: "dynamic",  # bird
    51: "dynamic",  # ground animal
    52: "sidewalk",  # curb
    53: "static",  # any traffic sign
    54: "static",  # back of a traffic sign
    55: "static",  # trash can
    56: "wall",  # other barrier
    57: "dynamic",  # other vehicle
    58: "motorcycle",  # auto rickshaw
    59: "static",  # bench
    60: "static",  # mountain
    61: "road",  # tram track
    62: "dynamic",  # slow vehicle on wheels
    63: "dynamic",  # boat
    64: "road",  # bike lane
    65: "sidewalk",  # bike lane on a sidewalk
    66: "dynamic",  # banner
    67: "ego vehicle",  # mount of the camera
    68: "ground",  # water
    69: "ground",  # sand
    70: "road",  # pedestrian area
    71: "static",  # fire hydrant
    72: "static",  # surveillance camera
    73: "ground",  # snow
    74: "road",  # catch basin
    75: "road",  # plain crosswalk
    76: "road",  # zebra crosswalk
    77: "sidewalk",  # manhole in a sidewalk
    78: "terrain",  # curb of terrain
    79: "road",  # service lane
    80: "sidewalk",  # curb cut
}
"""Names in Cityscapes of the label ids that Cityscapes does not have; its own ids mean the same."""

NAMES = dict(enumerate(cityscapes.NAMES)) | BEYOND
"""Names in Cityscapes by label id."""

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
