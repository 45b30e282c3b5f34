"""How fast is the loader? Paired rounds in one run, so that a noisy machine hits all sides alike.

    python benchmarks/speed/loader.py shards/camvid_0016E5 --workers 1 --rounds 7

Every round runs all contestants once, in turn, over the same number of samples of one domain:

* ``decode``      JPEG (torchvision) and PNG decoding alone, by the very calls of the loader, of
                  bytes already in memory, in as many processes;
* ``loader``      ours without augmentation: whole images at their stored size, checked, in batches;
* ``stock``       a stock WebDataset pipeline over the same shards doing the same;
* ``loader+aug``  ours with the default augmentation: all that workers do for training;
* ``pictures``    the same, and the colours, which the training device changes, changed here;
* ``stock+aug``   the stock pipeline with torchvision.transforms.v2 classes of the same strengths.

The figure of a contestant is the median over rounds; a ratio is the median of the rounds' ratios.
Goal: loader at least 0.9 of decode. ``--workers 0`` keeps everything in one process, and counts its CPU time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from ppar_dist.config.data_section import AugmentConfig
from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from ppar_dist.data.loader import train_loader
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.pictures import label_ids, open_label

PLAIN = {"scale": (1, 1), "flip": 0, "photometric": 0, "grayscale": 0, "blur": 0}
BATCH = 8


def main() -> None:
    """Run the rounds and print medians and ratios."""
    args = parse_arguments()
    torch.set_num_threads(1)
    index = DomainIndex.open(args.domain)
    count = max(args.samples // BATCH, 1) * BATCH
    contestants = build(index, args.workers, count, tuple(args.crop))
    if args.only:
        contestants = {args.only: contestants[args.only]}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(args.rounds + 1):
        names = list(contestants)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = contestants[name]()
            if number:  # the first round warms the page cache
                times[name].append(seconds)
    report(times, count, args.json)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("domain", type=Path, help="a domain folder; its images have one size")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--crop", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    parser.add_argument("--only", metavar="CONTESTANT", help="time this one alone")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def report(times: dict[str, list[float]], count: int, as_json: bool) -> None:
    """Samples per second, and ratios of speeds paired by round."""
    rates = {name: count / np.array(seconds) for name, seconds in times.items()}
    pairs = [("loader", "decode"), ("loader", "stock"), ("pictures", "stock+aug"), ("loader+aug", "decode")]
    pairs = [(one, other) for one, other in pairs if {one, other} <= rates.keys()]
    if as_json:
        figures = {f"{a}/{b}": float(np.median(rates[a] / rates[b])) for a, b in pairs}
        print(
            json.dumps({"samples_per_second": {n: float(np.median(r)) for n, r in rates.items()}, **figures})
        )
        return
    for name, rate in rates.items():
        print(f"{name:12s}{np.median(rate):8.1f} samples/s   [{rate.min():.1f}, {rate.max():.1f}]")
    for one, other in pairs:
        ratio = rates[one] / rates[other]
        print(f"{one} / {other:12s} {np.median(ratio):.2f}   [{ratio.min():.2f}, {ratio.max():.2f}]")


def build(
    index: DomainIndex, workers: int, count: int, crop: tuple[int, int]
) -> dict[str, Callable[[], float]]:
    """The contestants: each runs once and returns seconds from its first batch on, per ``count`` samples."""
    height, width = int(index.records[0]["height"]), int(index.records[0]["width"])
    plain = configuration(index, workers, PLAIN, min(height, width), (height, width))
    augmented = configuration(index, workers, {}, min(crop), crop)
    raw = [(sample.image, sample.label) for sample in map(index.read, range(min(len(index), count)))]
    total = count + BATCH * warm(workers)
    return {
        "decode": lambda: decode_alone(raw, workers, count),
        "loader": lambda: consume(ours(plain, index, total), workers),
        "stock": lambda: consume(stock(index, workers, count, to_tensors), workers),
        "loader+aug": lambda: consume(ours(augmented, index, total), workers),
        "pictures": lambda: consume((each.pictures() for each in ours(augmented, index, total)), workers),
        "stock+aug": lambda: consume(stock(index, workers, count, Augment(augmented.augment, crop)), workers),
    }


def warm(workers: int) -> int:
    """Batches before the clock starts: workers have been forked, and hold what they prefetch."""
    return 3 * workers


def consume(batches: Iterator[Any], workers: int) -> float:
    """Seconds for all batches after those that warm up, which the caller has added.

    Of CPU time where one process does everything: another program's share of the machine does not count.
    """
    for _ in range(warm(workers)):
        next(batches)
    clock = clock_of(workers)
    start = clock()
    for _ in batches:
        pass
    return clock() - start


def clock_of(workers: int) -> Callable[[], float]:
    """Wall time where processes work side by side."""
    return time.perf_counter if workers else time.process_time


def configuration(
    index: DomainIndex, workers: int, augment: dict[str, Any], size: int, crop: tuple[int, int]
) -> Config:
    """A run's configuration over one domain, nothing held out."""
    data = {"root": str(index.path.parent), "classes": index.class_set, "sources": [index.name]}
    return parse_config(
        {
            "run": {"dir": "unused"},
            "data": data | {"size": size, "crop": crop, "holdout": 0, "workers": workers},
            "augment": augment,
            "model": {"backbone": {"kind": "open_clip"}},
            "train": {"steps": 1, "global_batch": BATCH},
        }
    )


