"""Whether this code computes what another version of it does, bit for bit.

``python -m benchmarks.same_result FOLDER``; FOLDER is a checkout of the other version (``git worktree add``).
Both train ``configs/demo.yaml`` on the same rendered streets with one seed, through all stages, on 1 rank and
on 2, one thread each. Compared are all recorded losses and figures, except times, and every tensor of
the last checkpoint. Ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from ppar_dist.checkpoint import METHOD, read_model, read_moments
from ppar_dist.class_sets import class_set

HERE = Path(__file__).parents[1]
STEPS = 20
_TIMES = ("seconds", "data_wait", "images_per_second", "mfu", "device_memory_peak")  # of the machine


def run(code: Path, arguments: Sequence[str]) -> None:
    """``ppar-dist ARGUMENTS`` with the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ppar_dist", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{code}: {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")


def train(code: Path, data: Path, out: Path, ranks: int) -> None:
    """A run of ``STEPS`` steps through all stages."""
    options = [
        *(f"run.dir={out}", f"data.root={data}", f"text.file={data / 'text.npz'}"),
        *(f"train.steps={STEPS}", "train.log_every=1", "train.eval_every=10"),
        *("checkpoint.every=10", "monitoring.enabled=false", "targets={}"),
    ]
    run(code, ["train", str(HERE / "configs" / "demo.yaml"), *options, "--nproc", str(ranks)])


def figures(folder: Path) -> list[dict[str, Any]]:
    """What a run recorded of its steps and evaluations, without times."""
    return [
        {key: value for key, value in json.loads(line).items() if key not in _TIMES}
        for name in ("train", "eval", "samples")
        for line in (folder / "metrics" / f"{name}.jsonl").read_text().splitlines()
    ]


def tensors(folder: Path) -> dict[str, str]:
    """A hash of every tensor of the last checkpoint."""
    last = max((folder / "checkpoints").glob("step-*"))
    parts = {"model": read_model(last), "moments": read_moments(last), "method": load_file(last / METHOD)}
    return {
        f"{part}/{name}": hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for part, found in parts.items()
        for name, value in found.items()
    }


def main() -> None:
    """Compare, and print what was compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of the other version")
    other, failed = parser.parse_args().other.resolve(), False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "shards"
        run(HERE, ["synth", "--out", str(data), "--samples", "24", "--size", "120", "160"])
        write_text_file(data / "text.npz")
        for ranks in (1, 2):
            for code, run_folder in ((HERE, "here"), (other, "other")):
                train(code, data, folder / f"{run_folder}-{ranks}", ranks)
            here, there = folder / f"here-{ranks}", folder / f"other-{ranks}"
            same = figures(here) == figures(there), tensors(here) == tensors(there)
            failed |= not all(same)
            print(
                f"{ranks} ranks, {STEPS} steps: {len(figures(here))} records "
                f"{'equal' if same[0] else 'DIFFER'}, {len(tensors(here))} tensors "
                f"{'equal' if same[1] else 'DIFFER'}"
            )
    sys.exit(1 if failed else 0)


def write_text_file(path: Path) -> None:
    """Random text prototypes, 512 wide."""
    names = [prompt for prompts in class_set("roads6").prompts for prompt in prompts]
    rows = np.random.default_rng(0).standard_normal((len(names), 512)).astype(np.float32)
    np.savez(path, names=np.array(names), embeddings=rows / np.linalg.norm(rows, axis=1, keepdims=True))


if __name__ == "__main__":
    main()
