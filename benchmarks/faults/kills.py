"""A run that is killed repeatedly, at changing numbers of ranks, loses nothing.

    python -m benchmarks.faults.kills --kills 40 --out results/kills [--seed 0] [--same-ranks]

A tiny model trains on rendered streets (with PPAR_TEST_DATA on real ones) and notes in the sample ledger
what it trains on. At moments that the seed draws, among them those in which a checkpoint is being
written, SIGKILL ends all of its processes, a single rank, or the launcher; then it is started again with
another number of ranks and another ZeRO stage, until it is done. A second run is never disturbed. The
table says what the ledger of the first holds, and how far the parameters of the two are apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.arguments import described
from benchmarks.faults.siege import Job, Siege, besiege
from benchmarks.streets import prepare_streets, real_data
from ppar_dist import checkpoint
from ppar_dist.class_sets import class_set
from ppar_dist.run.audit import audit

GLOBAL_BATCH = 6


def history(run: Path) -> list[tuple[int, str]]:
    """(position, sample) of all that shaped a run's result, in the order of steps and ranks.

    Read from the ledger's lines without ``ppar_dist.run``: a step counts as the last attempt did it
    that began before it.
    """
    steps: dict[int, dict[int, tuple[list[int], list[str]]]] = {}
    for folder in sorted((run / "ledger").iterdir()):
        files = [path.read_text().splitlines(keepends=True) for path in sorted(folder.iterdir())]
        ranks = [[json.loads(line) for line in lines if line.endswith("\n")] for lines in files]
        starts = [lines[0]["step"] for lines in ranks if lines]
        if not starts:
            continue
        steps = {step: record for step, record in steps.items() if step <= starts[0]}
        for rank, lines in enumerate(ranks):
            for line in lines[1:]:
                steps.setdefault(line["step"], {})[rank] = line["positions"], line["samples"]
    parts = [steps[step][rank] for step in sorted(steps) for rank in sorted(steps[step])]
    return [pair for positions, samples in parts for pair in zip(positions, samples, strict=True)]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Parameters, moments and statistics of a run's last checkpoint."""
    newest = checkpoint.find_checkpoint(run)
    if newest is None:
        raise FileNotFoundError(f"{run} holds no whole checkpoint")
    parts = {
        "model": checkpoint.read_model(newest),
        "moments": checkpoint.read_moments(newest),
        "method": load_file(newest / checkpoint.METHOD),
    }
    return {f"{part}/{key}": value for part, found in parts.items() for key, value in found.items()}


def difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest absolute difference of two runs' parameters; 0.0 only if all tensors are bit-identical."""
    if all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys()):
        return 0.0
    keys = [key for key in one if key.startswith("model/")]
    largest = max(float((one[key].double() - other[key].double()).abs().max()) for key in keys)
    return max(largest, sys.float_info.min)


def train_undisturbed(config: Path, ranks: int, stage: int) -> None:
    """Train without a kill, unless the run is complete already.

    Raises:
        RuntimeError: it failed.
    """
    job = Job(config, config.with_suffix(".txt"), ranks, [f"engine.zero_stage={stage}"])
    try:
        code = job.wait()
    finally:
        job.kill_all()
    if code:
        raise RuntimeError(f"ended with {code}:\n{job.log.read_text(errors='replace')}")


def write_config(out: Path, name: str, steps: int, every: int) -> tuple[Path, Path]:
    """A tiny configuration on streets, rendered if they are missing; returns (file, run folder)."""
    shards, run = out / "shards", out / name
    if os.environ.get("PPAR_TEST_DATA"):
        prepare_streets(shards)
        sources = ["camvid_0006R0", "camvid_Seq05VD"]
        text, width = real_data() / "weights" / "clip-vit-b-16-openai-text-single.npz", 512
    else:
        if not (shards / "synth_fog").exists():
            synth = ["synth", "--out", str(shards), "--samples", "24", "--size", "48", "64"]
            subprocess.run([sys.executable, "-m", "ppar_dist", *synth], check=True)
        sources, text, width = ["synth_day", "synth_overcast", "synth_fog"], out / "text.npz", 16
        names = np.array(class_set("roads6").classes)
        np.savez(text, names=names, embeddings=np.random.default_rng(5).normal(size=(len(names), width)))
    backbone = {"kind": "timm", "name": "test_convnext", "embed_dim": width, "dense_stride": 8}
    tree = {
        "run": {"dir": str(run)},
        "data": {"root": str(shards), "classes": "roads6", "sources": sources, "size": 48, "crop": [48, 64]}
        | {"holdout": 0.0, "workers": 0},
        "model": {"backbone": backbone, "decoder": {"width": 16}},
        "text": {"file": str(text)},
        "train": {"steps": steps, "global_batch": GLOBAL_BATCH, "log_every": 1, "ledger": True},
        "checkpoint": {"every": every},
        "faults": {"peer_s": 5.0, "stall_s": 60.0},
        "monitoring": {"enabled": False},
    }
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path, run


def row(title: str, siege: Siege, run: Path, undisturbed: Path) -> dict[str, str]:
    """A line of the table, by column."""
    found, seen = audit(run), history(run)
    positions = [position for position, _ in seen]
    whole = set(range(found.steps * GLOBAL_BATCH))
    apart = difference(tensors(run), tensors(undisturbed))
    return {
        "run": title,
        "kills": f"{siege.kills.total()} ({_counts(siege.kills)})",
        "moments": _counts(siege.moments),
        "starts": str(len(siege.ranks)),
        "steps": str(found.steps),
        "done again": str(found.repeated_steps),
        "on other samples": str(found.changed_repeats),
        "positions": str(found.positions),
        "gaps": str(len(whole - set(positions))),
        "repeats in the history": str(len(positions) - len(set(positions))),
        "out of order": str(sum(a >= b for a, b in pairwise(positions))),
        "other samples than undisturbed": str(
            sum(a != b for a, b in zip(seen, history(undisturbed), strict=True))
        ),
        "audit's problems": str(len(found.problems)),
        "max difference": "0 (bit-identical)" if apart == 0 else f"{apart:.1e}",
    }


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "-"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown, a column per run."""
    lines = [["", *(each["run"] for each in rows)], ["---"] * (1 + len(rows))]
    lines += [[name, *(each[name] for each in rows)] for name in rows[0] if name != "run"]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Kill a run repeatedly, compare it with an undisturbed one, and print the table."""
    parser = described(__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("results/kills"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=8, help="steps between checkpoints")
    parser.add_argument("--same-ranks", action="store_true", help="always 2 ranks and ZeRO stage 2")
    options = parser.parse_args()
    out, steps = options.out.resolve(), (options.kills + 2) * options.every
    out.mkdir(parents=True, exist_ok=True)
    same = (2, 2) if options.same_ranks else None
    kind = "same" if same else "other"
    quiet, undisturbed = write_config(out, f"{kind}-undisturbed", steps, options.every)
    train_undisturbed(quiet, *(same or (1, 0)))
    config, run = write_config(out, f"{kind}-killed-{options.seed}", steps, options.every)
    siege = besiege(config, run, options.every, options.kills, options.seed, same)
    title = "always 2 ranks, ZeRO 2" if same else "1, 2 or 3 ranks, ZeRO 0, 1 or 2, others at each start"
    print(table([row(title, siege, run, undisturbed)]))
    print(audit(run).describe())


if __name__ == "__main__":
    main()
