"""Colours drawn for real crops: those of the device against Pillow's, step by step, with the same draws.

    python -m benchmarks.speed.colours shards/camvid_0016E5 [--crop 180 240] [--samples 200]

Prints the mean absolute difference per channel, of 255, over all crops and over those whose hue stays, what
the augmentation itself changes on the same scale, and the CPU time of both on one thread.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as F

from benchmarks.arguments import described
from benchmarks.speed.loader import configuration
from ppar_dist.config.data_section import AugmentConfig
from ppar_dist.data.colours import recoloured
from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.transforms import Draws, TrainTransform

SEED = 0


def pillow_colours(image: Image.Image, cfg: AugmentConfig, draws: Draws) -> Image.Image:
    """The reference: torchvision on a Pillow image, rounded to 8 bits and clamped after every step."""

    def factor(strength: float, draw: float) -> float:
        return max(0.0, 1.0 + strength * (2.0 * draw - 1.0))

    steps: list[tuple[float, Callable[[Image.Image], Image.Image]]] = [
        (cfg.brightness, lambda x: F.adjust_brightness(x, factor(cfg.brightness, draws.brightness))),
        (cfg.contrast, lambda x: F.adjust_contrast(x, factor(cfg.contrast, draws.contrast))),
        (cfg.saturation, lambda x: F.adjust_saturation(x, factor(cfg.saturation, draws.saturation))),
        (cfg.hue, lambda x: F.adjust_hue(x, cfg.hue * (2.0 * draws.hue - 1.0))),
    ]
    if draws.photometric < cfg.photometric:
        active = [step for strength, step in steps if strength]
        turn = int(draws.order * len(active))
        for step in active[turn:] + active[:turn]:
            image = step(image)
        if cfg.gamma is not None:
            low, high = map(math.log, cfg.gamma)
            image = F.adjust_gamma(image, math.exp(low + (high - low) * draws.gamma))
    if draws.grayscale < cfg.grayscale:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if draws.blur < cfg.blur:
        image = image.filter(ImageFilter.GaussianBlur(0.3 + 1.2 * draws.sigma))
    return image


def compare(index: DomainIndex, crop: tuple[int, int], samples: int, changes: dict[str, object]) -> str:
    """One line of differences and times under an augmentation."""
    cfg = configuration(index, 0, changes, min(crop), crop)
    transform = TrainTransform(cfg.augment, cfg.data, SEED)
    found, drawn = torch.zeros(3), torch.zeros(3)
    times: tuple[list[float], list[float]] = [], []
    for position in range(samples):
        sample = read_sample(index, position % len(index), transform.min_side)
        image, _, colours = transform(sample.image, sample.label, position)
        image = image.contiguous()
        began = time.process_time()
        ours = recoloured(image[None], [colours])[0]
        between = time.process_time()
        theirs = F.pil_to_tensor(pillow_colours(F.to_pil_image(image), cfg.augment, Draws.at(SEED, position)))
        times[0].append(between - began)
        times[1].append(time.process_time() - between)
        found += (ours - theirs).abs().mean((1, 2)) / samples
        drawn += (theirs.float() - image).abs().mean((1, 2)) / samples
    pair = [f"{value:.2f}" for value in found.tolist()], [f"{value:.1f}" for value in drawn.tolist()]
    cost = " and ".join(f"{1e3 * statistics.mean(side):.2f}" for side in times)
    return f"difference {' '.join(pair[0])} of a change of {' '.join(pair[1])}; CPU {cost} ms (ours, Pillow)"


def main() -> None:
    """Compare under the default augmentation, and with parts of it off."""
    parser = described(__doc__)
    parser.add_argument("domain", type=Path)
    parser.add_argument("--crop", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    index = DomainIndex.open(options.domain)
    cases: dict[str, dict[str, object]] = {
        "default": {},
        "hue off": {"hue": 0},
        "blur alone": {"photometric": 0, "grayscale": 0, "blur": 1},
        "gamma alone": {
            **{"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
            **{"grayscale": 0, "blur": 0, "photometric": 1},
        },
        "grey alone": {"photometric": 0, "grayscale": 1, "blur": 0},
    }
    for name, changes in cases.items():
        print(f"{name:12s} {compare(index, tuple(options.crop), options.samples, changes)}")


if __name__ == "__main__":
    main()
