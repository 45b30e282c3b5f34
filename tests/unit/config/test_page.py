"""docs/configuration.md is made from the schema and current."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "docs" / "configuration.py"


def test_the_page_is_current_and_explains_every_key() -> None:
    text = runpy.run_path(str(SCRIPT))["page"]()
    assert SCRIPT.with_suffix(".md").read_text(encoding="utf-8") == text, "run python docs/configuration.py"
    assert "|  |\n" not in text
    assert "| `max_bad_ratio` | number ≥ 0, ≤ 1 | `0.01` | of a domain's samples;" in text
