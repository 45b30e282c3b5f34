"""What the optional parts of data and augmentation cost the loader: paired rounds, each part off and on.

    python -m benchmarks.speed.loader_options shards/camvid_0016E5 shards/labelmefacade_train --rounds 7

The domains, of one class set, are the sources. Every round runs all variants once, in turn, over the same
positions in one process, and counts its CPU time: of batches as workers make them (``loader``), and with the
colours changed here (``pictures``), which the training device does otherwise. A ratio is the median of the
rounds' ratios to the rate with nothing on. The files are in the page cache: random reads cost nothing there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.arguments import described
from benchmarks.speed.loader import BATCH
from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from ppar_dist.data.loader import train_loader
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.style import StyleBank
from ppar_dist.data.style_bank import style_bank

RARE = {"rare_classes": {"enabled": True}}
STYLES = {"style_exchange": 0.5, "random_convolution": 0.5}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of `data` and of `augment`
    "off": ({}, {}),
    "rare classes": (RARE, {}),
    "cat_max_ratio 0.75": ({}, {"cat_max_ratio": 0.75}),
    "random convolution 0.5": ({}, {"random_convolution": 0.5}),
    "style exchange 0.5": ({}, {"style_exchange": 0.5}),
    "all of them": (RARE, {"cat_max_ratio": 0.75, **STYLES}),
}


def main() -> None:
    """Run the rounds and print medians and ratios."""
    parser = described(__doc__)
    parser.add_argument("domains", type=Path, nargs="+", help="domain folders, side by side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--crop", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    indexes = [DomainIndex.open(path) for path in args.domains]
    count = max(args.samples // BATCH, 1) * BATCH
    configs = {name: configuration(indexes, tuple(args.crop), *parts) for name, parts in VARIANTS.items()}
    banks = {name: measured(config, indexes) for name, config in configs.items()}
    for way, changes_colours in (("loader", False), ("pictures", True)):
        rates: dict[str, list[float]] = {name: [] for name in configs}
        for number in range(args.rounds + 1):
            names = list(configs)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds = consume(configs[name], indexes, banks[name], count, changes_colours)
                if number:  # the first round warms the page cache
                    rates[name].append(count / seconds)
        report(way, {name: np.array(each) for name, each in rates.items()})


def measured(config: Config, indexes: list[DomainIndex]) -> StyleBank | None:
    """The bank of styles; what it takes at the start is printed."""
    began = time.process_time()
    bank = style_bank(config, indexes)
    if bank is not None:
        images, seconds = sum(map(len, bank.sources)), time.process_time() - began
        print(f"bank of {images} images of {len(indexes)} sources: {seconds:.2f} s of CPU at the start")
    return bank


def configuration(
    indexes: list[DomainIndex], crop: tuple[int, int], data: dict[str, Any], augment: dict[str, Any]
) -> Config:
    """A run's configuration over the domains, with the default augmentation and what a variant adds."""
    names = [index.name for index in indexes]
    places = {"root": str(indexes[0].path.parent), "classes": indexes[0].class_set, "sources": names}
    return parse_config(
        {
            "run": {"dir": "unused"},
            "data": places | {"size": min(crop), "crop": crop, "workers": 0} | data,
            "augment": augment,
            "model": {"backbone": {"kind": "open_clip"}},
            "train": {"steps": 1, "global_batch": BATCH},
        }
    )


def consume(
    config: Config, indexes: list[DomainIndex], bank: StyleBank | None, count: int, changes_colours: bool
) -> float:
    """Seconds of CPU for so many samples, from the second batch on."""
    batches = train_loader(config, indexes, 0, 1, 0, count + BATCH, bank)
    next(batches)
    began = time.process_time()
    for batch in batches:
        if changes_colours:
            batch.pictures()
    return time.process_time() - began


def report(way: str, rates: dict[str, np.ndarray]) -> None:
    """Samples per second of each variant, and its rate relative to the one with nothing on."""
    for name, rate in rates.items():
        ratio = rate / rates["off"]
        print(
            f"{way:9s}{name:24s}{np.median(rate):7.1f} samples/s   {np.median(ratio):.2f} "
            f"[{ratio.min():.2f}, {ratio.max():.2f}]"
        )


if __name__ == "__main__":
    main()
