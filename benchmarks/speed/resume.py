"""Time from a resume to its first batch, by the position it resumes at.

    python -m benchmarks.speed.resume shards/camvid_0016E5 --rounds 5

Each contestant begins with nothing open and ends with one batch of the samples from a position on, whole
images at their stored size, in this process:

* ``loader``          ours: the index is opened and the position computed, nothing is skipped;
* ``stock, raw``      a stock WebDataset pipeline that iterates to the position and discards samples as they
                      are read from the tar, before decoding: the best that iterating can do;
* ``stock, decoded``  the same, discarding at the end of the pipeline, as one skips batches of a loader.

A round runs every contestant of a position once, in turn. Seconds are medians over rounds, ratios medians of
the rounds' ratios. Bytes are those this process asked the system for (``rchar`` of /proc/self/io), index and
tar headers included, whether they came from disk or from the page cache; pages of the memory-mapped index are
not among them. A contestant that would take longer than ``--patience`` at a position, judged by its time at
the one before, is left out there, and the table says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import webdataset

from benchmarks.speed.loader import BATCH, PLAIN, configuration, to_tensors
from ppar_dist.data.loader import train_loader
from ppar_dist.data.shards.index import DomainIndex

POSITIONS = (0, 1_000, 10_000, 100_000)


class FirstBatch(NamedTuple):
    """One resume: its cost, and its first batch."""

    seconds: float
    read: int  # bytes
    batch: Any


class Row(NamedTuple):
    """A contestant at a position; without rounds where it was left out."""

    position: int
    name: str
    rounds: tuple[FirstBatch, ...]
    ratio: float  # median over rounds of its seconds by the loader's


def main() -> None:
    """Run the rounds and print the table."""
    args = parse_arguments()
    torch.set_num_threads(1)
    print(table(compare(args.domain, args.positions, args.rounds, args.patience), args.patience))


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("domain", type=Path, help="a domain folder; its images have one size")
    parser.add_argument(
        "--positions", type=whole_batches, nargs="+", default=POSITIONS, help="in samples, rising"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=60.0, help="seconds a contestant may take")
    return parser.parse_args()


def whole_batches(text: str) -> int:
    """A position on the command line: a whole number of batches."""
    value = int(text)
    if value < 0 or value % BATCH:
        raise argparse.ArgumentTypeError(f"a position is a multiple of the batch size {BATCH}, got {value}")
    return value


def compare(domain: Path, positions: Sequence[int], rounds: int, patience: float) -> list[Row]:
    """All contestants at all positions, within ``--patience``."""
    for first_batch in CONTESTANTS.values():
        resume(first_batch, domain, 0)  # imports and the page cache
    rows: list[Row] = []
    slow: set[str] = set()
    for number, position in enumerate(positions):
        running = [name for name in CONTESTANTS if name not in slow]
        found: dict[str, list[FirstBatch]] = {name: [] for name in running}
        for turn in range(rounds):
            first = turn % len(running)
            for name in running[first:] + running[:first]:
                found[name].append(resume(CONTESTANTS[name], domain, position))
        rows += [row(position, name, found.get(name, []), found["loader"]) for name in CONTESTANTS]
        following = positions[number + 1] if number + 1 < len(positions) else position
        for name in running[1:]:  # the loader always runs: the others are compared with it
            seconds = statistics.median(each.seconds for each in found[name])
            if seconds * following / max(position, BATCH) > patience:
                slow.add(name)
    return rows


def row(position: int, name: str, rounds: list[FirstBatch], loader: list[FirstBatch]) -> Row:
    """One line of the table."""
    ratios = [one.seconds / ours.seconds for one, ours in zip(rounds, loader, strict=False)]
    return Row(position, name, tuple(rounds), statistics.median(ratios) if ratios else float("nan"))


def table(rows: Sequence[Row], patience: float) -> str:
    """Markdown."""
    lines = ["| position | pipeline | first batch, s | range, s | read, MB | time / loader's |"]
    lines += ["|---:|---|---:|---|---:|---:|"]
    for position, name, rounds, ratio in rows:
        if not rounds:
            lines.append(f"| {position} | {name} | – | left out: more than {patience:g} s | – | – |")
            continue
        seconds = [each.seconds for each in rounds]
        read = statistics.median(each.read for each in rounds) / 1e6
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        middle = statistics.median(seconds)
        lines.append(f"| {position} | {name} | {middle:.3f} | {spread} | {read:.2f} | {ratio:.1f} |")
    return "\n".join(lines)


def resume(first_batch: Callable[[Path, int], Any], domain: Path, position: int) -> FirstBatch:
    """Time one contestant and count the bytes it reads."""
    before, itself = bytes_read()
    start = time.perf_counter()
    batch = first_batch(domain, position)
    seconds = time.perf_counter() - start
    return FirstBatch(seconds, bytes_read()[0] - before - itself, batch)


def bytes_read() -> tuple[int, int]:
    """Bytes this process has read so far, and those of asking, which count from now on (Linux)."""
    text = Path("/proc/self/io").read_bytes()
    return int(text.split()[1]), len(text)


def loader(domain: Path, position: int) -> Any:
    """Ours: a batch from ``position`` on."""
    index = DomainIndex.open(domain)
    height, width = int(index.records[0]["height"]), int(index.records[0]["width"])
    cfg = configuration(index, 0, PLAIN, min(height, width), (height, width))
    return next(train_loader(cfg, [index], 0, 1, position, position + BATCH))


def stock_raw(domain: Path, position: int) -> Any:
    """Stock: samples are discarded before they are decoded."""
    samples = shuffled(domain).compose(skip(position)).decode("pil").to_tuple("jpg", "png")
    return next(iter(samples.map(to_tensors).batched(BATCH)))


def stock_decoded(domain: Path, position: int) -> Any:
    """Stock: decoded samples are discarded."""
    samples = shuffled(domain).decode("pil").to_tuple("jpg", "png").map(to_tensors)
    return next(iter(samples.compose(skip(position)).batched(BATCH)))


def shuffled(domain: Path) -> webdataset.WebDataset:
    """WebDataset as its documentation shows it: shards without end, a shuffle buffer."""
    urls = [str(path) for path in sorted(domain.glob("*.tar"))]
    return webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(100)


def skip(number: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A pipeline stage that discards the first ``number`` samples."""
    return lambda samples: islice(samples, number, None)


CONTESTANTS: dict[str, Callable[[Path, int], Any]] = {
    "loader": loader,
    "stock, raw": stock_raw,
    "stock, decoded": stock_decoded,
}


if __name__ == "__main__":
    main()
