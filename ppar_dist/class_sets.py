"""Class sets: what the classes are, how they are drawn, and which native labels count as them.

A *train id* is the position of a class in its class set; ``IGNORE_INDEX`` marks pixels that count
as no class. Data sets bring their own label names ("pavement", "lane marking"); ``ClassSet.train_id``
maps a native name to a train id.

A user's own class set is a YAML file (``config.class_file``), given by its path instead of a name. Runs and
checkpoints carry a record of theirs, so that they do without that file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppar_dist.errors import UserError
from ppar_dist.text import guess, one_line

IGNORE_INDEX = 255
RECORD = "classes.json"  # in a run, a checkpoint and a model folder

_LARGEST = 1 << 20  # bytes of a record

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassSet:
    """K classes with one entry per class in each of the tuples below."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]  # RGB, 0..255
    members: tuple[frozenset[str], ...]  # native label names, lower case, that count as class k
    prompts: tuple[tuple[str, ...], ...]  # names whose text embeddings are averaged for class k

    def __post_init__(self) -> None:
        sizes = {len(self.classes), len(self.palette), len(self.members), len(self.prompts)}
        if sizes != {self.num_classes}:
            raise ValueError(f"class set {self.name}: one entry per class everywhere, got lengths {sizes}")

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    def train_id(self, native_name: str) -> int:
        """The class that holds a native label name (case does not count), else ``IGNORE_INDEX``."""
        name = native_name.strip().lower()
        for index, names in enumerate(self.members):
            if name in names:
                return index
        return IGNORE_INDEX


@dataclass(frozen=True)
class _Class:
    """One row of the tables below; ``also`` are further native names, ``prompts`` defaults to the name."""

    name: str
    colour: Colour
    also: str = ""  # separated by commas
    prompts: tuple[str, ...] = ()


def _class_set(name: str, rows: tuple[_Class, ...]) -> ClassSet:
    return ClassSet(
        name=name,
        classes=tuple(row.name for row in rows),
        palette=tuple(row.colour for row in rows),
        members=tuple(
            frozenset({row.name, *(other.strip() for other in row.also.split(",") if other.strip())})
            for row in rows
        ),
        prompts=tuple(row.prompts or (row.name,) for row in rows),
    )


ROADS6 = _class_set(
    "roads6",  # what CamVid, LabelMeFacade and Cityscapes have in common
    (
        _Class("road", (128, 64, 128), "lanemkgsdriv, lanemkgsnondriv"),
        _Class("sidewalk", (244, 35, 232), "pavement"),
        _Class("building", (70, 70, 70), "door, window, house, facade"),
        _Class("vegetation", (107, 142, 35), "tree, vegetationmisc"),
        _Class("sky", (70, 130, 180)),
        _Class("car", (0, 0, 142), "suvpickuptruck"),
    ),
)

CITYSCAPES19 = _class_set(
    "cityscapes19",  # also of GTA5, SYNTHIA and UrbanSyn
    (
        _Class("road", (128, 64, 128)),
        _Class("sidewalk", (244, 35, 232), "pavement"),
        _Class("building", (70, 70, 70)),
        _Class("wall", (102, 102, 156)),
        _Class("fence", (190, 153, 153)),
        _Class("pole", (153, 153, 153)),
        _Class("traffic light", (250, 170, 30)),
        _Class("traffic sign", (220, 220, 0)),
        _Class("vegetation", (107, 142, 35), "tree"),
        _Class("terrain", (152, 251, 152)),
        _Class("sky", (70, 130, 180)),
        _Class("person", (220, 20, 60), "pedestrian"),
        _Class("rider", (255, 0, 0), "bicyclist", ("rider", "cyclist")),
        _Class("car", (0, 0, 142)),
        _Class("truck", (0, 0, 70)),
        _Class("bus", (0, 60, 100)),
        _Class("train", (0, 80, 100)),
        _Class("motorcycle", (0, 0, 230), "motorbike"),
        _Class("bicycle", (119, 11, 32)),
    ),
)


def _part(name: str, whole: ClassSet, without: frozenset[str]) -> ClassSet:
    """The classes of a class set but some, in its order; labels of those count as no class."""
    kept = [index for index, each in enumerate(whole.classes) if each not in without]
    return ClassSet(
        name=name,
        classes=tuple(whole.classes[index] for index in kept),
        palette=tuple(whole.palette[index] for index in kept),
        members=tuple(whole.members[index] for index in kept),
        prompts=tuple(whole.prompts[index] for index in kept),
    )


