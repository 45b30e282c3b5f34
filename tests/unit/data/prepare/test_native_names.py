"""A class set's lists for single data sets: what they say counts there, and what no data set has is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppar_dist.class_sets import IGNORE_INDEX, class_set
from ppar_dist.cli.parser import main
from ppar_dist.data.prepare import SOURCES, Options, prepare
from ppar_dist.data.prepare.gta5 import COLOURS
from ppar_dist.data.prepare.layouts import TRAINED
from ppar_dist.errors import DataError
from tests.unit.data.prepare.native import became, domains, save_pair
from tests.unit.data.prepare.test_own_legends import ANUE_ROWS, VISTAS_NAMES, WILDDASH, vistas

ROAD, WALK, CAR, RICKSHAW = range(4)
LIST = """\
classes:
  - {name: road, colour: [1, 0, 0]ROAD}
  - {name: sidewalk, colour: [2, 0, 0]WALK}
  - {name: car, colour: [3, 0, 0]CAR}
  - {name: rickshaw, colour: [4, 0, 0]RICKSHAW}
"""


def mine(folder: Path, **lists: str) -> str:
    """A file of classes; the text of each list goes into its class."""
    text = LIST
    for title in ("ROAD", "WALK", "CAR", "RICKSHAW"):
        text = text.replace(title, f", {lists[title.lower()]}" if title.lower() in lists else "")
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


def idd(root: Path, ending: str = "labelids", values: range = range(40)) -> Path:
    stem = root / "leftImg8bit/val/1/a_leftImg8bit.jpg", root / f"gtFine/val/1/a_gtFine_{ending}.png"
    save_pair(*stem, values)
    return root


IDD_ID = {name: int(number) for name, number, _, _ in ANUE_ROWS}


def test_the_list_of_a_data_set_counts_before_the_general_one(tmp_path: Path) -> None:
    classes = mine(
        tmp_path,
        road="labels: [parking], native: {idd: [parking, non-drivable fallback]}",
        walk="labels: [autorickshaw, curb], native: {cityscapes: [terrain, parking]}",
        rickshaw="native: {idd: [Autorickshaw], mapillary: [object--vehicle--other-vehicle]}",
    )
    domains("idd", idd(tmp_path / "idd"), tmp_path / "out", classes)
    found = became(tmp_path / "out/idd_val", "1_a", range(40))
    expected = {
        **{"road": ROAD, "parking": ROAD, "non-drivable fallback": ROAD, "sidewalk": WALK, "curb": WALK},
        **{"car": CAR, "autorickshaw": RICKSHAW},
    }
    assert {name: found[number] for name, number in IDD_ID.items() if found[number] != 255} == expected


def test_each_data_set_has_its_own_list(tmp_path: Path) -> None:
    classes = mine(
        tmp_path,
        road="native: {mapillary: [construction--flat--bike-lane, nature--terrain], wilddash: [trashcan]}",
        walk="native: {mapillary: [terrain]}",  # the publisher's name counts before that in Cityscapes
        car="labels: [wall], native: {wilddash: [van, truck]}",
        rickshaw="native: {wilddash: [autorickshaw, pickup]}",
    )
    vistas(tmp_path / "vistas", "labels", len(VISTAS_NAMES))
    domains("mapillary", tmp_path / "vistas", tmp_path / "out", classes)
    found = became(tmp_path / "out/mapillary_val", "_2Sd7b9ogf-Iq7TyCnBgtg", VISTAS_NAMES)
    by_name = {name: found[number] for number, name in VISTAS_NAMES.items()}
    assert [by_name[name] for name in ("Bike Lane", "Terrain", "Wall", "Truck", "Other Vehicle", "Curb")] == [
        *(ROAD, ROAD, CAR, IGNORE_INDEX, IGNORE_INDEX, WALK)
    ]
    root = tmp_path / "wilddash"
    save_pair(root / "images/a.jpg", root / "labels/a.png", range(81))
    domains("wilddash", root, tmp_path / "out", classes)
    found = became(tmp_path / "out/wilddash", "a", range(81))
    number = {text.split(":")[0]: at for at, text in enumerate(WILDDASH.split()) if text != "="}
    assert [found[number[name]] for name in ("van", "pickup", "autorickshaw", "trashcan", "bikelane")] == [
        *(CAR, RICKSHAW, RICKSHAW, ROAD, ROAD)
    ]
    assert found[27] == CAR, "truck, by its name in Cityscapes"


def test_a_group_has_the_name_that_its_publisher_gives_it(tmp_path: Path) -> None:
    values = (*range(7), 255)
    root = tmp_path / "lite"
    label = root / "gtFine/val/119/903127_label.png"
    save_pair(root / "leftImg8bit/val/119/903127_image.jpg", label, values)
    classes = mine(tmp_path, rickshaw="native: {idd_lite: [vehicles, road-side-objs]}")
    domains("idd_lite", root, tmp_path / "out", classes)
    found = became(tmp_path / "out/idd_lite_val", "119_903127", values)
    ids = {0: ROAD, 1: WALK, 3: RICKSHAW, 4: RICKSHAW}
    assert found == {value: ids.get(value, IGNORE_INDEX) for value in values}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("native: {id: [parking]}", r"native of car: there is no data set 'id'; did you mean idd\?"),
        ("native: {xy: [parking]}", "no data set 'xy'; choose from camvid, labelmefacade"),
        ("native: {folder: [parking]}", "folder has no names but those of its mapping file"),
        ("native: {idd: [autoriksha]}", r"idd has no label 'autoriksha'; did you mean autorickshaw\?"),
        ("native: {mapillary: [bike-lane]}", "did you mean construction--flat--bike-lane"),
        ("native: {cityscapes: [van]}", "cityscapes has no label 'van'.*classes --dataset cityscapes` lists"),
        ("native: {idd_lite: [truck]}", "idd_lite has no label 'truck'"),
        ("native: {mapillary: [void]}", "mapillary has no label 'void'"),
        ("native: {idd: [a, b, c, d, e, f, g]}", "; and 2 more"),
    ],
)
def test_names_that_there_are_not_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """Whichever data set is prepared."""
    with pytest.raises(DataError, match=rf"class set .*mine\.yaml: .*{message}"):
        prepare("idd", idd(tmp_path / "idd"), tmp_path / "out", mine(tmp_path, car=text))
    assert not (tmp_path / "out").exists()


def test_every_label_of_every_data_set_can_be_listed(tmp_path: Path) -> None:
    """Each alone, for its data set: then it counts as that class, and nothing is refused."""
    for dataset, source in SOURCES.items():
        names = [label.native for label in source.legend.labels]
        listed = ", ".join(f'"{name}"' for name in names)
        classes = class_set(mine(tmp_path, rickshaw=f"native: {{{dataset}: [{listed}]}}"))
        assert {source.naming(classes).train_id(label) for label in source.legend.labels} == {RICKSHAW}
        assert main(["classes", mine(tmp_path, rickshaw=f"native: {{{dataset}: [{listed}]}}")]) == 0


def test_general_names_that_no_data_set_has_are_told(tmp_path: Path) -> None:
    classes = mine(tmp_path, road="labels: [kerb, lanemkgsdriv, parking]", car="labels: [van, autorickshw]")
    told: list[str] = []
    prepare("idd", idd(tmp_path / "idd"), tmp_path / "out", classes, tell=told.append)
    assert len(told) == 3
    assert "labels of road: no known data set has 'kerb'; " in told[0]
    assert "no known data set has 'autorickshw'; did you mean autorickshaw?" in told[1]
    assert (
        "'van' is a name of wilddash alone and has no effect here; write native: {wilddash: [van]}" in told[2]
    )


def test_names_of_a_mapping_file_are_known(tmp_path: Path) -> None:
    root = tmp_path / "own"
    save_pair(root / "images/a.jpg", root / "labels/a.png", [0, 1])
    (tmp_path / "map.yaml").write_text("name: own\nvalues: {0: kerb, 1: Road}\n")
    told: list[str] = []
    classes = mine(tmp_path, walk="labels: [kerb]")
    options = Options(mapping=tmp_path / "map.yaml")
    prepare("folder", root, tmp_path / "out", classes, options, tell=told.append)
    assert told == []
    assert became(tmp_path / "out/own", "a", [0, 1]) == {0: WALK, 1: ROAD}


@pytest.mark.parametrize(
    ("ending", "told_of"), [("labelids", 0), ("labelcsTrainIds", 1), ("labellevel3Ids", 1)]
)
def test_names_that_a_kind_of_labels_does_not_tell_apart_are_told(
    tmp_path: Path, ending: str, told_of: int
) -> None:
    told: list[str] = []
    classes = mine(tmp_path, road="native: {idd: [parking, road], cityscapes: [static]}")
    prepare("idd", idd(tmp_path / "idd", ending, range(19)), tmp_path / "out", classes, tell=told.append)
    assert len(told) == told_of
    assert all("do not tell parking apart" in line for line in told)


def test_classes_shows_what_a_label_counts_as(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mine(tmp_path, rickshaw="native: {idd: [autorickshaw]}")
    assert main(["classes", path, "--dataset", "idd"]) == 0
    rows = dict(
        line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:] if "fall" not in line
    )
    named = {"road": "road", "sidewalk": "sidewalk", "car": "car", "autorickshaw": "rickshaw"}
    assert {name: counts_as for name, counts_as in rows.items() if counts_as != "-"} == named
    assert len(rows) > 30
    assert main(["classes", path]) == 0
    assert capsys.readouterr().out == Path(path).read_text()
    assert main(["classes", mine(tmp_path, car="native: {idd: [carr]}")]) == 78
    assert "did you mean car?" in capsys.readouterr().err
    assert main(["classes", "--dataset", "folder"]) == 78
    assert "choose from camvid" in capsys.readouterr().err


def test_label_values_of_publishers_do_not_follow_the_class_set() -> None:
    """They are facts of the data sets, written down once more; here they are the same."""
    classes = class_set("cityscapes19")
    assert classes.classes == TRAINED
    assert {colour: COLOURS[colour] for colour in classes.palette} == dict(
        zip(classes.palette, classes.classes, strict=True)
    )


def test_an_rgb_label_of_gta5_counts_by_its_list_too(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    pixels = np.array([[[111, 74, 0], [81, 0, 81], [128, 64, 128]]], np.uint8)
    for kind in ("images", "labels"):
        Image.fromarray(pixels).save(tmp_path / kind / "00001.png")
    classes = mine(tmp_path, walk="native: {gta5: [ground]}", car="native: {gta5: [dynamic]}")
    domains("gta5", tmp_path, tmp_path / "out", classes)
    found = became(tmp_path / "out/gta5", "00001", [0, 1, 2])
    assert list(found.values()) == [CAR, WALK, ROAD]
