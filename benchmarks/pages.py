"""Markdown tables, and their place in a page between two markers.

<!-- NAME begin (made by COMMAND) -->
<!-- NAME end -->
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def insert(page: Path, name: str, command: str, text: str) -> None:
    """Replace what stands between the markers of ``name``; raises ValueError as `block` does."""
    new = f"<!-- {name} begin (made by {command}) -->\n\n`{command}`\n\n{text}\n\n<!-- {name} end -->"
    page.write_text(page.read_text(encoding="utf-8").replace(block(page, name), new), encoding="utf-8")


def block(page: Path, name: str) -> str:
    """The markers of ``name`` and what stands between them.

    Raises:
        ValueError: the page does not hold one pair of these markers.
    """
    text = page.read_text(encoding="utf-8")
    pattern = rf"<!-- {re.escape(name)} begin \(made by [^\n]*\) -->\n.*?<!-- {re.escape(name)} end -->"
    found: list[str] = re.findall(pattern, text, flags=re.DOTALL)
    if len(found) != 1 or text.count(f"<!-- {name} ") != 2:
        raise ValueError(
            f"{page} does not hold one line `<!-- {name} begin (made by COMMAND) -->` and, below it, one "
            f"line `<!-- {name} end -->`; add them where the tables belong"
        )
    return found[0]
