"""Paths with placeholders, which say how an image finds its label whatever the data set calls its files::

    images: "rgb_anon/night/{split}/{seq}/{frame}_rgb_anon.png"
    labels: "gt/night/{split}/{seq}/{frame}_gt_labelIds.png"

``{name}`` stands for a part of a path or a piece of one, never for a slash; where it occurs again it stands
for the same text. Of several placeholders in one part the first takes as much as it can. Everything else is
literal, but the case of an image's ending does not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import PurePosixPath

from ppar_dist.errors import DataError

PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}", re.ASCII)
"""A placeholder; its group is the name."""


@dataclass(frozen=True)
class PathPattern:
    """A relative path, with or without placeholders; ``where`` is its place in a mapping file, for messages.

    Raises:
        DataError: a malformed brace, two placeholders side by side, or a path that leads out of the root.
    """

    text: str
    where: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.text)
        if path.is_absolute() or ".." in path.parts:
            self._refuse("is a path below --root, without '..'; write it relative to --root")
        pieces = PLACEHOLDER.split(self._normal)
        if any(brace in literal for literal in pieces[::2] for brace in "{}"):
            self._refuse("has a brace that is not of a placeholder such as {frame}; correct it")
        if "" in pieces[2:-1:2]:
            self._refuse("has two placeholders side by side; write what stands between them")

    @property
    def names(self) -> list[str]:
        """Its placeholders, each once, in their order."""
        return list(dict.fromkeys(PLACEHOLDER.findall(self.text)))

    @property
    def folder(self) -> PurePosixPath:
        """The folders before the first part with a placeholder."""
        return PurePosixPath(*takewhile(lambda part: "{" not in part, PurePosixPath(self.text).parts))

    def match(self, path: PurePosixPath) -> dict[str, str] | None:
        """What the placeholders stand for in a path relative to the root; None where it does not fit."""
        found = self._regex.fullmatch(str(path))
        return found.groupdict() if found else None

    def fill(self, values: dict[str, str]) -> str:
        """The text with its placeholders replaced."""
        return PLACEHOLDER.sub(lambda found: values[found[1]], self._normal)

    @cached_property
    def _normal(self) -> str:
        """The text without // and /./."""
        return str(PurePosixPath(self.text))

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        pieces, known = PLACEHOLDER.split(self._normal), set[str]()
        stem, ending, _ = re.split(r"(\.[^./]*\Z|\Z)", pieces[-1], maxsplit=1)
        last = f"{re.escape(stem)}(?i:{re.escape(ending)})"
        parts = []
        for literal, name in zip(pieces[:-1:2], pieces[1::2], strict=True):
            parts += [re.escape(literal), f"(?P={name})" if name in known else f"(?P<{name}>[^/]+)"]
            known.add(name)
        return re.compile("".join((*parts, last)))

    def _refuse(self, rule: str) -> None:
        raise DataError(f"{self.where} {rule}, got {self.text!r}")
