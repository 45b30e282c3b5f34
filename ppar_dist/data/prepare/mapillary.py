"""Mapillary Vistas, v1.2 and v2.0: streets of all continents; one domain per split (``mapillary_val``).

Download (registration needed): https://www.mapillary.com/dataset/vistas . The package of v2.0 holds the
labels of both versions, that of v1.2 its own. Licence: CC BY-NC-SA 4.0 and the terms of Mapillary; cite
Neuhold et al., "The Mapillary Vistas dataset for semantic understanding of street scenes", ICCV 2017.

Label PNGs store the position of a label in the package's ``config….json``; where that file is there, it has
to agree with the names here. The names in Cityscapes of v1.2 are those by which papers on domain
generalisation score (RobustNet, Choi et al., CVPR 2021: its ``datasets/mapillary.py``). No such list is
published for v2.0; its finer labels are taken as the label of v1.2 that they refine.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ppar_dist.data.prepare.layouts import Form, Table, tabled
from ppar_dist.data.prepare.legend import VOID, Label, index_labels
from ppar_dist.data.prepare.source import Domains, Source
from ppar_dist.errors import DataError
from ppar_dist.text import one_line

_V1_2 = """
animal: bird ground-animal
construction: barrier--curb barrier--fence barrier--guard-rail barrier--other-barrier barrier--wall
    flat--bike-lane flat--crosswalk-plain flat--curb-cut flat--parking flat--pedestrian-area
    flat--rail-track flat--road flat--service-lane flat--sidewalk structure--bridge structure--building
    structure--tunnel
human: person rider--bicyclist rider--motorcyclist rider--other-rider
marking: crosswalk-zebra general
nature: mountain sand sky snow terrain vegetation water
object: banner bench bike-rack billboard catch-basin cctv-camera fire-hydrant junction-box mailbox
    manhole phone-booth pothole street-light support--pole support--traffic-sign-frame
    support--utility-pole traffic-light traffic-sign--back traffic-sign--front trash-can
    vehicle--bicycle vehicle--boat vehicle--bus vehicle--car vehicle--caravan vehicle--motorcycle
    vehicle--on-rails vehicle--other-vehicle vehicle--trailer vehicle--truck vehicle--wheeled-slow
void: car-mount ego-vehicle unlabeled
"""
_V2_0 = """
animal: bird ground-animal
construction: barrier--ambiguous barrier--concrete-block barrier--curb barrier--fence
    barrier--guard-rail barrier--other-barrier barrier--road-median barrier--road-side
    barrier--separator barrier--temporary barrier--wall flat--bike-lane flat--crosswalk-plain
    flat--curb-cut flat--driveway flat--parking flat--parking-aisle flat--pedestrian-area
    flat--rail-track flat--road flat--road-shoulder flat--service-lane flat--sidewalk
    flat--traffic-island structure--bridge structure--building structure--garage structure--tunnel
human: person--individual person--person-group rider--bicyclist rider--motorcyclist rider--other-rider
marking: continuous--dashed continuous--solid continuous--zigzag discrete--ambiguous
    discrete--arrow--left discrete--arrow--other discrete--arrow--right
    discrete--arrow--split-left-or-straight discrete--arrow--split-right-or-straight
    discrete--arrow--straight discrete--crosswalk-zebra discrete--give-way-row discrete--give-way-single
    discrete--hatched--chevron discrete--hatched--diagonal discrete--other-marking discrete--stop-line
    discrete--symbol--bicycle discrete--symbol--other discrete--text
marking-only: continuous--dashed discrete--crosswalk-zebra discrete--other-marking discrete--text
nature: mountain sand sky snow terrain vegetation water
object: banner bench bike-rack catch-basin cctv-camera fire-hydrant junction-box mailbox manhole
    parking-meter phone-booth pothole sign--advertisement sign--ambiguous sign--back sign--information
    sign--other sign--store street-light support--pole support--pole-group support--traffic-sign-frame
    support--utility-pole traffic-cone traffic-light--general-single traffic-light--pedestrians
    traffic-light--general-upright traffic-light--general-horizontal traffic-light--cyclists
    traffic-light--other traffic-sign--ambiguous traffic-sign--back traffic-sign--direction-back
    traffic-sign--direction-front traffic-sign--front traffic-sign--information-parking
    traffic-sign--temporary-back traffic-sign--temporary-front trash-can vehicle--bicycle vehicle--boat
    vehicle--bus vehicle--car vehicle--caravan vehicle--motorcycle vehicle--on-rails
    vehicle--other-vehicle vehicle--trailer vehicle--truck vehicle--vehicle-group vehicle--wheeled-slow
    water-valve
