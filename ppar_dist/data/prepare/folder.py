"""Your own images and label PNGs, described by a mapping file (YAML)::

    name: my_city                 # the domain
    images: frames                # folder below the root (default: images)
    labels: masks                 # default: labels; <stem>.png belongs to <stem>.jpg, .png, .tif …
    label_suffix: _mask           # optional: <stem>_mask.png belongs to <stem>.jpg
    values:                       # label value → class name; or colours:, not both
      0: road
      1: sidewalk
      2: ignore                   # counts as no class
      "*": ignore                 # optional: all values that are not listed
    # colours:
    #   "128,64,128": road

Where names follow another rule, ``images`` and ``labels`` are patterns (see ``patterns.py``); placeholders
in the name give a domain for each of their values::

    name: "acdc_{condition}"
    images: "rgb_anon/{condition}/train/{seq}/{frame}_rgb_anon.png"
    labels: "gt/{condition}/train/{seq}/{frame}_gt_labelIds.png"

Names are the class names and native names of the class sets in ``ppar_dist.class_sets``. The data stay
under whatever licence they have.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from ppar_dist.class_sets import ClassSet, built_in, class_set
from ppar_dist.config.yaml import read_yaml
from ppar_dist.data.prepare.legend import Colour, Legend, colour_labels, index_labels
from ppar_dist.data.prepare.pairing import Layout
from ppar_dist.data.prepare.patterns import PathPattern
from ppar_dist.data.prepare.source import Domains, Source
from ppar_dist.data.shards.writer import LONGEST_NAME
from ppar_dist.errors import DataError
from ppar_dist.text import guess

IGNORE = "ignore"
REST: Literal["*"] = "*"


Value = Annotated[int, Field(ge=0, lt=1 << 16)] | Literal["*"]
_VALUE: TypeAdapter[int | str] = TypeAdapter(Value)


class FolderMapping(BaseModel):
    """The mapping file, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9{][A-Za-z0-9_{}-]*$", max_length=LONGEST_NAME)]
    images: str = "images"
    labels: str = "labels"
    label_suffix: str = ""
    values: dict[Value, str] | None = None
    colours: dict[str, str] | None = None

    @field_validator("values", mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if isinstance(key, bool):
                raise ValueError(f"a label value is a number, got {key} (YAML reads yes, no, on and off so)")
        return values


def read_mapping(path: Path) -> FolderMapping:
    """Read and check a mapping file.

    Raises:
        DataError: it is missing or malformed, or names a class that no class set knows.
    """
    try:
        tree = read_yaml(path.read_text("utf-8"))
        mapping = FolderMapping.model_validate(tree)
    except OSError as error:
        raise DataError(f"cannot read mapping file {path}: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"mapping file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"mapping file {path}: {problems}") from None
    if (mapping.values is None) == (mapping.colours is None):
        raise DataError(f"mapping file {path} has either values: or colours:; keep exactly one")
    if not (mapping.values or mapping.colours or {}).keys() - {REST}:
        raise DataError(f"mapping file {path} lists no value or colour; write each with its class name")
    _refuse_twice(path, tree.get("values") or ())
    return mapping


def source(mapping_file: Path, classes: ClassSet | None = None) -> Source:
    """The data set that a mapping file describes, in names of the built-in class sets and of this one."""
    mapping = read_mapping(mapping_file)
    _check_names(mapping_file, set((mapping.values or mapping.colours or {}).values()), classes)
    layout = _layout(mapping, mapping_file)

    def domains(root: Path) -> Domains:
        described.require(root / layout.images.folder, root / layout.labels.folder)
        return layout.domains(root)

    suffixes = ("", "") if layout.images.names else ("/<name>.jpg", f"/<name>{mapping.label_suffix}.png")
    described = Source(
        name="folder",
        page=f"your own storage, or correct images: and labels: in {mapping_file}",
        layout=f"{mapping.images}{suffixes[0]} and {mapping.labels}{suffixes[1]}",
        domains=domains,
        legend=_legend(mapping, mapping_file),
        whole=(str(layout.images.folder), str(layout.labels.folder)),
    )
    return described


def _layout(mapping: FolderMapping, path: Path) -> Layout:
    name, images, labels = (
        PathPattern(text, f"mapping file {path}: {key}:")
        for key, text in (("name", mapping.name), ("images", mapping.images), ("labels", mapping.labels))
    )
    return Layout(path, name, images, labels, mapping.label_suffix)


def _legend(mapping: FolderMapping, path: Path) -> Legend:
    if mapping.values is not None:
        numbers = {value: name for value, name in mapping.values.items() if isinstance(value, int)}
        return index_labels(numbers, rest=mapping.values.get(REST))
    colours = mapping.colours or {}
    legend = {_colour(text, path): name for text, name in colours.items() if text != REST}
    if len(legend) < len(colours.keys() - {REST}):
        raise DataError(f"mapping file {path} lists a colour twice; keep one")
    return colour_labels(legend, rest=colours.get(REST))


def _refuse_twice(path: Path, keys: Iterable[Any]) -> None:
    """Keys that differ in YAML, such as 0 and "0", may be one label value."""
    first: dict[Any, Any] = {}
    for key in keys:
        if (other := first.setdefault(_VALUE.validate_python(key), key)) is not key:
            raise DataError(f"mapping file {path} lists one value twice, as {other!r} and {key!r}; keep one")


def _check_names(path: Path, names: set[str], classes: ClassSet | None) -> None:
    every = (*map(class_set, built_in()), *([classes] if classes else []))
    known = {name for each in every for members in each.members for name in members}
    unknown = sorted(name for name in names if name.strip().lower() not in known | {IGNORE})
    if unknown:
        raise DataError(
            f"mapping file {path}: {unknown} are not class names{guess(unknown[0], sorted(known))}; use "
            f"{IGNORE!r} for pixels that count as no class, or one of {', '.join(sorted(known))}"
        )


def _colour(text: str, path: Path) -> Colour:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdigit() and int(part) < 256 for part in parts):
        raise DataError(f'mapping file {path}: a colour is written "r,g,b" with 0..255 each, got {text!r}')
    red, green, blue = (int(part) for part in parts)
    return red, green, blue
