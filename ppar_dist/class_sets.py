"""Class sets: what the classes are, how they are drawn, and which native labels count as them.

A *train id* is the position of a class in its class set; ``IGNORE_INDEX`` marks pixels that count
as no class. Data sets bring their own label names ("pavement", "lane marking"); ``ClassSet.train_id``
maps a native name to a train id, and ``ClassSet.own_train_id`` one of a single data set.

A class set is a YAML file (``config.class_file``). The built-in ones are the files of ``classes/``, given by
their names; a user's own is given by its path. Runs and checkpoints carry a record of theirs, so that they do
without that file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppar_dist.errors import UserError
from ppar_dist.text import guess, one_line

if TYPE_CHECKING:
    from ppar_dist.config.class_file import ClassFile

IGNORE_INDEX = 255
RECORD = "classes.json"  # in a run, a checkpoint and a model folder

_LARGEST = 1 << 20  # bytes of a record
_BUILT_IN = Path(__file__).parent / "classes"

Colour = tuple[int, int, int]
NativeName = tuple[str, str]  # a data set and a label name there, lower case


@dataclass(frozen=True)
class ClassSet:
    """K classes with one entry per class in each of the tuples below; ``native`` may have none at all."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]  # RGB, 0..255
    members: tuple[frozenset[str], ...]  # native label names, lower case, that count as class k
    prompts: tuple[tuple[str, ...], ...]  # names whose text embeddings are averaged for class k
    native: tuple[frozenset[NativeName], ...] = ()  # names of one data set that count as class k there

    def __post_init__(self) -> None:
        sizes = {len(self.classes), len(self.palette), len(self.members), len(self.prompts)}
        sizes |= {len(self.native)} if self.native else set()
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

    def own_train_id(self, dataset: str, native_name: str) -> int:
        """The class that lists a native name for one data set, else ``IGNORE_INDEX``; case does not count."""
        name = (dataset, native_name.strip().lower())
        return next((index for index, names in enumerate(self.native) if name in names), IGNORE_INDEX)


def built_in() -> dict[str, Path]:
    """The files of the class sets that come with the package, by name."""
    return {file.stem: file for file in sorted(_BUILT_IN.glob("*.yaml"))}


def class_set(name: str) -> ClassSet:
    """The class set of that name, or of the YAML file at that path (``config.class_file``).

    Raises:
        UserError: no such class set, and the message lists those there are; or the file is wrong.
    """
    return _of_file(name) if ".yaml" in name or ".yml" in name else _of_package(name)


@functools.cache
def _of_package(name: str) -> ClassSet:
    from ppar_dist.config.class_file import read_class_file

    return _made(name, read_class_file(str(built_in_file(name))))


def built_in_file(name: str) -> Path:
    """The file of a class set that comes with the package.

    Raises:
        UserError: no such class set; the message lists those there are.
    """
    files = built_in()
    if name not in files:
        known = ", ".join(files)
        raise UserError(f"unknown class set {name!r}{guess(name, files)}; known class sets: {known}")
    return files[name]


def _of_file(reference: str) -> ClassSet:
    from ppar_dist.config.class_file import class_set_name, read_class_file

    file = read_class_file(reference)
    return _made(class_set_name(reference, file), file)


def _made(name: str, file: ClassFile) -> ClassSet:
    native = tuple(frozenset(each.native_names()) for each in file.classes)
    return ClassSet(
        name=name,
        classes=tuple(each.name for each in file.classes),
        palette=tuple((each.colour[0], each.colour[1], each.colour[2]) for each in file.classes),
        members=tuple(frozenset(each.members()) for each in file.classes),
        prompts=tuple(tuple(each.texts or [each.name]) for each in file.classes),
        native=native if any(native) else (),
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
    if classes.native:
        tree["native"] = [sorted(names) for names in classes.native]
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def read_record(file: Path) -> ClassSet:
    """The class set that ``to_record`` wrote.

    Raises:
        UserError: the file cannot be read, or is not a class set.
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
            native=tuple(frozenset(map(_native_name, names)) for names in tree.get("native", ())),
        )
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a class set: {one_line(error)}; restore it from a copy") from None


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
        if content_hash(found.classes, found.members, found.prompts, found.native) == digest:
            return found
    return class_set(reference)


def _colour(values: Any) -> Colour:
    red, green, blue = values
    if not all(isinstance(value, int) and 0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"a colour is three whole numbers from 0 to 255, got {values}")
    return red, green, blue


def _native_name(pair: Any) -> NativeName:
    dataset, name = pair
    return str(dataset), str(name)
