"""Nighttime Driving: 50 coarsely labelled images by night, a test set (``nighttime_driving_test``).

Download: http://data.vision.ee.ethz.ch/daid/NighttimeDriving/NighttimeDrivingTest.zip ; the root is its
folder ``NighttimeDrivingTest``. Licence: research; cite Dai and Van Gool, "Dark model adaptation: semantic
image segmentation from daytime to nighttime", ITSC 2018.
"""

from __future__ import annotations

from ppar_dist.data.prepare import acdc
from ppar_dist.data.prepare.layouts import Table, cityscapes_coded, tabled

SOURCE = tabled(
    Table(
        "nighttime_driving",
        cityscapes_coded(
            "leftImg8bit/{split}/night/{frame}_leftImg8bit.png",
            "gtCoarse_daytime_trainvaltest/{split}/night/{frame}_gtCoarse",
            acdc.NAMES,
        ),
        splits={"test": "test"},
    ),
    "http://data.vision.ee.ethz.ch/daid/NighttimeDriving/NighttimeDrivingTest.zip",
)
