"""Images per second and core of ``prepare`` and ``index``, by one process and by several, paired.

    PPAR_TEST_DATA=D/.. python -m benchmarks.speed.prepare_rate [--rounds 3] [--processes 1 2]

CamVid as it comes, in one domain, into fresh folders; each round runs every number of processes once. The
figures are images per second of wall time, and per second of CPU time (user and system, of all processes),
both of the whole command, start of Python included; medians over rounds, and the range of the second.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.arguments import described
from benchmarks.streets import real_data


def seconds(*arguments: str) -> tuple[float, float]:
    """Wall and CPU time of a command and its children."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "ppar_dist", *arguments], check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row for each command and number of processes."""
    parser = described(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2))
    options = parser.parse_args()
    root = real_data() / "data" / "camvid"
    images = sum(1 for _ in (root / "images").iterdir())
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for number in range(options.rounds):
        for count in options.processes[:: 1 if number % 2 else -1]:
            place = Path(tempfile.mkdtemp())
            try:
                usual = ["--classes", "roads6", "--processes", str(count)]
                how = ["--root", str(root), "--out", str(place), "--split-by", "none", *usual]
                taken.setdefault(("prepare", count), []).append(seconds("prepare", "camvid", *how))
                again = seconds("index", str(place / "camvid"), *usual)
                taken.setdefault(("index", count), []).append(again)
            finally:
                shutil.rmtree(place)
    for (command, count), each in sorted(taken.items()):
        wall, cpu = ([images / times[kind] for times in each] for kind in (0, 1))
        print(
            f"{command:8s} {count} processes: {statistics.median(wall):6.1f} images/s, "
            f"{statistics.median(cpu):6.1f} per CPU second   [{min(cpu):.1f}, {max(cpu):.1f}]"
        )


if __name__ == "__main__":
    main()
