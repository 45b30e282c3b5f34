"""Data sets with label values of their own, in their native layouts, against their publishers' tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as OFFICIAL
from PIL import Image

from ppar_dist.class_sets import class_set
from ppar_dist.data.prepare import Options, prepare
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import decode_label
from ppar_dist.errors import UserError
from tests.unit.data.prepare.native import became, by_name, domains, save_pair
from tests.unit.data.prepare.test_prepare import real_data

TRAIN_ID = {label.name: label.trainId for label in OFFICIAL if 0 <= label.trainId < 255}

# --- BDD100K ---

# Train ids of github.com/bdd100k/bdd100k, bdd100k/label/label.py.
BDD = {"road": 0, "sidewalk": 1, "building": 2, "wall": 3, "fence": 4, "pole": 5, "traffic light": 6}
BDD |= {"traffic sign": 7, "vegetation": 8, "terrain": 9, "sky": 10, "person": 11, "rider": 12, "car": 13}
BDD |= {"truck": 14, "bus": 15, "train": 16, "motorcycle": 17, "bicycle": 18}
BDD_LAYOUTS = {
    "2021": ("images/10k/{}/{}.jpg", "labels/sem_seg/masks/{}/{}.png"),
    "2018": ("seg/images/{}/{}.jpg", "seg/labels/{}/{}_train_id.png"),
}


@pytest.mark.parametrize("release", BDD_LAYOUTS)
def test_bdd100k_stores_train_ids(tmp_path: Path, release: str) -> None:
    image, label = BDD_LAYOUTS[release]
    values = [*BDD.values(), 255]
    for split, frame in (("train", "0004a4c0-d4dff0ad"), ("val", "7d06fefd-f7be05a6")):
        save_pair(tmp_path / image.format(split, frame), tmp_path / label.format(split, frame), values)
    made = domains("bdd100k", tmp_path, tmp_path / "out", "cityscapes19")
    assert made == {"bdd100k_train": ["0004a4c0-d4dff0ad"], "bdd100k_val": ["7d06fefd-f7be05a6"]}
    names = {number: name for name, number in BDD.items()} | {255: "void"}
    found = became(tmp_path / "out/bdd100k_val", "7d06fefd-f7be05a6", values)
    assert found == by_name(names, TRAIN_ID)


def test_bdd100k_refuses_label_ids(tmp_path: Path) -> None:
    save_pair(tmp_path / "images/10k/val/a.jpg", tmp_path / "labels/sem_seg/masks/val/a.png", range(41))
    with pytest.raises(UserError, match=r"masks/val/a.png: value 19 is not a label of this data set"):
        prepare("bdd100k", tmp_path, tmp_path / "out", "cityscapes19")


# --- Mapillary Vistas ---

# Readable names in the order of the package's config.json; mmsegmentation lists them too.
VISTAS = """Bird, Ground Animal, Curb, Fence, Guard Rail, Barrier, Wall, Bike Lane, Crosswalk - Plain, Curb
Cut, Parking, Pedestrian Area, Rail Track, Road, Service Lane, Sidewalk, Bridge, Building, Tunnel, Person,
Bicyclist, Motorcyclist, Other Rider, Lane Marking - Crosswalk, Lane Marking - General, Mountain, Sand, Sky,
Snow, Terrain, Vegetation, Water, Banner, Bench, Bike Rack, Billboard, Catch Basin, CCTV Camera, Fire
Hydrant, Junction Box, Mailbox, Manhole, Phone Booth, Pothole, Street Light, Pole, Traffic Sign Frame,
Utility Pole, Traffic Light, Traffic Sign (Back), Traffic Sign (Front), Trash Can, Bicycle, Boat, Bus, Car,
Caravan, Motorcycle, On Rails, Other Vehicle, Trailer, Truck, Wheeled Slow, Car Mount, Ego Vehicle,
Unlabeled"""
VISTAS_NAMES = dict(enumerate(" ".join(VISTAS.split()).split(", ")))
# Train ids of RobustNet (github.com/shachoi/RobustNet, datasets/mapillary.py, gen_id_to_ignore).
ROBUSTNET = {
    13: 0,
    24: 0,
    41: 0,
    2: 1,
    15: 1,
    17: 2,
    6: 3,
    3: 4,
    45: 5,
    47: 5,
    48: 6,
    50: 7,
    30: 8,
    29: 9,
    27: 10,
}
ROBUSTNET |= {19: 11, 20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18}
# v2.0: positions in config_v2.0.json of what v1.2 has as one label, or as several.
VISTAS_2 = {21: 0, 75: 0, 4: 1, 24: 1, 27: 2, 12: 3, 5: 4, 85: 5, 86: 5, 88: 5, 64: 8, 63: 9, 61: 10, 30: 11}
VISTAS_2[74] = VISTAS_2.pop(75)  # manhole
VISTAS_2 |= {31: 11, 32: 12, 33: 12, 34: 12, 108: 13, 114: 14, 107: 15, 111: 16, 110: 17, 105: 18}
VISTAS_2 |= dict.fromkeys(range(90, 96), 6)  # lights, for cars, pedestrians and cyclists
VISTAS_2 |= dict.fromkeys((99, 100, 101, 103), 7)  # fronts of signs
VISTAS_2 |= dict.fromkeys({*range(35, 59)} - {45, 56}, 0)  # markings, but zebra crossings


def vistas(root: Path, labels: str, count: int) -> None:
    for split, frame in (("training", "-00RL9ZuwdkqgKe2H1nT4A"), ("validation", "_2Sd7b9ogf-Iq7TyCnBgtg")):
        label = root / split / labels / f"{frame}.png"
        save_pair(root / split / "images" / f"{frame}.jpg", label, range(count))


@pytest.mark.parametrize(
    ("dataset", "labels", "ids"),
    [
        ("mapillary", "labels", {value: ROBUSTNET.get(value, 255) for value in VISTAS_NAMES}),
        ("mapillary", "v1.2/labels", {value: ROBUSTNET.get(value, 255) for value in VISTAS_NAMES}),
        ("mapillary_v2", "v2.0/labels", {value: VISTAS_2.get(value, 255) for value in range(124)}),
    ],
)
def test_mapillary_vistas(tmp_path: Path, dataset: str, labels: str, ids: dict[int, int]) -> None:
    vistas(tmp_path, labels, len(ids))
    (tmp_path / "testing/images").mkdir(parents=True)
    made = domains(dataset, tmp_path, tmp_path / "out", "cityscapes19")
    assert made == {
        f"{dataset}_train": ["-00RL9ZuwdkqgKe2H1nT4A"],
        f"{dataset}_val": ["_2Sd7b9ogf-Iq7TyCnBgtg"],
    }
    found = became(tmp_path / f"out/{dataset}_val", "_2Sd7b9ogf-Iq7TyCnBgtg", ids)
    assert found == ids
    if dataset == "mapillary":  # the table by number says what the names say
        assert {VISTAS_NAMES[value] for value, train_id in found.items() if train_id == 12} == {
            *("Bicyclist", "Motorcyclist", "Other Rider")
        }
        same = {name: TRAIN_ID[name.lower()] for name in VISTAS_NAMES.values() if name.lower() in TRAIN_ID}
        assert len(same) == 16
        assert all(found[value] == same[name] for value, name in VISTAS_NAMES.items() if name in same)


def test_both_versions_of_mapillary_vistas_lie_in_one_package(tmp_path: Path) -> None:
    vistas(tmp_path, "v1.2/labels", 66)
    vistas(tmp_path, "v2.0/labels", 66)
    for dataset, road in (("mapillary", 13), ("mapillary_v2", 21)):
        assert len(domains(dataset, tmp_path, tmp_path / "out", "cityscapes19")) == 2
        found = became(tmp_path / f"out/{dataset}_val", "_2Sd7b9ogf-Iq7TyCnBgtg", range(66))
        assert [value for value in (13, 21) if found[value] == 0] == [road]


def config(root: Path, name: str, labels: list[str]) -> None:
    (root / name).write_text(json.dumps({"labels": [{"name": label, "readable": "?"} for label in labels]}))


def test_the_list_of_labels_of_mapillary_vistas_is_held_to(tmp_path: Path) -> None:
    from ppar_dist.data.prepare.mapillary import NATIVE

    vistas(tmp_path, "labels", 66)
    config(tmp_path, "config.json", list(NATIVE["v1.2"]))
    assert domains("mapillary", tmp_path, tmp_path / "out", "cityscapes19")
    swapped = list(NATIVE["v1.2"])
    swapped[13], swapped[15] = swapped[15], swapped[13]
    config(tmp_path, "config.json", swapped)
    with pytest.raises(
        UserError,
        match=r"calls label 13 'construction--flat--sidewalk', in Mapillary Vistas v1.2 it is 'constr",
    ):
        prepare("mapillary", tmp_path, tmp_path / "again", "cityscapes19")
    config(tmp_path, "config.json", list(NATIVE["v2.0"]))
    with pytest.raises(UserError, match=r"lists 124 labels, Mapillary Vistas v1.2 has 66; get that version"):
        prepare("mapillary", tmp_path, tmp_path / "again", "cityscapes19")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot read the labels in .*config.json"):
        prepare("mapillary", tmp_path, tmp_path / "again", "cityscapes19")


# --- IDD ---

# name, id, csTrainId and level3Id of github.com/AutoNUE/public-code, helpers/anue_labels.py.
ANUE = """road 0 0 0, parking 1 255 1, drivable fallback 2 255 1, sidewalk 3 1 2, rail track 4 255 3,
non-drivable fallback 5 9 3, person 6 11 4, animal 7 255 4, rider 8 12 5, motorcycle 9 17 6, bicycle 10 18
7, autorickshaw 11 255 8, car 12 13 9, truck 13 14 10, bus 14 15 11, caravan 15 255 12, trailer 16 255 12,
train 17 16 12, vehicle fallback 18 255 12, curb 19 255 13, wall 20 3 14, fence 21 4 15, guard rail 22 255
16, billboard 23 255 17, traffic sign 24 7 18, traffic light 25 6 19, pole 26 5 20, polegroup 27 255 20,
obs-str-bar-fallback 28 255 21, building 29 2 22, bridge 30 255 23, tunnel 31 255 23, vegetation 32 8 24,
sky 33 10 25, fallback background 34 255 25, unlabeled 35 255 255, ego vehicle 36 255 255, rectification
border 37 255 255, out of roi 38 255 255, license plate 39 255 255"""
ANUE_ROWS = [row.rsplit(" ", 3) for row in " ".join(ANUE.split()).split(", ")]
ANUE_IDS = {int(number): int(train_id) for _, number, train_id, _ in ANUE_ROWS}
# A level 3 id is of the name by which the publisher scores it (evaluation/evaluate_mIoU.py).
SCORED = """road, drivable fallback, sidewalk, non-drivable fallback, person, rider, motorcycle, bicycle,
autorickshaw, car, truck, bus, vehicle fallback, curb, wall, fence, guard rail, billboard, traffic sign,
traffic light, pole, obs-str-bar-fallback, building, bridge, vegetation, sky"""
ANUE_TRAIN_ID = {name: int(train_id) for name, _, train_id, _ in ANUE_ROWS}
ANUE_LEVEL3 = {n: ANUE_TRAIN_ID[name] for n, name in enumerate(" ".join(SCORED.split()).split(", "))} | {
    255: 255
}
ANUE_TRAIN_IDS = {number: number for number in (*range(19), 255)}


@pytest.mark.parametrize(
    ("ending", "ids"),
    [
        ("labelids", ANUE_IDS),
        ("labelIds", ANUE_IDS),
        ("labelcsTrainIds", ANUE_TRAIN_IDS),
        ("labellevel3Ids", ANUE_LEVEL3),
        ("labelLevel3Ids", ANUE_LEVEL3),
    ],
)
def test_idd_in_each_kind_of_its_label_ids(tmp_path: Path, ending: str, ids: dict[int, int]) -> None:
    for split, drive, frame, image in (("train", "103", "005506", "png"), ("val", "119", "frame0029", "jpg")):
        save_pair(
            tmp_path / f"leftImg8bit/{split}/{drive}/{frame}_leftImg8bit.{image}",  # parts I and II
            tmp_path / f"gtFine/{split}/{drive}/{frame}_gtFine_{ending}.png",
            ids,
        )
    made = domains("idd", tmp_path, tmp_path / "out", "cityscapes19")
    assert made == {"idd_train": ["103_005506"], "idd_val": ["119_frame0029"]}
    assert became(tmp_path / "out/idd_val", "119_frame0029", ids) == ids
    drives = domains("idd", tmp_path, tmp_path / "drives", "cityscapes19", split_by="sequence")
    assert list(drives) == ["idd_103_train", "idd_119_val"]


# What names a group of IDD-Lite has in Cityscapes, and the class that all of them are in a class set.
IDD_LITE = {
    "cityscapes19": {0: "road", 6: "sky"},
    "roads6": {0: "road", 1: "sidewalk", 3: "car", 6: "sky"},
}


@pytest.mark.parametrize("classes", IDD_LITE)
def test_idd_lite_gives_the_groups_that_are_one_class(tmp_path: Path, classes: str) -> None:
    values = (*range(7), 255)
    save_pair(
        tmp_path / "leftImg8bit/val/119/903127_image.jpg",
        tmp_path / "gtFine/val/119/903127_label.png",
        values,
    )
    save_pair(tmp_path / "unused.png", tmp_path / "gtFine/val/119/903127_inst_label.png", [200])
    assert domains("idd_lite", tmp_path, tmp_path / "out", classes) == {"idd_lite_val": ["119_903127"]}
    found = became(tmp_path / "out/idd_lite_val", "119_903127", values)
    names = {value: class_set(classes).classes[number] for value, number in found.items() if number < 255}
    assert names == IDD_LITE[classes]


def test_real_idd_lite(tmp_path: Path) -> None:
    """The real files under their names in the publisher's package, against the project's own mapping file."""
    real = real_data() / "idd_lite"
    stems = [path.stem for path in sorted((real / "labels/val").glob("*.png"))[:12]]
    for stem in stems:
        drive, frame = stem.split("_", 1)
        for kind, name in (("images", "leftImg8bit"), ("labels", "gtFine")):
            native = tmp_path / f"idd20k_lite/{name}/val/{drive}"
            native.mkdir(parents=True, exist_ok=True)
            ending = "_image.jpg" if kind == "images" else "_label.png"
            suffix = ".jpg" if kind == "images" else ".png"
            shutil.copy(real / kind / "val" / f"{stem}{suffix}", native / f"{frame}{ending}")
    (made,) = prepare("idd_lite", tmp_path / "idd20k_lite", tmp_path / "out", "roads6")
    index = DomainIndex.open(made)
    assert sorted(index.key(i) for i in range(len(index))) == stems
    as_labelled = np.full(256, 255, np.uint8)
    as_labelled[[0, 1, 3, 6]] = [
        class_set("roads6").train_id(name) for name in ("road", "sidewalk", "car", "sky")
    ]
    for i in range(len(index)):
        native = np.asarray(Image.open(real / "labels/val" / f"{index.key(i)}.png"))
        np.testing.assert_array_equal(decode_label(index.read(i).label, ""), as_labelled[native])


# --- WildDash 2 ---

# wd2_name and cs_name of github.com/ozendelait/wilddash_scripts, wd2_unified_label_policy.json, by id from 0.
# "=": a label of Cityscapes with the same id.
WILDDASH = """= = = = = = = = = = = = = = = = = = = = = = = = = = = = = = = = = = pickup:truck van:car
billboard:static streetlight:static roadmarking:road junctionbox:static mailbox:static manhole:road
phonebooth:static pothole:road bikerack:static trafficsignframe:pole utilitypole:pole motorcyclist:rider
bicyclist:rider otherrider:rider bird:dynamic groundanimal:dynamic curb:sidewalk trafficsignany:static
trafficsignback:static trashcan:static otherbarrier:wall othervehicle:dynamic autorickshaw:motorcycle
bench:static mountain:static tramtrack:road wheeledslow:dynamic boat:dynamic bikelane:road
bikelanesidewalk:sidewalk banner:dynamic dashcammount:ego water:ground sand:ground pedestrianarea:road
firehydrant:static cctvcamera:static snow:ground catchbasin:road crosswalkplain:road crosswalkzebra:road
manholesidewalk:sidewalk curbterrain:terrain servicelane:road curbcut:sidewalk"""
CITYSCAPES_NAME = {label.id: label.name for label in OFFICIAL}
WILDDASH_NAMES = {
    value: CITYSCAPES_NAME[value] if text == "=" else text.split(":")[1]
    for value, text in enumerate(WILDDASH.split())
}


@pytest.mark.parametrize("label", ["labels/{}.png", "semantic/{}_labelIds.png"])
def test_wilddash_by_the_policy_of_its_publisher(tmp_path: Path, label: str) -> None:
    assert len(WILDDASH_NAMES) == 81
    save_pair(tmp_path / "images/ae0000_100000.jpg", tmp_path / label.format("ae0000_100000"), WILDDASH_NAMES)
    assert domains("wilddash", tmp_path, tmp_path / "out", "cityscapes19") == {"wilddash": ["ae0000_100000"]}
    found = became(tmp_path / "out/wilddash", "ae0000_100000", WILDDASH_NAMES)
    assert found == by_name(WILDDASH_NAMES, TRAIN_ID)
    save_pair(tmp_path / "images/a.jpg", tmp_path / label.format("a"), [81])
    with pytest.raises(
        UserError, match=r"value 81 is not a label of this data set \(known: 81 values, 0 to 80\)"
    ):
        prepare("wilddash", tmp_path, tmp_path / "out", "cityscapes19", Options(overwrite=True))


def test_all_that_the_help_names_is_known() -> None:
    from ppar_dist.cli import data_commands
    from ppar_dist.data.prepare import DATASETS

    text = " ".join((data_commands.prepare.__doc__ or "").split())
    listed = text.split("dataset: ")[1].split(" root:")[0]
    assert tuple(listed.split(", ")) == DATASETS
