"""What a rank pays for a large index: seconds and memory of opening a domain and finding samples in it.

    python -m benchmarks.speed.large_index [--samples 1000 10000000 100000000] [--per-shard 256] [--rare]
    python -m benchmarks.speed.large_index --merge 10000000

The files of an index are made, not downloaded: N records, counts of 6 classes, keys, and a domain.json of
N/256 shards (``--per-shard``), which are sparse files. Each row is a fresh process, as a rank is: it opens
the domain (``open``, with a look at every shard), then locates 1000 positions and reads records and names of
their samples. RSS includes the pages of mapped files; "own" is anonymous memory alone. What a rank had before
(imports) is subtracted. ``--rare`` also sets up rare-class sampling. ``--merge`` makes the rows of N samples
as ``index --part`` leaves them, 256 each, and measures the merge.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.arguments import described
from ppar_dist.data.shards.index import RECORD, DomainIndex

PER_SHARD = 256
SAMPLE_BYTES = 1 << 18
CLASSES = ("road", "sidewalk", "building", "vegetation", "sky", "car")
_PIECE = 1 << 20


def make(folder: Path, samples: int, per_shard: int) -> None:
    """The index of a domain whose shards are sparse."""
    from ppar_dist.data.shards.arrays import ArrayWriter

    folder.mkdir(parents=True)
    arrays = ArrayWriter(folder, samples, len(CLASSES), 13)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 1 << 16, (_PIECE, len(CLASSES))).astype(np.uint32)
    counts[:, -1] *= rng.random(_PIECE) < 0.1  # a rarer class
    for start in range(0, samples, _PIECE):
        numbers = np.arange(start, min(start + _PIECE, samples))
        arrays.add(records(numbers, per_shard), counts[: len(numbers)], np.char.mod(b"k%012d", numbers))
    arrays.close()
    shards = []
    for number in range(-(-samples // per_shard)):
        name = f"shard-{number:06d}.tar"
        with (folder / name).open("wb") as stream:
            stream.truncate(per_shard * SAMPLE_BYTES)
        held = min(per_shard, samples - number * per_shard)
        size = per_shard * SAMPLE_BYTES
        shards.append({"name": name, "samples": held, "bytes": size, "sha256": f"{number:064x}"})
    meta = {"version": 2, "name": "made", "class_set": "roads6", "classes": list(CLASSES)}
    meta |= {"num_samples": samples, "turned": 0, "shards": shards}
    (folder / "domain.json").write_text(json.dumps(meta, indent=2))


def records(numbers: np.ndarray, per_shard: int = PER_SHARD) -> np.ndarray:
    """Records of samples."""
    made = np.zeros(len(numbers), RECORD)
    made["shard"] = numbers // per_shard
    made["image_offset"] = 512 + numbers % per_shard * 200_000
    made["image_size"], made["label_size"] = 150_000, 20_000
    made["label_offset"] = made["image_offset"] + 160_000
    made["height"], made["width"] = 360, 480
    return made


def memory() -> tuple[float, float]:
    """Resident MB of this process, and its anonymous part."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]


def rank(folder: Path, rare: bool) -> None:
    """What a rank does, in a process of its own."""
    from ppar_dist.config.data_section import RareClassConfig
    from ppar_dist.data.order import DomainShare, Order
    from ppar_dist.data.rare_classes import RareClasses

    before, times = memory(), [time.perf_counter()]
    index = DomainIndex.open(folder, 0.01)
    times.append(time.perf_counter())
    found = [RareClasses(index.name, index.counts, RareClassConfig(enabled=True))] if rare else None
    times.append(time.perf_counter())
    order = Order([DomainShare(index.name, len(index), 1.0)], 0, 64, 16, found)
    for position in range(1000):
        sample = order.locate(position * 7919).sample
        index.names(sample)
        assert int(index.records[sample]["image_size"]) == 150_000
    times.append(time.perf_counter())
    now = memory()
    opened, drawn, located = np.diff(times).tolist()
    row = {"open": opened, "rare": drawn, "locate_1000": located}
    print(json.dumps(row | {"rss": now[0] - before[0], "own": now[1] - before[1]}))


def merge(folder: Path, samples: int) -> None:
    """Make rows, and merge them in a process of its own."""
    from ppar_dist.data.shards.build_index import KEPT
    from ppar_dist.data.shards.compressed import ShardFile
    from ppar_dist.data.shards.grouping import USUAL
    from ppar_dist.data.shards.rows import SEGMENT, Rows
    from ppar_dist.data.shards.scan import Scan

    (folder / "made" / KEPT).mkdir(parents=True)
    counts = np.ones((PER_SHARD, len(CLASSES)), np.uint32)
    for number in range(samples // PER_SHARD):
        path = folder / "made" / f"shard-{number:06d}.tar"
        path.write_bytes(b"")
        task = Scan(ShardFile(path, None), folder / "made" / KEPT / f"{path.name}.rows", "made", 6, USUAL)
        numbers = np.arange(number * PER_SHARD, (number + 1) * PER_SHARD)
        if number % 1000 == 999:
            numbers[7] = 7  # a key that the first shard has
        header = {"identity": task.identity, "name": path.name, "bytes": 0, "sha256": "0" * 64}
        header |= {"mtime": path.stat().st_mtime_ns, "faults": [], "ignored": {}, "unpacked": []}
        keys = np.char.mod(b"k%012d", numbers)
        turned = np.zeros(PER_SHARD, np.uint8)
        Rows(header, records(numbers % PER_SHARD), counts, keys, turned, np.empty(0, SEGMENT)).save(task.rows)
    run = (
        "import resource, sys, time; from ppar_dist.data.shards.build_index import index_folder; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; began = time.perf_counter(); "
        "index, found = index_folder(sys.argv[1], 'roads6', merge=True, max_bad_ratio=0.1); "
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "print(f'{len(index)} samples, {found.bad.total()} repeated keys', end=', '); "
        "print(f'{time.perf_counter() - began:.1f} s, '"
        "f'peak RSS {peak / 1024:.0f} MB ({before / 1024:.0f} at the start)')"
    )
    subprocess.run([sys.executable, "-c", run, str(folder / "made")], check=True)


def main() -> None:
    """Print a row for each size."""
    parser = described(__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=(1000, 10_000_000, 100_000_000))
    parser.add_argument("--per-shard", type=int, default=PER_SHARD, help="samples of a shard")
    parser.add_argument("--folder", type=Path, help="where the files are made, and deleted")
    parser.add_argument("--rare", action="store_true")
    parser.add_argument("--merge", type=int, metavar="SAMPLES")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank(options.rank, options.rare)
        return
    place = Path(tempfile.mkdtemp(prefix="large_index-", dir=options.folder))
    try:
        if options.merge:
            merge(place, options.merge)
            return
        print("samples       open s  rare s  1000 positions s  RSS MB  own MB")
        for samples in options.samples:
            make(place / str(samples), samples, options.per_shard)
            command = [
                sys.executable,
                "-m",
                "benchmarks.speed.large_index",
                "--rank",
                str(place / str(samples)),
            ]
            command += ["--rare"] * options.rare
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = json.loads(out)
            print(
                f"{samples:<12d} {row['open']:7.2f} {row['rare']:7.2f} {row['locate_1000']:17.3f} "
                f"{row['rss']:7.0f} {row['own']:7.0f}",
                flush=True,
            )
            shutil.rmtree(place / str(samples))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
