"""Tables find their place in a page, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages import insert, markdown
from benchmarks.streets import ROOT, TRACKS
from ppar_dist.sweep.statistics import spread

PAGE = """# Results

before
<!-- gain:one begin (made by nothing yet) -->
<!-- gain:one end -->
between
<!-- gain:two begin (made by `x`) -->
old
<!-- gain:two end -->
after
"""


def test_inserting_twice_is_inserting_once(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    insert(page, "gain:one", "python -m x", "| table |")
    once = page.read_text()
    insert(page, "gain:one", "python -m x", "| table |")
    assert page.read_text() == once
    assert once.startswith("# Results\n\nbefore\n<!-- gain:one begin (made by python -m x) -->\n")
    assert "| table |" in once
    assert once.endswith(PAGE[PAGE.index("between") :])
    insert(page, "gain:one", "python -m y", r"\1 other")
    assert page.read_text() == once.replace("python -m x", "python -m y").replace("| table |", r"\1 other")


@pytest.mark.parametrize(
    "text",
    ["", PAGE.replace("gain:one end", "gain:one"), PAGE + PAGE, PAGE.replace("(made by nothing yet) ", "")],
    ids=["none", "no end", "twice", "no command"],
)
def test_a_page_without_the_markers_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="gain:one begin"):
        insert(page, "gain:one", "python -m x", "table")
    assert page.read_text() == text


@pytest.mark.parametrize(("bench", "name"), [("gain", "results.md"), ("harmful", "harmful.md")])
def test_the_page_of_a_benchmark_has_its_markers(bench: str, name: str, tmp_path: Path) -> None:
    page = tmp_path / name
    page.write_text((ROOT / "docs" / name).read_text(encoding="utf-8"), encoding="utf-8")
    for track in TRACKS:
        insert(page, f"{bench}:{track}", "python -m x", f"table of {track}")
    written = page.read_text(encoding="utf-8")
    assert all(written.count(f"`python -m x`\n\ntable of {track}\n") == 1 for track in TRACKS)


def test_cells() -> None:
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert spread([0.1, 0.3]) == "20.0 ± 14.1"
    assert spread([0.1]) == "10.0 ± 0.0"
