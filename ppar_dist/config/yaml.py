"""YAML for configurations: plain values, every key once, and bounds on the cost of a text.

PyYAML's safe loader lets the last of two equal keys win, turns dates and tags into objects that do not belong
in a configuration, raises errors other than a YAML error on tags and numbers it cannot convert, and follows
nesting and aliases until memory is full. Here all of these are a ``YAMLError`` with line and column.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml
from yaml.constructor import ConstructorError

MAX_CHARACTERS = 1 << 18  # of a text: two seconds to parse at the very worst
MAX_VALUES = 10_000  # of a text; an alias counts as its whole value
MAX_DEPTH = 32  # sections and lists within each other
MAX_DIGITS = 400  # of a number: more than any float has

_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in _PLAIN)


class StrictLoader(yaml.SafeLoader):
    """Null, booleans, numbers, strings, lists and mappings; a date is a string."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0
        self._sizes: dict[int, int] = {}  # values below a finished node, by its id

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node within the bounds on depth and size; an alias counts as its whole value."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs give it no types
        before = self._values
        self._depth += 1
        if self._depth > MAX_DEPTH:
            _refuse(f"more than {MAX_DEPTH} levels of nesting", event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                _refuse(f"the alias *{event.anchor} refers to a value that contains it", event.start_mark)
            self._values += self._sizes[id(node)]
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        if self._values > MAX_VALUES:
            _refuse(f"more than {MAX_VALUES} values, each alias counted as its whole value", event.start_mark)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping; a repeated key is refused, one that overrides ``<<`` is not."""
        node = super().compose_mapping_node(anchor)
        first: dict[Any, yaml.ScalarNode] = {}  # 0, 0x0, 0.0 and false are one key for Python
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                other = first.setdefault(self.construct_object(key), key)
                if other is not key:
                    line, before = (each.start_mark.line + 1 for each in (key, other))
                    as_written = f" as {other.value!r}" * (key.value != other.value)
                    _refuse(
                        f"key {key.value!r} in line {line} is in line {before} too{as_written}; keep one",
                        key.start_mark,
                    )
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The value of a node; tags beyond plain values, and values their tag does not fit, are refused."""
        if node.tag not in _TAGS:
            _refuse(f"the tag {node.tag}: only plain values are allowed", node.start_mark)
        # Python limits decimal digits, but not hexadecimal and binary ones, nor 1:00:00, a number of base 60.
        if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            _refuse(f"a number of {len(node.value)} characters; at most {MAX_DIGITS}", node.start_mark)
        if node.tag.endswith(":int") and _OCTAL.fullmatch(node.value):
            _refuse(
                f"{node.value!r} is octal in YAML; write the number without leading zeros", node.start_mark
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError):  # raised by int(), float() and the look-up of yes and no
            _refuse(f"{str(node.value)[:40]!r} is not a valid {node.tag.rpartition(':')[2]}", node.start_mark)


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise ConstructorError(None, None, problem, mark)


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """The value of a YAML text: None, bool, int, float, str, list or dict, nested; nothing else.

    Raises:
        yaml.YAMLError: not valid YAML, more than one document, a repeated key, a tag, or a bound exceeded.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"a text of {len(text)} characters; at most {MAX_CHARACTERS} are read")
    try:
        return yaml.load(text, Loader=StrictLoader)
    except IndexError:  # PyYAML, at a text that ends within an escape or a directive
        raise yaml.YAMLError("the text ends within a value") from None
