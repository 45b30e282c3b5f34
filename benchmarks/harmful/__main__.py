"""How much of the harm of a spoiled source the method takes away, and how early its weights show it.

    PPAR_TEST_DATA=D/.. python -m benchmarks.harmful --track pretrained

A spoiled source joins the three clean ones and takes a share of the positions. Harm is what plain fine-tuning
loses by it; a variant takes away (variant - plain) / (plain on clean sources - plain) of it. Spoiled sources
and variants are in benchmarks/harmful/variants.py. Finished runs are found again, interrupted ones resume.
The tables are printed and put into the page of results, between the markers of the track.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from benchmarks.gain.equal_time import Runs
from benchmarks.harmful.cells import cell_auroc
from benchmarks.harmful.separation import chart
from benchmarks.harmful.spoil import RECORD, shuffle_domains, spoiled_keys
from benchmarks.harmful.tables import (
    NOTE,
    RATIO,
    Courses,
    harm_rows,
    harm_table,
    separation,
    separation_table,
)
from benchmarks.harmful.variants import CLEAN, PLAIN, PRESENT, SHARES, SHUFFLED, SPOILERS, VARIANTS
from benchmarks.judge import HELD_OUT
from benchmarks.options import page, parser
from benchmarks.pages import insert, markdown
from benchmarks.runs import Run, plan_run, provenance, run_variants, stop_on_signals
from benchmarks.streets import TARGETS, TRACK_KEYS, TRACKS, prepare_streets
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.config.weights import find_weights
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.manifest import NAME
from ppar_dist.data.sources import holdout_range

CHART_WINDOWS = 15


def shared_sources(config: Config, spoiled: str, share: float) -> str:
    """The override that gives a spoiled source its share of the positions; size divides the rest."""
    sizes = {}
    for name in CLEAN:
        index = DomainIndex.open(config.data.root / name)
        sizes[name] = holdout_range(index, config.data.holdout).start
    total = sum(sizes.values())
    weights = {name: (1 - share) * size / total for name, size in sizes.items()} | {spoiled: share}
    listed = ", ".join(f"{{name: {name}, weight: {weight:.5f}}}" for name, weight in weights.items())
    return f"data.sources=[{listed}]"


def shuffled_sources(config: Config, spoiled: Path, share: float) -> str:
    """The override of `shared_sources`, with as many domains that hold samples of all; they are made once."""
    names = [f"{spoiled.name}_{share:.0%}_{part}".replace("%", "") for part in range(len(CLEAN) + 1)]
    folders = [spoiled.parent / name for name in names]
    if not (folders[-1] / NAME).exists():
        clean = [DomainIndex.open(config.data.root / name) for name in CLEAN]
        shuffle_domains(clean, DomainIndex.open(spoiled), folders, share)
    return f"data.sources=[{', '.join(names)}]"


def make_spoiled(spoiler: str, shards: Path, size: int, limit: int | None) -> Path:
    """The folder of a spoiled source, made unless it is there."""
    how = SPOILERS[spoiler]
    folder = shards / how.domain.format(size=size)
    if not (folder / RECORD).exists():
        how.make(shards, folder, size, limit)
        images, spoiled = len(DomainIndex.open(folder)), len(spoiled_keys(folder))
        print(f"{folder}: {images} images, {spoiled} of them spoiled", flush=True)
    return folder


class Bench:
    """The runs of one track: PLAIN on the clean sources; every variant on every spoiled source and share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.file = options, TRACKS[options.track]
        self.targets = {name: options.shards / domain for name, domain in TARGETS.items()}
        self.common = [f"data.root={options.shards}", "train.log_every=1", *TRACK_KEYS[options.track]]
        self.common += [f"train.steps={options.steps}"] if options.steps else []
        self.config = load_config(self.file, self.common)
        size = self.config.data.size
        self.folders = {
            spoiler: make_spoiled(spoiler, options.shards, size, options.limit) for spoiler in options.spoiler
        }
        planned = [item for seed in range(options.seeds) for item in self._plan(seed)]
        self.found, self.problems = run_variants(planned, self.targets, options.parallel)

    def report(self) -> str:
        """The tables."""
        columns, against = list(TARGETS), self.options.against
        clean = self.found[_clean()]
        empty = [""] * (0 if against == PLAIN else 1)
        rows = [["none", "", *harm_rows({PLAIN: clean}, clean, columns, [], PLAIN)[0][:-2], "", "", *empty]]
        for spoiler, share in self._cases():
            runs = {name: self.found[_name(spoiler, share, name)] for name in self.options.variant}
            related = SPOILERS[spoiler].related
            for row in harm_rows(runs, clean, columns, related, against):
                rows.append([spoiler, f"{share:.0%}", *row])
        parts = [harm_table(rows, columns, against)]
        if PRESENT in self.options.variant:
            windows = self.options.windows
            parts.append(separation_table(self._separation(windows), windows))
        parts.append(self._cells())
        runs_of_all = [run for runs in self.found.values() for run in runs.values()]
        parts.append(f"{NOTE} {provenance(runs_of_all, [*columns, HELD_OUT], self.options.parallel)}")
        return "\n\n".join(parts)

    def _cells(self) -> str:
        """AUROC per cell of trust; the same for all seeds where the tower's weights come from a file."""
        rows = [["spoiled source", "AUROC of clean over spoiled cells by trust", "by trust x p_y / max p"]]
        for spoiler in self.options.spoiler:
            sources = shared_sources(self.config, self.folders[spoiler].name, max(self.options.share))
            config = load_config(self.file, [*self.common, sources])
            weights = Path(os.environ.get("PPAR_WEIGHTS", "."))
            by_trust, by_both = cell_auroc(find_weights(config, weights))
            figures = (by_trust, by_both)
            rows.append([spoiler, *("none spoiled" if isnan(x) else f"{x:.2f}" for x in figures)])
        return markdown(rows)

    def draw(self, path: Path) -> bool:
        """A chart of the AUROC over training, at the largest share; False without matplotlib."""
        share = f"{max(self.options.share):.0%}"
        found = {s: c for (s, at), c in self._separation(CHART_WINDOWS).items() if at == share}
        for courses in found.values():
            courses.pop(RATIO, None)  # no AUROC
        return chart(found, path)

    def _cases(self) -> list[tuple[str, float]]:
        return [(spoiler, share) for spoiler in self.options.spoiler for share in self.options.share]

    def _plan(self, seed: int) -> list[tuple[str, Run]]:
        cases: list[tuple[str, tuple[str, ...]]] = [(_clean(), VARIANTS[PLAIN])]
        for spoiler, share in self._cases():
            sources = shared_sources(self.config, self.folders[spoiler].name, share)
            for name in self.options.variant:
                if name == SHUFFLED:
                    sources = shuffled_sources(self.config, self.folders[spoiler], share)
                cases.append((_name(spoiler, share, name), (sources, *VARIANTS[name])))
        track, out = self.options.track, self.options.out
        return [
            (name, plan_run(f"{track} {name}", seed, self.file, out, [*self.common, *extra]))
            for name, extra in cases
        ]

    def _separation(self, windows: int) -> dict[tuple[str, str], Courses]:
        found = {}
        for spoiler, share in self._cases():
            runs: Runs = self.found[_name(spoiler, share, PRESENT)]
            found[spoiler, f"{share:.0%}"] = separation(runs, self.folders[spoiler], windows)
        return found


