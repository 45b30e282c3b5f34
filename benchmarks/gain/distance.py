"""The effect of alignment on the distance between domains, compared with the baseline.

    python -m benchmarks.gain.distance --shards shards --run plain results/gain/by-name/scratch-plain-seed* \\
        --run PPAR results/gain/by-name/scratch-PPAR-seed*

Features are those of the trunk's level of stride 16 (`--level trunk`), before any projection to the joint
space: both models have them, and only one trained the projection. `--level decoder` takes the decoder's
output, which the classifier reads, averaged over the same cells. A cell has the class that covers
`ppar.min_purity` of it; its feature is scaled to unit length. A centroid is the mean over the cells of a
class in a domain, scaled to unit length again.

Distances between centroids of one class in different domains are given as they are and divided by the
mean distance between centroids of different classes in the same domain, so that features that merely
shrink towards a point do not count as aligned.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.arguments import described
from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.ppar.cells import cell_features, cell_labels, unit
from ppar_dist.ppar.diagnostics import domain_discrepancy

STRIDE = 16
TARGETS = ("camvid_0001TP", "labelmefacade_test")


@dataclass(frozen=True)
class Distances:
    """Distances of unit centroids, 0 to 2: largest over domain pairs, averaged over classes."""

    sources: float  # between source domains
    target: float  # between a source domain and a target
    classes: float  # mean over pairs of different classes in the same domain
    sources_by_classes: float
    target_by_classes: float


HEADS = (
    "source to source",
    "source to target",
    "class to class",
    "source to source / class to class",
    "source to target / class to class",
)


def distances(centroids: Tensor, seen: Tensor, sources: int) -> Distances:
    """Distances of unit centroids (M, K, D), where ``seen`` (M, K); the first ``sources`` are sources."""
    between = float(domain_discrepancy(centroids[:sources], seen[:sources]))
    to_target = _mean(_largest_to_target(centroids[:, k], seen[:, k], sources) for k in range(seen.shape[1]))
    classes = _mean(
        float((centroids[m, one] - centroids[m, other]).norm())
        for m in range(len(seen))
        for one, other in itertools.combinations(seen[m].nonzero().flatten().tolist(), 2)
    )
    return Distances(between, to_target, classes, between / classes, to_target / classes)


def _largest_to_target(centroids: Tensor, seen: Tensor, sources: int) -> float:
    """Of one class, (M, D) and (M,); nan where no source or no target has it."""
    source, target = centroids[:sources][seen[:sources]], centroids[sources:][seen[sources:]]
    if not len(source) or not len(target):
        return math.nan
    return float((source[:, None] - target).norm(dim=-1).max())


def _mean(values: Iterable[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return statistics.mean(kept) if kept else math.nan


@torch.inference_mode()
def level_features(segmentor: Segmentor, images: Tensor, level: str) -> Tensor:
    """(B, C, h, w) of raw images (B, 3, H, W), h = ceil(H / 16); see the top of this file."""
    backbone = segmentor.backbone
    pyramid = backbone(backbone.prepare(images), dense=False).pyramid
    rows, columns = (math.ceil(size / STRIDE) for size in images.shape[-2:])
    if level == "trunk":
        features: Tensor = pyramid[backbone.strides.index(STRIDE)]
    else:
        cells = round(STRIDE / backbone.strides[0])
        features = F.avg_pool2d(segmentor.decoder(pyramid), cells, ceil_mode=True, count_include_pad=False)
    return features[..., :rows, :columns].float()


def domain_centroids(
    segmentor: Segmentor, index: DomainIndex, size: int, purity: float, level: str, limit: int | None
) -> tuple[Tensor, Tensor]:
    """Unit centroids (K, C) of a domain's classes, and which classes it has (K,) bool.

    At most ``limit`` images, spread evenly over the domain.
    """
    classes, total = len(index.classes), len(index)
    wanted = range(total) if limit is None else [total * i // limit for i in range(min(limit, total))]
    sums: Tensor | float = 0.0
    counts: Tensor | float = 0.0
    for number in wanted:
        sample = next(eval_samples(index, number, number + 1, size))
        features = level_features(segmentor, sample.image[None], level)
        # to the image's size first, so that labels of any size fall on whole cells
        label = F.interpolate(sample.label[None, None], size=sample.image.shape[-2:], mode="nearest-exact")[0]
        cells = cell_labels(label, (features.shape[2], features.shape[3]), classes, purity)
        found = cell_features(features, cells, classes)
        sums, counts = sums + found.sums[0].double(), counts + found.counts[0]
    assert isinstance(sums, Tensor)
    assert isinstance(counts, Tensor)
    return unit(sums).float(), counts > 0


def measure(run: Path, shards: Path, level: str, limit: int | None) -> Distances:
    """Distances for a finished run: its own sources, and both targets."""
    segmentor, config, _, _ = load_segmentor(run)
    names = [source.name for source in config.data.sources]
    found = [
        domain_centroids(
            segmentor,
            DomainIndex.open(shards / name),
            config.data.size,
            config.ppar.min_purity,
            level,
            limit,
        )
        for name in (*names, *TARGETS)
    ]
    centroids, seen = (torch.stack(part) for part in zip(*found, strict=True))
    return distances(centroids, seen, len(names))


def distance_table(found: dict[str, list[Distances]]) -> str:
    """Markdown: mean ± standard deviation over the runs of each name."""
    rows = [["run", "seeds", *HEADS], ["---"] * (len(HEADS) + 2)]
    for name, runs in found.items():
        cells = []
        for values in zip(*map(astuple, runs), strict=True):
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        rows.append([name, str(len(runs)), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Collect the features of the given runs and print the table."""
    parser = described(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument(
        "--run", nargs="+", action="append", required=True, metavar=("NAME", "FOLDER"), help="one row"
    )
    parser.add_argument("--level", choices=("trunk", "decoder"), default="trunk")
    parser.add_argument("--limit", type=int, help="images per domain, spread evenly; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        name: [measure(Path(folder), options.shards, options.level, options.limit) for folder in folders]
        for name, *folders in options.run
    }
    print(distance_table(found))


if __name__ == "__main__":
    main()
