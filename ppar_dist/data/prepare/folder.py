"""Your own images and label PNGs, described by a mapping file (YAML)::

    name: my_city                 # the domain
    images: frames                # folder below the root (default: images)
    labels: masks                 # default: labels; <stem>.png belongs to <stem>.jpg or .png
    label_suffix: _mask           # optional: <stem>_mask.png belongs to <stem>.jpg
    values:                       # label value → class name; or colours:, not both
      0: road
      1: sidewalk
      2: ignore                   # counts as no class
    # colours:
    #   "128,64,128": road

Names are the class names and native names of the class sets in ``ppar_dist.class_sets``. The data stay
under whatever licence they have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppar_dist.class_sets import CLASS_SETS
from ppar_dist.data.prepare.source import (
    Colour,
    Domains,
    Pair,
    Source,
    colour_labels,
    images_below,
    index_labels,
)
from ppar_dist.errors import DataError

IGNORE = "ignore"

Value = Annotated[int, Field(ge=0, lt=1 << 16)]


class FolderMapping(BaseModel):
    """The mapping file, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    images: str = "images"
    labels: str = "labels"
    label_suffix: str = ""
    values: dict[Value, str] | None = None
    colours: dict[str, str] | None = None


def read_mapping(path: Path) -> FolderMapping:
    """Read and check a mapping file.

    Raises:
        DataError: it is missing or malformed, or names a class that no class set knows.
    """
    try:
        mapping = FolderMapping.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise DataError(f"cannot read mapping file {path}: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"mapping file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"mapping file {path}: {problems}") from None
    if (mapping.values is None) == (mapping.colours is None):
        raise DataError(f"mapping file {path} has either values: or colours:; keep exactly one")
    _check_names(path, set((mapping.values or mapping.colours or {}).values()))
    return mapping


def source(mapping_file: Path) -> Source:
    """The data set that a mapping file describes."""
    mapping = read_mapping(mapping_file)

    def domains(root: Path) -> Domains:
        images, labels = root / mapping.images, root / mapping.labels
        described.require(images, labels)
        pairs = []
        for image in images_below(images):
            relative = image.relative_to(images)
            label = labels / relative.with_name(f"{image.stem}{mapping.label_suffix}.png")
            pairs.append(Pair("_".join(relative.with_suffix("").parts), image, label))
        if not pairs:
            raise DataError(f"no .jpg or .png image below {images}; set images: in {mapping_file}")
        return {mapping.name: pairs}

    if mapping.colours is not None:
        legend = {_colour(text, mapping_file): name for text, name in mapping.colours.items()}
        decoder = colour_labels(legend)
    else:
        decoder = index_labels(mapping.values or {})
    described = Source(
        name="folder",
        page=f"your own storage, or correct images: and labels: in {mapping_file}",
        layout=f"{mapping.images}/<name>.jpg|png and {mapping.labels}/<name>{mapping.label_suffix}.png",
        domains=domains,
        decoder=decoder,
    )
    return described


def _check_names(path: Path, names: set[str]) -> None:
    known = {name for classes in CLASS_SETS.values() for members in classes.members for name in members}
    unknown = sorted(name for name in names if name.strip().lower() not in known | {IGNORE})
    if unknown:
        raise DataError(
            f"mapping file {path}: {unknown} are not class names; use {IGNORE!r} for pixels that count as "
            f"no class, or one of {', '.join(sorted(known))}"
        )


def _colour(text: str, path: Path) -> Colour:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdigit() and int(part) < 256 for part in parts):
        raise DataError(f'mapping file {path}: a colour is written "r,g,b" with 0..255 each, got {text!r}')
    red, green, blue = (int(part) for part in parts)
    return red, green, blue