def _name(spoiler: str, share: float, variant: str) -> str:
    return f"{spoiler} {share:.0%} {variant}"


def _clean() -> str:
    return f"clean sources {PLAIN}"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    described = parser("harmful", __doc__, 3, VARIANTS)
    add = described.add_argument
    add("--track", choices=list(TRACKS), default="pretrained")
    add("--spoiler", action="append", choices=list(SPOILERS), metavar="NAME", help="default: all")
    add("--share", action="append", type=float, metavar="SHARE", help="of the positions; default: .1 .25 .4")
    add("--windows", type=int, default=4, help="windows of training for the AUROC")
    add("--chart", type=Path, help="PNG of the course of the AUROC")
    options = described.parse_args(arguments)
    options.against = options.against or PLAIN
    options.spoiler = options.spoiler or list(SPOILERS)
    options.share = options.share or list(SHARES)
    chosen = {PLAIN, options.against, *(options.variant or VARIANTS)}
    options.variant = [name for name in VARIANTS if name in chosen]
    return options


def main(arguments: Sequence[str]) -> int:
    """Spoil, run what is missing, print the tables and put them into the page; 1 where a run failed."""
    options = _options(arguments)
    marker = f"harmful:{options.track}"
    docs = page(options, "harmful.md", [marker])
    stop_on_signals()
    prepare_streets(options.shards, options.limit)
    bench = Bench(options)
    if bench.problems:
        print("\n".join(bench.problems), file=sys.stderr)
        return 1
    report = bench.report()
    print(f"\n{report}\n", flush=True)
    if docs is not None:
        insert(docs, marker, shlex.join(["python", "-m", "benchmarks.harmful", *arguments]), report)
    if options.chart and PRESENT in options.variant and not bench.draw(options.chart):
        print("no chart: matplotlib is not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
