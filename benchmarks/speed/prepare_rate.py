"""Images per second and core of ``prepare`` and ``index``, by one process and by several, paired.

    PPAR_TEST_DATA=D/.. python -m benchmarks.speed.prepare_rate [--rounds 3] [--processes 1 2] [--copies 8]

CamVid as it comes, in one domain, into fresh folders; each round runs every number of processes once. With
``--copies N`` the data set has each image N times, under other names, as links to the same files. The
figures are images per second of wall time, and per second of CPU time (user and system, of all processes),
both of the whole command, start of Python included; medians over rounds, and the range of the second. The
shards and indexes of all runs must be the same, byte for byte. The last line is the load of the machine.
"""

from __future__ import annotations

import hashlib
import os
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


def linked(root: Path, copies: int, folder: Path) -> Path:
    """A data set with each image and label of ``root`` ``copies`` times, as links of other names."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
        for source in sorted((root / kind).iterdir()):
            for number in range(copies):
                (folder / kind / f"{source.stem}_{number:03d}{source.suffix}").symlink_to(source.resolve())
    return folder


def content(domain: Path) -> str:
    """Of all files of a domain."""
    digest = hashlib.sha256()
    for path in sorted(domain.iterdir()):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def measure(root: Path, count: int, taken: dict[tuple[str, int], list[tuple[float, float]]]) -> str:
    """Run both commands once, and note what they take; the digest of what they made."""
    place = Path(tempfile.mkdtemp())
    try:
        usual = ["--classes", "roads6", "--processes", str(count)]
        how = ["--root", str(root), "--out", str(place), "--split-by", "none", *usual]
        taken.setdefault(("prepare", count), []).append(seconds("prepare", "camvid", *how))
        domain = place / "camvid"
        prepared = content(domain)
        taken.setdefault(("index", count), []).append(seconds("index", str(domain), *usual))
        assert content(domain) == prepared, "index gives another index than prepare"
        return prepared
    finally:
        shutil.rmtree(place)


def main() -> None:
    """Print a row for each command and number of processes."""
    parser = described(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--copies", type=int, default=1)
    options = parser.parse_args()
    root = real_data() / "data" / "camvid"
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
    made = set()
    with tempfile.TemporaryDirectory() as folder:
        if options.copies > 1:
            root = linked(root, options.copies, Path(folder))
        images = sum(1 for _ in (root / "images").iterdir())
        for number in range(options.rounds):
            for count in options.processes[:: 1 if number % 2 else -1]:
                made.add(measure(root, count, taken))
    assert len(made) == 1, "the bytes depend on the number of processes"
    print(f"{images} images")
    for (command, count), each in sorted(taken.items()):
        wall, cpu = ([images / times[kind] for times in each] for kind in (0, 1))
        print(
            f"{command:8s} {count} processes: {statistics.median(wall):6.1f} images/s, "
            f"{statistics.median(cpu):6.1f} per CPU second   [{min(cpu):.1f}, {max(cpu):.1f}]"
        )
    print(f"load: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
