"""How much of the harm of spoiled sources reweighting removes, and how early its weights show them.

    PPAR_TEST_DATA=D/.. python -m benchmarks.gain.harmful --out results/harmful --chart docs/harmful.png

Two scenarios on real streets (see benchmarks/gain/spoil.py): the labels of a third of one source are
permuted; a further source shows no street and has random labels. For each: the method with
reweighting, without it, without it after the spoiled part was removed by hand, and plain fine-tuning
on the spoiled data; the same model, steps and augmentation. Runs that have results are not repeated.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gain.separation import chart, course, mean_known, read_draws, weight_ratio
from benchmarks.gain.spoil import spoil, spoiled_keys
from benchmarks.runs import Job, prepare_streets, run_all, scores, table

SPOILT, OTHERS = "camvid_0016E5", ("camvid_0006R0", "camvid_Seq05VD")
TARGETS = {"dusk": "camvid_0001TP", "facade": "labelmefacade_test"}
REWEIGHTED, UNWEIGHTED, REMOVED, PLAIN = (
    "PPAR",
    "PPAR without reweighting",
    "PPAR without reweighting, spoiled part removed",
    "plain fine-tuning",
)
RATIO = "mean weight, spoiled / clean"
CHART_WINDOWS = 15
Runs = Mapping[tuple[str, int], Path]


@dataclass(frozen=True)
class Scenario:
    """Sources with the spoiled part and without it; ``within``: the domain that is spoiled in part."""

    spoiled: tuple[str, ...]
    removed: tuple[str, ...]
    within: str | None

    def jobs(self, name: str, seeds: int) -> list[Job]:
        """The four variants, for every seed."""
        off = "ppar.reweighting.enabled=false"
        variants = {
            REWEIGHTED: (self.spoiled, ()),
            UNWEIGHTED: (self.spoiled, (off,)),
            REMOVED: (self.removed, (off,)),
            PLAIN: (self.spoiled, ("ppar.enabled=false",)),
        }
        return [
            Job(f"{name}: {variant}", (f"data.sources=[{', '.join(sources)}]", *extra), seed)
            for seed in range(seeds)
            for variant, (sources, extra) in variants.items()
        ]


SCENARIOS = {
    "permuted labels": Scenario(
        (f"{SPOILT}_permuted", *OTHERS), (f"{SPOILT}_kept", *OTHERS), f"{SPOILT}_permuted"
    ),
    "irrelevant domain": Scenario((SPOILT, *OTHERS, "irrelevant"), (SPOILT, *OTHERS), None),
}


def harm_taken_away(reweighted: float, unweighted: float, removed: float) -> float:
    """(reweighted - unweighted) / (removed - unweighted); nan where removing gains nothing."""
    harm = removed - unweighted
    return (reweighted - unweighted) / harm if harm > 0 else math.nan


def harm_table(runs: Runs) -> str:
    """Per scenario and target: harm in points of mIoU and the share of it that reweighting takes away.

    The harm is the mean ± standard deviation of differences paired by seed. The share comes from means
    over seeds: a mean of ratios would be dominated by the seed with the least harm.
    """
    rows = [["scenario", "target", "harm (points)", "taken away by reweighting"], ["---"] * 4]
    for name in _scenarios(runs):
        for target in TARGETS:
            found = [
                _per_seed(runs, f"{name}: {which}", target) for which in (REWEIGHTED, UNWEIGHTED, REMOVED)
            ]
            harm = [100 * (after - before) for before, after in zip(found[1], found[2], strict=True)]
            spread = statistics.stdev(harm) if len(harm) > 1 else 0.0
            share = harm_taken_away(*map(statistics.mean, found))
            said = "no harm to take away" if math.isnan(share) else f"{100 * share:.0f} %"
            rows.append([name, target, f"{statistics.mean(harm):.1f} ± {spread:.1f}", said])
    return _markdown(rows)


def separation(runs: Runs, shards: Path, windows: int) -> dict[str, dict[str, list[list[float]]]]:
    """Scenario → score → per seed, the AUROC (or ratio of mean weights) in each window of the run."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name in _scenarios(runs):
        scenario = SCENARIOS[name]
        spoiled = {domain: spoiled_keys(shards / domain) for domain in scenario.spoiled}
        scores_of = found.setdefault(name, {})
        for variant, label in ((REWEIGHTED, "with reweighting"), (UNWEIGHTED, "without reweighting")):
            for path in (path for (job, _), path in runs.items() if job == f"{name}: {variant}"):
                draws = read_draws(path, spoiled)
                rows = {f"reliability, {label}": course(draws, draws.reliability, windows)}
                if variant == REWEIGHTED:
                    rows["weight"] = course(draws, draws.weight, windows)
                    if scenario.within:
                        rows["weight, within the spoiled domain"] = course(
                            draws, draws.weight, windows, scenario.within
                        )
                    rows[RATIO] = weight_ratio(draws, windows)
                for score, row in rows.items():
                    scores_of.setdefault(score, []).append(row)
    return found


