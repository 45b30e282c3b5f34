"""How a setting is chosen without its targets: gains and losses on other domains, and in made weather.

    python -m benchmarks.gain.weather --shards shards results/gain/by-name/pretrained-PPAR-seed*
    python -m benchmarks.gain.weather --shards shards --compare results/gain/by-name/scratch-*

Finished runs predict 80 images of two labelled domains that no run of the bench trains on or is judged on,
as they are and in four made weathers, and the held-out images of their sources. Runs with
``refit.prototypes`` do so once for each ``refit.share``; 0 is a prediction without prototypes of the image.
With ``--compare`` runs are taken as they are, and those whose names differ in their seed alone share a
column. The weathers are rough: they show what happens where much of an image is misread, not what a night is
worth.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.arguments import described
from benchmarks.bootstrap import mean_iou
from benchmarks.streets import prepare_streets
from ppar_dist.config.schema import Config
from ppar_dist.data.reading import EvalSample, eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import holdout_range
from ppar_dist.evaluation.counting import confusion
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.survey import evenly
from ppar_dist.models.image_prototypes import FARTHEST
from ppar_dist.models.segmentor import Segmentor

DOMAINS = ("idd_lite_train", "labelmefacade_train")
IMAGES = 80  # of each domain

Weather = Callable[[Tensor, torch.Generator], Tensor]  # (3, H, W) in 0..1 → the same


def night(image: Tensor, generator: torch.Generator) -> Tensor:
    """Dark, warm and noisy."""
    lamp = torch.tensor([1.1, 0.95, 0.8]).view(3, 1, 1)
    return 0.45 * image.square() * lamp + 0.04 * torch.randn(image.shape, generator=generator)


def rain(image: Tensor, generator: torch.Generator) -> Tensor:
    """Blurred, pale, with streaks."""
    blurred = F.avg_pool2d(image[None], 5, 1, 2, count_include_pad=False)[0]
    drops = (torch.rand(1, *image.shape[1:], generator=generator) > 0.985).float()
    streaks = F.max_pool2d(drops[None], (9, 1), 1, (4, 0))[0]
    pale = 0.6 * blurred + 0.2 * blurred.mean()
    return pale * (1 - 0.35 * streaks) + 0.35 * streaks


def fog(image: Tensor, generator: torch.Generator) -> Tensor:
    """Light grey in front of what is far, which is what is high up."""
    seen = torch.linspace(0.25, 0.8, image.shape[1]).view(1, -1, 1)
    return image * seen + 0.8 * (1 - seen)


def snow(image: Tensor, generator: torch.Generator) -> Tensor:
    """White on what is low and not dark."""
    depth = 0.55 * torch.linspace(0, 1, image.shape[1]).view(1, -1, 1) * (image.mean(0, keepdim=True) > 0.2)
    return image * (1 - depth) + 0.95 * depth


WEATHERS: Mapping[str, Weather] = {"night": night, "rain": rain, "fog": fog, "snow": snow}


def changed(samples: Iterator[EvalSample], weather: Weather | None) -> Iterator[EvalSample]:
    """The samples in a weather; the same ones in each call."""
    for number, sample in enumerate(samples):
        if weather is not None:
            generator = torch.Generator().manual_seed(number)
            image = (255 * weather(sample.image.float() / 255, generator)).clamp(0, 255)
            sample = sample._replace(image=image.to(torch.uint8))
        yield sample


def _some(index: DomainIndex, size: int) -> Iterator[EvalSample]:
    for at in evenly(len(index), IMAGES):
        yield from eval_samples(index, at, at + 1, size)


def _score(segmentor: Segmentor, samples: Iterator[EvalSample]) -> float:
    return 100 * float(mean_iou(confusion(segmentor, samples, segmentor.num_classes)[0].counts.numpy()))


def measure(segmentor: Segmentor, config: Config, shards: Path) -> dict[str, float]:
    """MIoU in per cent by domain and weather, and the mean over the sources' held-out parts."""
    found = {}
    for domain in DOMAINS:
        index = DomainIndex.open(shards / domain)
        for name, weather in {"as it is": None, **WEATHERS}.items():
            found[f"{domain}, {name}"] = _score(segmentor, changed(_some(index, config.data.size), weather))
    held_out = []
    for source in config.data.sources:
        index = DomainIndex.open(shards / source.name)
        part = holdout_range(index, config.data.holdout)
        held_out.append(_score(segmentor, eval_samples(index, part.start, part.stop, config.data.size)))
    return {**found, "held-out sources": statistics.mean(held_out)}


def _by_share(
    run: Path, shares: list[float], shards: Path, columns: dict[str, list[dict[str, float]]]
) -> None:
    segmentor, config = load_segmentor(run)[:2]
    if segmentor.image_prototypes is None:
        raise SystemExit(f"{run} was trained without refit.prototypes; give runs with it, or --compare")
    known = segmentor.image_prototypes.shares > 0
    for share in shares:
        segmentor.image_prototypes.shares.copy_(share * FARTHEST * known)
        columns[f"{share:g}"].append(measure(segmentor, config, shards))


def main() -> None:
    """Print a row for each domain and weather, a column for each share or name of runs."""
    parser = described(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("--share", type=float, nargs="+", default=[0.0, 0.15, 0.5, 1.5])
    parser.add_argument("--compare", action="store_true", help="a column for each name of runs, as they are")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare_streets(options.shards)
    columns: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in options.runs:
        if options.compare:
            name = re.sub(r"-seed\d+$", "", run.name)
            columns[name].append(measure(*load_segmentor(run)[:2], options.shards))
        else:
            _by_share(run, options.share, options.shards, columns)
    print(f"| domain | {' | '.join(columns)} |")
    print("| --- |" + " --- |" * len(columns))
    for name in next(iter(columns.values()))[0]:
        values = [statistics.mean(each[name] for each in runs) for runs in columns.values()]
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |")


if __name__ == "__main__":
    main()
