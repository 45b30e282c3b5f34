"""Gains of the method on real streets: plain fine-tuning, PPAR, and PPAR without each part.

    PPAR_TEST_DATA=D/.. python -m benchmarks.gain --track pretrained

Same model, data, budget and augmentation; judged on targets that no run trained on, with the last checkpoint.
The variants are in benchmarks/gain/variants.py. Finished runs are found again, interrupted ones resume. The
tables are printed and put into the page of results, between the markers of the track.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence

from benchmarks.gain.equal_time import Runs, equal_steps
from benchmarks.gain.tables import NOTE, differences_table, scores_table
from benchmarks.gain.variants import EQUAL_TIME, PLAIN, VARIANTS, write_random_text
from benchmarks.judge import HELD_OUT
from benchmarks.options import page, parser
from benchmarks.pages import insert
from benchmarks.runs import Run, plan_run, provenance, run_variants, stop_on_signals
from benchmarks.streets import TARGETS, TRACK_KEYS, TRACKS, prepare_streets, weights_folder


def needed(wanted: Iterable[str], against: str) -> list[str]:
    """The variants to run for the wanted ones, in the order of the tables.

    ``EQUAL_TIME`` needs the variant that it shortens, all need plain and the one they are compared with.
    """
    chosen = {PLAIN, against, *wanted}
    chosen |= {base for name, base in EQUAL_TIME.items() if name in chosen}
    return [name for name in (*VARIANTS, *EQUAL_TIME) if name in chosen]


class Bench:
    """The runs of one track."""

    def __init__(self, track: str, options: argparse.Namespace) -> None:
        self.track, self.options, self.problems = track, options, list[str]()
        self.targets = {name: options.shards / domain for name, domain in TARGETS.items()}
        names = needed(options.variant or [*VARIANTS, *EQUAL_TIME], options.against or PLAIN)
        self.found: dict[str, Runs] = {}
        self._run({name: VARIANTS[name] for name in names if name in VARIANTS}, options.steps)
        for name in (name for name in names if name in EQUAL_TIME):
            self._run_equal_time(name, EQUAL_TIME[name])

    def report(self) -> str:
        """The tables; of runs that failed nothing."""
        columns = list(TARGETS)
        parts = [scores_table(self.found, columns, PLAIN)]
        for against in dict.fromkeys([PLAIN, self.options.against or PLAIN]):
            if len(self.found) > 1:
                parts.append(differences_table(self.found, columns, against))
        runs = [run for runs in self.found.values() for run in runs.values()]
        parts.append(f"{NOTE} {provenance(runs, [*columns, HELD_OUT], self.options.parallel)}")
        return "\n\n".join(parts)

    def _run(self, variants: dict[str, tuple[str, ...]], steps: int | None) -> None:
        common = [f"data.root={self.options.shards}", *TRACK_KEYS[self.track]]
        common += [f"train.steps={steps}"] if steps else []
        planned: list[tuple[str, Run]] = []
        for seed in range(self.options.seeds):  # after the first seed there is a first table to look at
            for name, extra in variants.items():
                changed = [override.format(shards=self.options.shards) for override in extra]
                run = plan_run(
                    f"{self.track} {name}", seed, TRACKS[self.track], self.options.out, [*common, *changed]
                )
                planned.append((name, run))
        found, problems = run_variants(planned, self.targets, self.options.parallel)
        self.found |= {name: found[name] for name in variants if name in found}
        self.problems += problems

    def _run_equal_time(self, name: str, base: str) -> None:
        if base not in self.found or PLAIN not in self.found:
            return
        steps = equal_steps(self.found[base], self.found[PLAIN], self.options.out)
        if steps is None:
            self.problems.append(
                f"{name}: not run: no seed trained both {base} and {PLAIN} without interruption, so that no "
                "step cost was measured; run one more seed"
            )
        else:
            self._run({name: VARIANTS[base]}, steps)


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, print the tables and put them into the page; 1 where a run failed."""
    described = parser("gain", __doc__, 5, [*VARIANTS, *EQUAL_TIME])
    described.add_argument("--track", choices=[*TRACKS, "both"], default="both")
    options = described.parse_args(arguments)
    tracks = list(TRACKS) if options.track == "both" else [options.track]
    docs = page(options, "results.md", [f"gain:{track}" for track in tracks])
    stop_on_signals()
    prepare_streets(options.shards, options.limit)
    write_random_text(weights_folder() / "clip-vit-b-16-openai-text-multi.npz", options.shards)
    problems = []
    for track in tracks:
        bench = Bench(track, options)
        if PLAIN in bench.found and (options.against or PLAIN) in bench.found:
            report = bench.report()
            print(f"\n{track}\n\n{report}\n", flush=True)
            if docs is not None and not bench.problems:
                command = shlex.join(["python", "-m", "benchmarks.gain", *arguments])
                insert(docs, f"gain:{track}", command, report)
        problems += bench.problems
    print("\n".join(problems), end="\n" * bool(problems), file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