def separation_table(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], windows: int) -> str:
    """Markdown: means over seeds per window."""
    heads = [f"{100 * w // windows}-{100 * (w + 1) // windows} %" for w in range(windows)]
    rows = [["scenario", "AUROC of clean over spoiled by", *heads], ["---"] * (windows + 2)]
    for name, scores_of in found.items():
        for score, seeds in scores_of.items():
            rows.append([name, score, *(f"{mean_known(w):.2f}" for w in zip(*seeds, strict=True))])
    return _markdown(rows)


def _scenarios(runs: Runs) -> list[str]:
    return list(dict.fromkeys(job.split(": ")[0] for job, _ in runs))


def _per_seed(runs: Runs, job: str, target: str) -> list[float]:
    """mIoU on a target, in the order of the seeds."""
    return [scores(runs[key])[target] for key in sorted(runs) if key[0] == job]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("configs/roads.yaml"))
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="spoiled domains are added here")
    parser.add_argument("--out", type=Path, default=Path("results/harmful"))
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="default: both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--fraction", type=float, default=1 / 3, help="spoiled share of the domain")
    parser.add_argument("--irrelevant", type=float, default=0.27, help="share of the clean sources' images")
    parser.add_argument("--windows", type=int, default=4, help="windows of training for the AUROC")
    parser.add_argument("--chart", type=Path, help="PNG of the course of the AUROC")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    return parser.parse_args()


def main() -> None:
    """Spoil, run what is missing, print the tables and draw the chart."""
    options = _options()
    prepare_streets(options.shards)
    spoil(options.shards, SPOILT, OTHERS, options.fraction, options.irrelevant)
    common = [f"data.root={options.shards}", f"train.steps={options.steps}", "train.log_every=1"]
    common += [f"targets.{name}={options.shards / domain}" for name, domain in TARGETS.items()]
    names = options.scenario or list(SCENARIOS)
    jobs = [job for name in names for job in SCENARIOS[name].jobs(name, options.seeds)]
    order = list(dict.fromkeys(job.name for job in jobs))
    jobs.sort(key=lambda job: job.seed)  # after the first seed there is a first table to look at
    folders = run_all(jobs, options.config, options.out, [*common, *options.overrides], options.parallel)
    runs = {key: folders[key] for key in sorted(folders, key=lambda key: (order.index(key[0]), key[1]))}
    print(table(runs), "(held-out source data hold spoiled labels where none were removed)", sep="\n\n")
    found = separation(runs, options.shards, options.windows)
    print("\n" + harm_table(runs), separation_table(found, options.windows), sep="\n\n")
    if options.chart:
        shown = separation(runs, options.shards, CHART_WINDOWS)
        for courses in shown.values():
            courses.pop(RATIO)  # no AUROC
        drawn = chart(shown, options.chart)
        print(f"\nchart: {options.chart}" if drawn else "\nno chart: matplotlib is not installed")


if __name__ == "__main__":
    main()
