"""A class set as a YAML file, checked, and identified by its content.

::

    classes:
      - name: road
        colour: [128, 64, 128]
        labels: [lane marking, crosswalk]  # native names that count as road, beside "road" itself
        texts: [road, street]              # averaged for the text prototype; by default the name
        native: {idd: [parking]}           # native names that count as road in one data set alone

A data set's own list counts before the general ones: a name may be in ``labels`` of one class and in
``native`` of another. Which names a data set has is not known here (``data.prepare.native_names``).

A *reference* is ``path`` or ``path@hash``. A configuration keeps the second, so that a file that was edited
is not taken for the one that a run began with. Colours are not part of the hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ppar_dist.config.problems import problems
from ppar_dist.config.yaml import MAX_CHARACTERS, read_yaml
from ppar_dist.errors import ConfigError
from ppar_dist.text import one_line, printable

MAX_CLASSES = 255  # train ids are bytes, and 255 is not a class
_REFERENCE = re.compile(r"(?P<path>.+\.ya?ml)(?:@(?P<hash>[0-9a-f]{16}))?", re.DOTALL)
_KEYS = ["classes", "name", "colour", "labels", "texts", "native"]
_FORM = "the file has the list classes, and each class name, colour, labels, texts and native"
_PROBLEMS = 5  # in one message

_Name = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=100)]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Channel = Annotated[int, Field(ge=0, le=255)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ClassEntry(_Strict):
    """One class."""

    name: _Name
    colour: Annotated[list[_Channel], Field(min_length=3, max_length=3)]  # RGB
    labels: list[_Name] = []
    texts: list[_Text] = []
    native: dict[str, Annotated[list[_Name], Field(min_length=1)]] = {}  # by data set

    def members(self) -> list[str]:
        """The native names that count as this class."""
        return sorted({self.name, *self.labels})

    def native_names(self) -> list[tuple[str, str]]:
        """The data sets and the names of theirs that count as this class there."""
        return sorted({(dataset, name) for dataset, names in self.native.items() for name in names})


class ClassFile(_Strict):
    """The content of a file of classes; a class's position is its train id."""

    classes: Annotated[list[ClassEntry], Field(min_length=1, max_length=MAX_CLASSES)]

    def labels_hash(self) -> str:
        """Changes with the classes, their order and the native names: with what label ids mean."""
        return _digest([[each.name, each.members(), *_listed(each.native_names())] for each in self.classes])

    def full_hash(self) -> str:
        """Changes with the texts too: with all that a result depends on."""
        rows = self.classes
        return content_hash(
            [row.name for row in rows],
            [row.members() for row in rows],
            [row.texts or [row.name] for row in rows],
            [row.native_names() for row in rows],
        )


def content_hash(
    names: Sequence[str],
    members: Sequence[Collection[str]],
    texts: Sequence[Sequence[str]],
    native: Sequence[Collection[tuple[str, str]]] = (),
) -> str:
    """``ClassFile.full_hash`` of the same content: one entry per class; ``native`` may have none at all."""
    rows = zip(names, members, texts, native or [()] * len(names), strict=True)
    return _digest([[name, sorted(m), list(t), *_listed(n)] for name, m, t, n in rows])


def _listed(native: Collection[tuple[str, str]]) -> list[list[list[str]]]:
    """As part of what a hash is of: nothing where there is nothing, so that hashes stay as they were."""
    return [[list(pair) for pair in sorted(native)]] if native else []


def pinned_hash(reference: str) -> str | None:
    """The hash in a reference; None for a name, or a path alone."""
    match = _REFERENCE.fullmatch(reference)
    return match["hash"] if match else None


def is_class_file(reference: str) -> bool:
    """Whether a class set is given as a file, not by a built-in name."""
    return _REFERENCE.fullmatch(reference) is not None


def pinned(reference: str) -> str:
    """The reference with an absolute path and the hash of the content; one that has a hash stays as it is.

    Raises:
        ConfigError: the file cannot be read, or is wrong.
    """
    path, digest = _parts(reference)
    return reference if digest else f"{os.path.abspath(path)}@{read_class_file(reference).full_hash()}"


def without_folder(reference: str) -> str:
    """The reference with the name alone of the file: where it lies changes no result."""
    return reference.rpartition("/")[2] if is_class_file(reference) else reference


def class_set_name(reference: str, file: ClassFile) -> str:
    """The name that prepared data carry, such as ``mine@0123456789abcdef``: the same for the same labels."""
    return f"{_parts(reference)[0].stem}@{file.labels_hash()}"


def read_class_file(reference: str) -> ClassFile:
    """Read and check a file of classes.

    Raises:
        ConfigError: it cannot be read, is wrong, or has changed since its hash was noted.
    """
    path, digest = _parts(reference)
    file = _parsed(path, bool(digest))
    if digest and file.full_hash() != digest:
        raise ConfigError(
            f"class set {path} has changed: the run began with other names, labels or texts (hash {digest}, "
            f"now {file.full_hash()}); put the earlier content back, or give the new one another name and run"
        )
    return file


def _parsed(path: Path, was_there: bool) -> ClassFile:
    try:
        with path.open(encoding="utf-8") as stream:
            tree = read_yaml(stream.read(MAX_CHARACTERS + 1))
    except OSError as error:
        remedy = (
            "put the file back there"
            if was_there
            else "check the path; a run that began with the file goes on with its own config.yaml"
        )
        raise ConfigError(f"cannot read class set {path}: {error.strerror}; {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"class set {path} is not valid YAML: {one_line(error)}") from None
    try:
        file = ClassFile.model_validate(tree)
    except ValidationError as error:
        found = problems(error, _KEYS, _FORM)[:_PROBLEMS]
        raise ConfigError(f"class set {path}: {'; '.join(found)}") from None
    _refuse_twice(path, "name", [each.name for each in file.classes])
    _refuse_twice(path, "colour", [tuple(each.colour) for each in file.classes])
    _refuse_twice(path, "label", [label for each in file.classes for label in each.members()])
    own = [f"{dataset}: {name}" for each in file.classes for dataset, name in each.native_names()]
    _refuse_twice(path, "native name", own)
    return file


def _refuse_twice(path: Path, what: str, values: list[Any]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ConfigError(
            f"class set {path}: each {what} belongs to one class, twice there: {printable(str(twice[0]))}; "
            f"keep one" + (f" (and {len(twice) - 1} more)" if len(twice) > 1 else "")
        )


def _parts(reference: str) -> tuple[Path, str | None]:
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(f"a file of classes ends with .yaml or .yml, got {printable(reference)}; rename it")
    return Path(match["path"]), match["hash"]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
