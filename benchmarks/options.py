"""Options that the benchmarks of gain and harm share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.arguments import described
from benchmarks.pages import block
from benchmarks.streets import ROOT


def parser(
    program: str, description: str | None, seeds: int, variants: Iterable[str]
) -> argparse.ArgumentParser:
    """Options of a benchmark of runs; what it writes goes below results/PROGRAM by default."""
    options = described(description, prog=f"python -m benchmarks.{program}")
    add, names, cores = options.add_argument, list(variants), len(os.sched_getaffinity(0))
    add("--shards", type=Path, default=Path("shards"), help="domains that are not there are made")
    add("--out", type=Path, default=Path("results") / program)
    add("--seeds", type=int, default=seeds)
    add("--variant", action="append", choices=names, metavar="NAME", help="may be repeated; default: all")
    add("--against", choices=names, metavar="NAME", help="also compare with this variant")
    add("--parallel", type=int, default=cores, help="runs at a time, of one thread each; default: cores")
    add("--steps", type=int, help="a shorter run, for a try; default: the configuration's")
    add("--limit", type=int, help="images per domain, for a try with --shards of its own")
    add("--docs", type=Path, help="page that gets the tables; default: its own below docs/, of a try none")
    return options


def page(options: argparse.Namespace, name: str, markers: Sequence[str]) -> Path | None:
    """The page that gets the tables, ``name`` below docs/ unless the options say otherwise, or None.

    Raises:
        ValueError: it lacks the markers; better now than after hours.
    """
    chosen: Path | None = options.docs
    if chosen is None and options.steps is None and options.limit is None:
        chosen = ROOT / "docs" / name
    if chosen is not None:
        for marker in markers:
            block(chosen, marker)
    return chosen
