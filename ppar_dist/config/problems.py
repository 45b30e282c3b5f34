"""What pydantic found wrong, in words of the configuration: the key, the rule, the value, and a guess."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from ppar_dist.text import guess, printable, shown

_SEE = "see docs/configuration.md for the keys there are"
# The rule by pydantic's name of an error, with the figures in its context.
_RULES = {
    "greater_than": "is more than {gt}",
    "greater_than_equal": "is at least {ge}",
    "less_than": "is less than {lt}",
    "less_than_equal": "is at most {le}",
    "finite_number": "is a finite number",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "is a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "is a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "is true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "is a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "holds keys and values"),
    "string_type": "is text",
    "string_unicode": "is text that UTF-8 can spell",
    "string_too_short": "is text of at least {min_length} characters",
    "string_too_long": "is text of at most {max_length} characters",
    "path_type": "is a path",
    "too_short": "has at least {min_length} values",
    "too_long": "has at most {max_length} values",
}


def problems(error: ValidationError, known: Iterable[str] = (), see: str = _SEE) -> list[str]:
    """A line for each problem of a model that was given wrong values.

    Args:
        error: as pydantic raises it.
        known: keys that there are, for a guess.
        see: where an unknown key's remedy is.
    """
    items, known = error.errors(include_url=False), list(known)
    places = [tuple(item["loc"]) for item in items]
    return [
        _line(item, known, see)
        for item, place in zip(items, places, strict=True)
        if not (_is_short_by_others(item) and any(each[: len(place)] == place != each for each in places))
    ]


def _is_short_by_others(item: Mapping[str, Any]) -> bool:
    """A list that is long enough counts as short where pydantic has left out its wrong values."""
    given = item["input"]
    return (
        item["type"] == "too_short"
        and isinstance(given, list | tuple)
        and len(given) >= item["ctx"]["min_length"]
    )


def _line(item: Any, known: list[str], see: str) -> str:
    key, kind, given = printable(".".join(str(part) for part in item["loc"])), item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"unknown key {key}{guess(key, known)}; {see}"
    if kind == "missing":
        is_item = bool(item["loc"]) and isinstance(item["loc"][-1], int) and isinstance(given, list | tuple)
        return f"{key} is missing in {shown(given)}; add it" if is_item else f"{key} is required; add it"
    value = "" if isinstance(given, dict) and kind != "string_type" else f", got {shown(given)}"
    if kind == "literal_error":
        choices = re.findall("'([^']*)'", item["ctx"]["expected"])
        hint = guess(given, choices) if isinstance(given, str) else ""
        return f"{key} is one of {', '.join(choices) or item['ctx']['expected']}{value}{hint}"
    if kind in _RULES:
        rule = _RULES[kind].format(**item.get("ctx", {}))
        return f"{key or 'it'} {rule}{value}"
    message = printable(str(item["msg"]).removeprefix("Value error, "))
    return f"{key}: {message}{'' if ', got ' in message else value}" if key else message
