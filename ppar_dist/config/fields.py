"""The kinds of values a configuration holds, as pydantic types."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from ppar_dist.config.yaml import read_yaml
from ppar_dist.storage.location import Location, Remote, location


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


def _no_null_byte(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path holds no NUL character; remove it")
    return path


def _location(value: Any) -> Location:
    if not isinstance(value, str | Path | Remote):
        raise ValueError("expected a path or a URL")
    place = location(value)
    return _no_null_byte(place) if isinstance(place, Path) else place


def _bytes(value: Any) -> Any:
    """A number of bytes, or text as 50 GB."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return round(float(match[1]) * 1000 ** ("KMGT".index(match[2].upper()) + 1)) if match else value


def _can_be_written(value: dict[str, Any]) -> dict[str, Any]:
    try:  # as the run's config.yaml is written and read
        text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        same = read_yaml(yaml.safe_dump(json.loads(text))) == value
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        same = False
    if not same:
        raise ValueError(
            "only finite numbers, text, lists and mappings with text as keys can be written down"
        )
    return value


_SIZE = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]+)?)\s*([KMGT])B\s*", re.IGNORECASE)
Number = Annotated[float, BeforeValidator(_no_boolean)]
# Counts of steps, images and pixels: products of two of them fit the 64 bits of a position.
Whole = Annotated[int, Field(le=2**31 - 1), BeforeValidator(_no_boolean)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Ratio = Annotated[Number, Field(ge=0, le=1)]
Momentum = Annotated[Number, Field(ge=0, lt=1)]
# Seconds that a timer may wait: at most 30 days, which every clock and timer of the system supports.
Patience = Annotated[Number, Field(gt=0, le=30 * 86400)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(_no_boolean)]
PathField = Annotated[Path, AfterValidator(_no_null_byte)]
Bytes = Annotated[int, Field(ge=0, lt=2**62), BeforeValidator(_bytes), BeforeValidator(_no_boolean)]
# A path, or the URL of object storage.
LocationField = Annotated[
    Location,
    PlainValidator(_location),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string"}),
]
PlainValues = Annotated[dict[str, Any], AfterValidator(_can_be_written)]


# Where a URL may stand: what is read from, or written to, object storage.
_TAKE_URLS = (
    "data.root",
    "targets.",
    "init_from",
    "text.file",
    "model.backbone.pretrained",
    "checkpoint.remote",
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def url_keys(tree: Any) -> list[str]:
    """The dotted keys of a tree that hold a URL and may not, or that contain one themselves."""
    found, left = [], [("", tree)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            named = [(str(name), item) for name, item in value.items()]
            found += [key or "the top level" for name, _ in named if _URL.match(name)]
            left += [(f"{key}.{name}".lstrip("."), item) for name, item in named if not _URL.match(name)]
        elif isinstance(value, (list, tuple)):
            left += [(key, item) for item in value]
        elif isinstance(value, str) and _URL.match(value.strip()) and not _takes_urls(key):
            found.append(key)
    return sorted(set(found))


def _takes_urls(key: str) -> bool:
    return any(key == taken or (taken.endswith(".") and key.startswith(taken)) for taken in _TAKE_URLS)
