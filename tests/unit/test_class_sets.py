"""Class sets: complete tables, and the native names of the data sets at hand."""

from __future__ import annotations

import pytest

from ppar_dist.class_sets import CLASS_SETS, IGNORE_INDEX, ClassSet, class_set
from ppar_dist.errors import UserError


@pytest.mark.parametrize("name", sorted(CLASS_SETS))
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
