"""Write ``configuration.md``: every key of the configuration, from the sections in ``ppar_dist/config/``.

``python docs/configuration.py``. What a key means is the comment on its line there.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import tokenize
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ppar_dist.config.schema import Config
from ppar_dist.config.section import Section

PAGE = Path(__file__).with_suffix(".md")
_HEAD = """\
# Configuration

A run is described by one YAML file; `key=value` arguments of a command replace what it says, as in
`ppar-dist train configs/roads.yaml train.steps=100 'data.sources=[day, night]'` (values are YAML).
`ppar-dist config CONFIG` prints the whole configuration with its defaults. Unknown keys, wrong types and
impossible combinations are refused when the file is read, all of them in one message.

This page is made from the sections in `ppar_dist/config/` by `python docs/configuration.py`.
"""
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_NAMES = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    type(None): "null",
}


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_section(Config, ""))


def _section(model: type[Section], path: str) -> list[str]:
    """Heading, table and inner sections of a model; ``path`` is its key, with a dot at the end."""
    hints, meanings = get_type_hints(model, include_extras=True), _meanings(model)
    rows, inner = [], []
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        child = next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)
        if child is not None:
            inner += _section(child, f"{path}{name}" + ("." if child is field.annotation else "[]."))
        if child is not field.annotation:
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            rows.append(f"| `{name}` | {_kind(hints[name])} | {default} | {meanings[name]} |\n")
    title = f"\n## `{path[:-1]}`\n" if path else "\n## Top level\n"
    table = ["\n| key | type | default | meaning |\n|---|---|---|---|\n", *rows] if rows else []
    return [title, f"\n{(inspect.getdoc(model) or '').replace('``', '`')}\n", *table, *inner]


def _meanings(model: type[Section]) -> dict[str, str]:
    """The comment on the lines of each field."""
    source = inspect.getsource(model)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    return {
        node.target.id: " ".join(
            comments[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments
        ).replace("|", "\\|")
        for node in ast.parse(source).body[0].body  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _kind(hint: Any) -> str:
    """Type and bounds in words."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([_kind(inside[0]), ", ".join(_bounds(inside[1:]))]).strip()
    if origin in (Union, UnionType):
        return " or ".join(map(_kind, inside))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin is tuple:
        return f"list of {_kind(inside[0])}" if ... in inside else f"[{', '.join(map(_kind, inside))}]"
    if origin is dict:
        return "mapping" if inside[1] is Any else f"mapping of names to {_kind(inside[1])}"
    return _NAMES.get(hint, "section")


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    """Bounds that a user may meet, not those of the machine's integers."""
    items = [item for given in metadata for item in getattr(given, "metadata", [given])]
    found = [
        (sign, getattr(item, name)) for item in items for name, sign in _SIGNS.items() if hasattr(item, name)
    ]
    return [f"{sign} {value:g}" for sign, value in found if abs(value) < 2**31 - 1]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
