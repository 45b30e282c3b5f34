"""Class sets: complete tables, and the native names of the data sets at hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from cityscapesscripts.helpers.labels import labels as OFFICIAL

from ppar_dist.class_sets import IGNORE_INDEX, ClassSet, built_in, built_in_file, class_set, to_record
from ppar_dist.errors import UserError


@pytest.mark.parametrize("name", built_in())
def test_tables_agree(name: str) -> None:
    classes = class_set(name)
    assert classes.name == name
    assert len(set(classes.classes)) == len(set(classes.palette)) == classes.num_classes
    assert all(0 <= channel <= 255 for colour in classes.palette for channel in colour)
    assert [classes.train_id(each) for each in classes.classes] == list(range(classes.num_classes))
    members = [member for group in classes.members for member in group]
    assert len(members) == len(set(members)), "a native name belongs to one class"
    assert all(member == member.strip().lower() for member in members)


@pytest.mark.parametrize(
    ("name", "native", "expected"),
    [
        ("roads6", "pavement", "sidewalk"),
        ("roads6", "Tree", "vegetation"),
        ("roads6", " window ", "building"),
        ("roads6", "door", "building"),
        ("roads6", "bicyclist", None),
        ("roads6", "void", None),
        ("roads6", "various", None),
        ("cityscapes19", "traffic light", "traffic light"),
        ("cityscapes19", "license plate", None),
        ("cityscapes19", "unlabeled", None),
        ("camvid11", "Column_Pole", "pole"),
        ("camvid11", "sidewalk", "pavement"),
        ("camvid11", "void", None),
    ],
)
def test_native_names(name: str, native: str, expected: str | None) -> None:
    classes = class_set(name)
    wanted = IGNORE_INDEX if expected is None else classes.classes.index(expected)
    assert classes.train_id(native) == wanted


def test_cityscapes_order_is_the_official_one() -> None:
    assert " ".join(class_set("cityscapes19").classes[10:16]) == "sky person rider car truck bus"


def test_roads6_prompts_are_names_of_the_embedding_file() -> None:
    assert [group[0] for group in class_set("roads6").prompts] == list(class_set("roads6").classes)
    assert all(len(group) == 1 for group in class_set("roads6").prompts)


def test_unknown_class_set_names_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"unknown class set 'roads7'; did you mean roads6.; known class sets: camvid11, city"
    ):
        class_set("roads7")


def test_uneven_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry per class everywhere"):
        ClassSet("odd", ("a", "b"), ((0, 0, 0),), (frozenset("a"), frozenset("b")), (("a",), ("b",)))


# sha256 of the record of each built-in class set: names, palette, members and texts, in their order. Shards
# and checkpoints that exist were written with these.
RECORDS = {
    "roads6": "bc70f615263d2c735af185146eb8424a",
    "cityscapes19": "0c5309ea863f9de1e53acf133ec7dae1",
    "cityscapes16": "1291f84d9f1e28843d26b6db7089d179",
    "cityscapes13": "8ba4a8c8f6e15d591308a8fb081cd2ef",
    "camvid11": "89c1a80e5974f3cb185d29e816eabc50",
}


def test_built_in_class_sets_are_what_they_were() -> None:
    found = {
        name: hashlib.sha256(to_record(class_set(name)).encode()).hexdigest()[:32] for name in built_in()
    }
    assert found == RECORDS


def test_cityscapes19_has_its_publishers_names_order_and_colours() -> None:
    trained = sorted((label for label in OFFICIAL if 0 <= label.trainId < 255), key=lambda each: each.trainId)
    classes = class_set("cityscapes19")
    assert classes.classes == tuple(label.name for label in trained)
    assert classes.palette == tuple(label.color for label in trained)


@pytest.mark.parametrize("name", built_in())
def test_a_copy_of_a_built_in_file_is_a_class_set_with_its_content(tmp_path: Path, name: str) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_bytes(built_in_file(name).read_bytes())
    mine = class_set(str(copy))
    assert mine.name.startswith("mine@")
    assert replace(mine, name=name) == class_set(name)
