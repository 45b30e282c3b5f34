"""The cost of a start before any work: CPU seconds of the light commands, and of a rank's imports.

    python -m benchmarks.speed.startup [--rounds 5]

Medians of user and system time of a whole process, over rounds in which each start comes once.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.unit.tiny_run import make_run

_COMMANDS = (
    "--help",
    "health --help",
    "inspect run",
    "inspect run/checkpoints/step-00000040",
    "inspect shards/a",
    "index shards/b --classes roads6",
    "config run/config.yaml",
    "ledger run",
    "doctor run",
)
_IMPORTS = (
    "import torch",
    "import gc; gc.disable(); import torch, torch._dynamo",  # what torchvision and AdamW load in any case
    "import ppar_dist.training.rank_job",
    "import gc; gc.disable(); import ppar_dist.training.rank_job",  # as `train` does
)


def main() -> None:
    """Print the median CPU seconds of each start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    starts = {f"ppar-dist {line}": ["-m", "ppar_dist", *line.split()] for line in _COMMANDS}
    starts |= {line: ["-c", line] for line in _IMPORTS}
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "shards", Path(folder) / "run")
        seconds = [{name: _cpu_seconds(line, folder) for name, line in starts.items()} for _ in range(rounds)]
    for name in starts:
        print(f"{median(row[name] for row in seconds):6.2f} s  {name}")


def _cpu_seconds(arguments: list[str], folder: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