void: car-mount dynamic ego-vehicle ground static unlabeled
"""

CITYSCAPES = {
    "construction--flat--road": "road",
    "marking--general": "road",
    "object--manhole": "road",
    "construction--flat--sidewalk": "sidewalk",
    "construction--barrier--curb": "sidewalk",
    "construction--structure--building": "building",
    "construction--barrier--wall": "wall",
    "construction--barrier--fence": "fence",
    "object--support--pole": "pole",
    "object--support--utility-pole": "pole",
    "object--traffic-light": "traffic light",
    "object--traffic-sign--front": "traffic sign",
    "nature--vegetation": "vegetation",
    "nature--terrain": "terrain",
    "nature--sky": "sky",
    "human--person": "person",
    "human--rider--bicyclist": "rider",
    "human--rider--motorcyclist": "rider",
    "human--rider--other-rider": "rider",
    "object--vehicle--car": "car",
    "object--vehicle--truck": "truck",
    "object--vehicle--bus": "bus",
    "object--vehicle--on-rails": "train",
    "object--vehicle--motorcycle": "motorcycle",
    "object--vehicle--bicycle": "bicycle",
    # what Cityscapes has too, but does not score
    "construction--barrier--guard-rail": "guard rail",
    "construction--flat--parking": "parking",
    "construction--flat--rail-track": "rail track",
    "construction--structure--bridge": "bridge",
    "construction--structure--tunnel": "tunnel",
    "object--vehicle--caravan": "caravan",
    "object--vehicle--trailer": "trailer",
}
"""Names in Cityscapes of the labels of v1.2; all others are not classes."""

_MARKINGS = ("marking--continuous--", "marking--discrete--", "marking-only--")
_REFINED = {
    "human--person--individual": "human--person",
    "human--person--person-group": "human--person",
    "object--support--pole-group": "object--support--pole",
    "object--traffic-sign--direction-front": "object--traffic-sign--front",
    "object--traffic-sign--information-parking": "object--traffic-sign--front",
    "object--traffic-sign--temporary-front": "object--traffic-sign--front",
}


def _listed(text: str) -> tuple[str, ...]:
    """Native names: each "head: tail tail …" stands for head--tail of each."""
    names, head = [], ""
    for word in text.split():
        if word.endswith(":"):
            head = word.removesuffix(":")
        else:
            names.append(f"{head}--{word}")
    return tuple(names)


NATIVE = {"v1.2": _listed(_V1_2), "v2.0": _listed(_V2_0)}
"""Native names of a version by label value."""


def in_cityscapes(native: str) -> str:
    """The name in Cityscapes of a label of either version, or that of no class."""
    if native.startswith("object--traffic-light--"):
        native = "object--traffic-light"
    elif native.startswith(_MARKINGS) and not native.endswith("--crosswalk-zebra"):
        native = "marking--general"
    return CITYSCAPES.get(_REFINED.get(native, native), VOID)


def _source(name: str, version: str, labels: tuple[str, ...], configs: tuple[str, ...]) -> Source:
    names = NATIVE[version]
    legend = index_labels(
        {value: Label(native, (in_cityscapes(native),)) for value, native in enumerate(names)}
    )
    forms = tuple(Form("{split}/images/{frame}.jpg", each, legend) for each in labels)
    plain = tabled(
        Table(name, forms, splits={"training": "train", "validation": "val"}),
        f"https://www.mapillary.com/dataset/vistas ({version})",
    )

    def domains(root: Path) -> Domains:
        for config in configs:
            if (root / config).is_file():
                _hold_to(root / config, version)
        return plain.domains(root)

    return replace(plain, domains=domains, layout=f"{plain.layout}, {' or '.join(configs)}")


def _hold_to(config: Path, version: str) -> None:
    """Raises DataError where the package's list of labels does not mean what the names here do."""
    try:
        found = [str(label["name"]) for label in json.loads(config.read_text("utf-8"))["labels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read the labels in {config} ({one_line(error)}); unpack it again") from None
    known = NATIVE[version]
    if len(found) != len(known):
        raise DataError(
            f"{config} lists {len(found)} labels, Mapillary Vistas {version} has {len(known)}; get that "
            "version, or prepare the other one"
        )
    for value, (here, there) in enumerate(zip(known, found, strict=True)):
        if there not in known or in_cityscapes(here) != in_cityscapes(there):
            raise DataError(
                f"{config} calls label {value} {there!r}, in Mapillary Vistas {version} it is {here!r}; get "
                "the package again, or describe it to `prepare folder` with a mapping file"
            )


V1_2 = _source(
    "mapillary",
    "v1.2",
    ("{split}/labels/{frame}.png", "{split}/v1.2/labels/{frame}.png"),
    ("config.json", "config_v1.2.json"),
)
V2_0 = _source("mapillary_v2", "v2.0", ("{split}/v2.0/labels/{frame}.png",), ("config_v2.0.json",))