def ours(cfg: Config, index: DomainIndex, count: int) -> Iterator[Any]:
    """Our loader."""
    return iter(train_loader(cfg, [index], rank=0, world_size=1, start_position=0, stop_position=count))


def stock(index: DomainIndex, workers: int, count: int, transform: Callable[..., Any]) -> Iterator[Any]:
    """WebDataset as its documentation shows it: tars parsed, a shuffle buffer, Pillow decoding, batches."""
    urls = [str(index.path / shard) for shard in index.shards]
    dataset = (
        webdataset.WebDataset(urls, resampled=True, shardshuffle=False)
        .shuffle(100)
        .decode("pil")
        .to_tuple("jpg", "png")
        .map(transform)
        .batched(BATCH)
        .with_epoch(-(-count // BATCH // max(workers, 1)) + 3)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)
    return limited(iter(loader), count // BATCH + warm(workers))


def limited(batches: Iterator[Any], number: int) -> Iterator[Any]:
    """The first ``number`` batches."""
    for _, batch in zip(range(number), batches, strict=False):
        yield batch


def to_tensors(pair: tuple[Image.Image, Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (3, H, W) and (H, W)."""
    return v2.functional.pil_to_tensor(pair[0]), label_tensor(pair[1])


def label_tensor(image: Image.Image) -> torch.Tensor:
    """WebDataset decodes every PNG to RGB: one channel of it holds the ids."""
    return torch.from_numpy(np.array(image)[..., 0].copy())


class Augment:
    """What a user would write with the classes of torchvision.transforms.v2, on uint8 tensors."""

    def __init__(self, cfg: AugmentConfig, crop: tuple[int, int]) -> None:
        jitter = v2.ColorJitter(cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)
        self.transform: Callable[..., tuple[torch.Tensor, torch.Tensor]] = v2.Compose(
            [
                v2.ScaleJitter(crop, cfg.scale, antialias=True),
                v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
                v2.RandomHorizontalFlip(cfg.flip),
                v2.RandomApply([jitter], cfg.photometric),
                v2.RandomGrayscale(cfg.grayscale),
                v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.5))], cfg.blur),
            ]
        )

    def __call__(self, pair: tuple[Image.Image, Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (3, h, w) and (h, w)."""
        image, label = to_tensors(pair)
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask(label))


def decode_alone(raw: list[tuple[bytes, bytes]], workers: int, count: int) -> float:
    """Seconds to decode ``count`` pairs from memory, by as many processes as the loader has workers.

    Forked processes have the bytes already and time themselves, so that starting them does not count.
    """
    processes, clock = max(workers, 1), clock_of(workers)
    if processes == 1:
        return decode_part(raw, range(count), clock)
    context = multiprocessing.get_context("fork")
    ready, times = context.Barrier(processes), context.Queue()

    def work(part: int) -> None:
        ready.wait()
        times.put(decode_part(raw, range(part, count, processes), clock))

    children = [context.Process(target=work, args=(part,)) for part in range(processes)]
    for child in children:
        child.start()
    slowest: float = max(times.get() for _ in children)
    for child in children:
        child.join()
    return slowest


def decode_part(raw: list[tuple[bytes, bytes]], numbers: range, clock: Callable[[], float]) -> float:
    """Seconds to decode these numbers (modulo the samples there are)."""
    start = clock()
    for number in numbers:
        image, label = raw[number % len(raw)]
        decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8), mode=ImageReadMode.RGB)
        label_ids(open_label(label))
    return clock() - start


if __name__ == "__main__":
    main()
