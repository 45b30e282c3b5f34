"""What arguments of the Python interface may be; a text that looks like a number or boolean is none."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppar_dist.errors import UserError
from ppar_dist.storage.location import Location, location

_RANGE = re.compile(r"--range ([\w.]+) ([\w.]+)")


def choice(name: str, given: Any, known: Sequence[str]) -> None:
    """Refuse what is not one of the known words.

    Raises:
        UserError: it is another.
    """
    if not isinstance(given, str) or given not in known:
        raise UserError(f"{name} is one of {', '.join(known)}, got {given!r}; correct it")


def flag(name: str, given: Any) -> None:
    """Refuse what is not a boolean; raises UserError."""
    if not isinstance(given, bool):
        raise UserError(f"{name} is True or False, got {given!r}; correct it")


def count(name: str, given: Any) -> None:
    """Refuse what is not a whole number from 1 on; raises UserError."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise UserError(f"{name} is a whole number, at least 1, got {given!r}; correct it")


def path(name: str, given: Any) -> Path:
    """The path that a text or a path object stands for.

    Raises:
        UserError: it is neither, or empty.
    """
    if not isinstance(given, str | os.PathLike) or not str(given):
        raise UserError(f"{name} is a path, got {given!r}; correct it")
    return Path(given)


def targets(given: Any) -> dict[str, Location]:
    """Folders or URLs of domains by the names that they have in a table.

    Raises:
        UserError: it is not such a mapping, or empty.
    """
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"targets are {{name: folder}}, got {given!r}; give each folder a name")
    if wrong := [name for name in given if not isinstance(name, str) or not name]:
        raise UserError(f"the name of a target is text, got {wrong[0]!r}; correct it")
    return {name: place(f"the folder of target {name}", folder) for name, folder in given.items()}


def place(name: str, given: Any) -> Location:
    """The path or URL that a text or a path object stands for.

    Raises:
        UserError: it is neither, or empty, or a URL that is not read.
    """
    return location(given if isinstance(given, str) and given else path(name, given))


def value_range(given: Any) -> tuple[float, float] | None:
    """The values of a picture of more than 8 bits that become black and white; None stays None.

    Raises:
        UserError: it is not two numbers, the first below the second.
    """
    if given is None:
        return None
    is_pair = isinstance(given, list | tuple) and len(given) == 2
    if is_pair and all(isinstance(each, int | float) and math.isfinite(each) for each in given):
        low, high = given
        if low < high:
            return float(low), float(high)
    raise UserError(f"value_range is (low, high) with low below high, got {given!r}; for 12 bits: (0, 4095)")


def in_python(message: str) -> str:
    """A message that advises an option of the command, with the argument's name in its place."""
    return _RANGE.sub(r"value_range=(\1, \2)", message).replace("--range", "value_range")
