"""The kinds of values a configuration holds, as pydantic types."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from ppar_dist.config.yaml import read_yaml


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


def _no_null_byte(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path holds no NUL character; remove it")
    return path


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
PlainValues = Annotated[dict[str, Any], AfterValidator(_can_be_written)]


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def url_keys(tree: Any) -> list[str]:
    """The dotted keys of a tree of plain values whose value is a URL, or that contain one themselves."""
    found, left = [], [("", tree)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            named = [(str(name), item) for name, item in value.items()]
            found += [key or "the top level" for name, _ in named if _URL.match(name)]
            left += [(f"{key}.{name}".lstrip("."), item) for name, item in named if not _URL.match(name)]
        elif isinstance(value, (list, tuple)):
            left += [(key, item) for item in value]
        elif isinstance(value, str) and _URL.match(value.strip()):
            found.append(key)
    return sorted(set(found))
