"""LabelMeFacade: hand-labelled facades and streets of many cities; one domain per list.

Download: https://github.com/cvjena/labelmefacade (images, labels, ``train.txt``, ``test.txt``).
Licence: images of the LabelMe project, for research; cite Fröhlich et al., "A fast approach for
pixelwise labeling of facade images", ICPR 2010.
"""

from __future__ import annotations

from pathlib import Path

from ppar_dist.data.prepare.legend import Colour, colour_labels
from ppar_dist.data.prepare.source import Domains, Pair, Source
from ppar_dist.errors import DataError

NAMES: dict[Colour, str] = {
    (128, 0, 0): "building",
    (128, 0, 128): "car",
    (128, 128, 0): "door",
    (128, 128, 128): "pavement",
    (128, 64, 0): "road",
    (0, 128, 128): "sky",
    (0, 128, 0): "vegetation",
    (0, 0, 128): "window",
    (0, 0, 0): "various",
}
"""Native names by colour."""


def _domains(root: Path) -> Domains:
    SOURCE.require(root / "images")
    domains: dict[str, list[Pair]] = {}
    for part in ("train", "test"):
        listed = root / f"{part}.txt"
        if not listed.is_file():
            raise SOURCE.missing(listed)
        stems = [
            Path(line.strip()).name for line in listed.read_text("utf-8-sig").splitlines() if line.strip()
        ]
        stems = [stem.removesuffix(".jpg") for stem in stems]
        if not stems:
            raise DataError(f"{listed} names no image; get the list again from {SOURCE.page}")
        domains[f"labelmefacade_{part}"] = [
            Pair(stem, root / "images" / f"{stem}.jpg", root / "labels" / f"{stem}.png") for stem in stems
        ]
    return domains


SOURCE = Source(
    name="labelmefacade",
    page="https://github.com/cvjena/labelmefacade",
    layout="images/<name>.jpg, labels/<name>.png (colours), train.txt and test.txt (one name a line)",
    domains=_domains,
    legend=colour_labels(NAMES),
)
