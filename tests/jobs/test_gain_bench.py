"""The benchmark of gains on a few real images: it trains, judges, writes its tables, and repeats nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.judge import HELD_OUT
from benchmarks.streets import ROOT, TARGETS
from tests.ranks import rank_environment

MARKERS = "<!-- gain:pretrained begin (made by nothing) -->\n<!-- gain:pretrained end -->\n"


def bench(folder: Path, real_data: Path) -> str:
    words = "--track pretrained --seeds 1 --steps 2 --limit 3 --parallel 1"
    variants = [f"--variant={name}" for name in ("plain", "PPAR", "plain, averaged weights")]
    places = [f"--shards={folder / 'shards'}", f"--out={folder / 'gain'}", f"--docs={folder / 'page.md'}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gain", *words.split(), *variants, *places],
        cwd=ROOT,
        env=rank_environment() | {"PPAR_TEST_DATA": str(real_data)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def times(folder: Path) -> dict[Path, int]:
    """When each file of the runs was written; links by name are made again each time."""
    files = (path for path in folder.rglob("*") if path.is_file() and "by-name" not in path.parts)
    return {path: os.stat(path).st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    (made / "page.md").write_text(f"before\n{MARKERS}after\n")
    (made / "first").write_text(bench(made, real_data))
    return made


def test_the_variants_are_trained_judged_and_written_into_the_page(folder: Path) -> None:
    runs = sorted(path for path in (folder / "gain").iterdir() if path.name != "by-name")
    assert [len(path.name) for path in runs] == [12, 12, 12]
    links = sorted((folder / "gain" / "by-name").iterdir())
    named = ["PPAR", "plain-averaged-weights", "plain"]
    assert [link.name for link in links] == [f"pretrained-{name}-seed0" for name in named]
    assert sorted(link.resolve() for link in links) == runs
    for run in runs:
        judged = {path.stem for path in (run / "judged").iterdir()}
        assert judged == {*TARGETS, "held-out"}
    page = (folder / "page.md").read_text()
    assert page.startswith("before\n<!-- gain:pretrained begin (made by python -m benchmarks.gain --track ")
    assert page.endswith("<!-- gain:pretrained end -->\nafter\n")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    averaged = "| plain, averaged weights"
    head, differences = ["| run", "| ---", "| plain"], ["| difference to plain", "| ---"]
    assert rows == [*head, "| PPAR", averaged, *differences, "| PPAR", averaged]
    assert (
        page[page.index("| run") : page.index("<!-- gain:pretrained end")].strip()
        in (folder / "first").read_text()
    )
    assert "source tree" in page
    assert "mixed" not in page


def test_averaged_weights_are_judged_by_their_average(folder: Path) -> None:
    named = folder / "gain" / "by-name"
    found = [named / f"pretrained-{name}-seed0" for name in ("plain", "plain-averaged-weights")]
    raw, averaged = (np.load(run / "judged" / f"{HELD_OUT}.npz")["counts"] for run in found)
    assert raw.sum() == averaged.sum()  # the same pixels of the same training
    assert (raw != averaged).any()


def test_a_second_call_repeats_nothing_and_says_the_same(folder: Path, real_data: Path) -> None:
    before, page = times(folder / "gain"), (folder / "page.md").read_text()
    said = bench(folder, real_data)
    assert times(folder / "gain") == before
    assert "done" not in said
    assert (folder / "page.md").read_text() == page
