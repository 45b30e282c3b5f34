"""Gains of the method on real streets: plain fine-tuning against PPAR and PPAR without each part.

    PPAR_TEST_DATA=D/.. python -m benchmarks.gain.ablation --out results/ablation

Same model, data, budget and augmentation; three seeds; judged on targets that no run trained on, with
the last checkpoint. `PPAR, equal time` takes fewer steps, by the ratio that
benchmarks/speed/step.py measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.runs import Job, prepare_streets, run_all, table

PLAIN = "plain fine-tuning"
VARIANTS: dict[str, tuple[str, ...]] = {
    PLAIN: ("ppar.enabled=false",),
    "PPAR": (),
    "PPAR without alignment": ("ppar.alignment.enabled=false",),
    "PPAR without reweighting": ("ppar.reweighting.enabled=false",),
    "PPAR without VTP": ("ppar.vtp.enabled=false",),
}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("configs/roads.yaml"))
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("--out", type=Path, default=Path("results/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--step-ratio", type=float, default=1.05, help="PPAR step time over plain step time")
    options = parser.parse_args()
    prepare_streets(options.shards)
    variants = dict(VARIANTS)
    variants["PPAR, equal time"] = (f"train.steps={round(options.steps / options.step_ratio)}",)
    common = [
        f"data.root={options.shards}",
        f"train.steps={options.steps}",
        f"targets.dusk={options.shards / 'camvid_0001TP'}",
        f"targets.facade={options.shards / 'labelmefacade_test'}",
    ]
    jobs = [Job(name, extra, seed) for seed in range(options.seeds) for name, extra in variants.items()]
    runs = run_all(jobs, options.config, options.out, common, options.parallel)
    print(
        table(
            {key: runs[key] for key in sorted(runs, key=lambda k: list(variants).index(k[0]))}, against=PLAIN
        )
    )


if __name__ == "__main__":
    main()
