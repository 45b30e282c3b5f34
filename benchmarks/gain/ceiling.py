"""What better classifiers could still gain on a target, and what only better features could.

    python -m benchmarks.gain.ceiling --shards shards results/gain/by-name/pretrained-PPAR-seed*

The classifier of a finished run is fitted again to labels of a target's first half, which no run may do, as
``refit.linear`` fits it to the sources; both are judged on the second half. The difference is what a linear
classifier that knows the target gains on the same features: no choice of source weights, prototypes or
regularisation of the last layer can be expected to gain as much.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.arguments import described
from benchmarks.bootstrap import mean_iou
from benchmarks.streets import TARGETS
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import holdout_range
from ppar_dist.evaluation.counting import confusion
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.refit import refit
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.run import paths

HALF = 0.5


def second_half(segmentor: Segmentor, index: DomainIndex, config: Config) -> float:
    """MIoU in per cent over the second half of a domain."""
    half = holdout_range(index, HALF)
    samples = eval_samples(index, half.start, half.stop, config.data.size)
    counts = confusion(segmentor, samples, segmentor.num_classes)[0].counts
    return 100 * float(mean_iou(counts.numpy()))


def measure(run: Path, targets: dict[str, DomainIndex]) -> dict[str, tuple[float, float]]:
    """For each target mIoU of the run's own classifier, and of one fitted to the target's first half."""
    segmentor, _, _, _ = load_segmentor(run)
    # `refit` looks at what is not held out: the first half.
    every = [f"data.holdout={HALF}", "refit.images=1000", "refit.linear=true", "refit.prototypes=false"]
    config = load_config(paths.config_file(run), every)
    own: dict[str, Tensor] = {
        name: segmentor.state_dict()[name].clone() for name in ("linear.weight", "linear.bias")
    }
    found = {}
    for name, index in targets.items():
        segmentor.load_refit(own)
        before = second_half(segmentor, index, config)
        segmentor.load_refit(refit(segmentor, config, [index], None).values)
        found[name] = before, second_half(segmentor, index, config)
    return found


def main() -> None:
    """Print a row for each target and the mean."""
    parser = described(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="with a linear classifier")
    options = parser.parse_args()
    torch.set_num_threads(1)
    targets = {name: DomainIndex.open(options.shards / domain) for name, domain in TARGETS.items()}
    runs = [measure(run, targets) for run in options.runs]
    print("| second half of | its own classifier | fitted to the first half | difference |")
    print("| --- | --- | --- | --- |")
    rows = {name: [found[name] for found in runs] for name in targets}
    rows["mean"] = [
        (
            statistics.mean(own for own, _ in found.values()),
            statistics.mean(best for _, best in found.values()),
        )
        for found in runs
    ]
    for name, pairs in rows.items():
        own, best = (statistics.mean(each) for each in zip(*pairs, strict=True))
        gains = ", ".join(f"{best - own:+.1f}" for own, best in pairs)
        print(f"| {name} | {own:.1f} | {best:.1f} | {best - own:+.1f} ({gains}) |")


if __name__ == "__main__":
    main()