# What papers that train on SYNTHIA score.
CITYSCAPES16 = _part("cityscapes16", CITYSCAPES19, frozenset({"terrain", "truck", "train"}))
CITYSCAPES13 = _part("cityscapes13", CITYSCAPES16, frozenset({"wall", "fence", "pole"}))

CAMVID11 = _class_set(
    "camvid11",  # the usual eleven groups of CamVid's 32 labels
    (
        _Class("sky", (128, 128, 128)),
        _Class("building", (128, 0, 0), "archway, bridge, tunnel, wall"),
        _Class("pole", (192, 192, 128), "column_pole, trafficcone"),
        _Class("road", (128, 64, 128), "lanemkgsdriv, lanemkgsnondriv"),
        _Class("pavement", (60, 40, 222), "sidewalk, parkingblock, roadshoulder", ("pavement", "sidewalk")),
        _Class("tree", (128, 128, 0), "vegetation, vegetationmisc", ("tree", "vegetation")),
        _Class(
            "sign",
            (192, 128, 128),
            "signsymbol, misc_text, trafficlight, traffic sign, traffic light",
            ("traffic sign",),
        ),
        _Class("fence", (64, 64, 128)),
        _Class("car", (64, 0, 128), "suvpickuptruck, truck_bus, train, othermoving, truck, bus"),
        _Class("pedestrian", (64, 64, 0), "person, child, cartluggagepram, animal", ("pedestrian", "person")),
        _Class("bicyclist", (0, 128, 192), "rider, motorcyclescooter", ("bicyclist", "cyclist")),
    ),
)

CLASS_SETS: Mapping[str, ClassSet] = {
    known.name: known for known in (ROADS6, CITYSCAPES19, CITYSCAPES16, CITYSCAPES13, CAMVID11)
}


def class_set(name: str) -> ClassSet:
    """The class set of that name, or of the YAML file at that path (``config.class_file``).

    Raises:
        UserError: no such class set, and the message lists those there are; or the file is wrong.
    """
    if ".yaml" in name or ".yml" in name:
        return _of_file(name)
    try:
        return CLASS_SETS[name]
    except KeyError:
        known = ", ".join(sorted(CLASS_SETS))
        hint = guess(name, CLASS_SETS)
        raise UserError(f"unknown class set {name!r}{hint}; known class sets: {known}") from None


def _of_file(reference: str) -> ClassSet:
    from ppar_dist.config.class_file import class_set_name, read_class_file

    file = read_class_file(reference)
    return ClassSet(
        name=class_set_name(reference, file),
        classes=tuple(each.name for each in file.classes),
        palette=tuple((each.colour[0], each.colour[1], each.colour[2]) for each in file.classes),
        members=tuple(frozenset(each.members()) for each in file.classes),
        prompts=tuple(tuple(each.texts or [each.name]) for each in file.classes),
    )


def to_record(classes: ClassSet) -> str:
    """The text of ``classes.json``."""
    tree = {
        "name": classes.name,
        "classes": list(classes.classes),
        "palette": [list(colour) for colour in classes.palette],
        "members": [sorted(names) for names in classes.members],
        "prompts": [list(names) for names in classes.prompts],
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def read_record(file: Path) -> ClassSet:
    """The class set that ``to_record`` wrote.

    Raises:
        UserError: the file cannot be read, or is no class set.
    """
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        tree = json.loads(file.read_text(encoding="utf-8"))
        return ClassSet(
            name=str(tree["name"]),
            classes=tuple(map(str, tree["classes"])),
            palette=tuple(_colour(colour) for colour in tree["palette"]),
            members=tuple(frozenset(map(str, names)) for names in tree["members"]),
            prompts=tuple(tuple(map(str, names)) for names in tree["prompts"]),
        )
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is no class set: {one_line(error)}; restore it from a copy") from None


def recorded_class_set(reference: str, folder: Path) -> ClassSet:
    """The class set that a configuration names: as a run recorded it, else as it is now.

    Args:
        reference: a name, or a file of classes with its hash.
        folder: of the run.

    The record of a user's file counts where its content is that of the reference's hash; so the file may be
    gone or edited.

    Raises:
        UserError: as ``class_set``.
    """
    from ppar_dist.config.class_file import content_hash, pinned_hash

    digest = pinned_hash(reference)
    if digest is not None:
        try:
            found = read_record(folder / RECORD)
        except UserError:
            return class_set(reference)
        if content_hash(found.classes, found.members, found.prompts) == digest:
            return found
    return class_set(reference)


def _colour(values: Any) -> Colour:
    red, green, blue = values
    if not all(isinstance(value, int) and 0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"a colour is three whole numbers from 0 to 255, got {values}")
    return red, green, blue
