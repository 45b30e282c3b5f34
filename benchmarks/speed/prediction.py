"""What prototypes of the image cost a prediction: the same run with and without them, in paired rounds.

    python -m benchmarks.speed.prediction RUN [--size 180 240] [--batch 1] [--rounds 7]

RUN was trained with ``refit.prototypes``. Prints the median of the ratios of wall time, their range, and the
bytes that the features take at the grid of the logits, of which a prediction holds two copies.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.arguments import described
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.models.segmentor import Segmentor

_TIMES = 5  # predictions in a row that are timed together


def seconds(segmentor: Segmentor, images: Tensor) -> float:
    """Wall time of a prediction."""
    with torch.inference_mode():
        segmentor(images, dense=False)
        begin = time.perf_counter()
        for _ in range(_TIMES):
            segmentor(images, dense=False)
    return (time.perf_counter() - begin) / _TIMES


def main() -> None:
    """Measure and print."""
    parser = described(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    segmentor = load_segmentor(options.run)[0]
    prototypes = segmentor.image_prototypes
    if prototypes is None:
        parser.error(f"{options.run} was trained without refit.prototypes; give a run with it")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.batch, 3, *options.size), generator=generator, dtype=torch.uint8)
    ratios = []
    for _ in range(options.rounds):
        segmentor.image_prototypes = None
        without = seconds(segmentor, images)
        segmentor.image_prototypes = prototypes
        ratios.append(seconds(segmentor, images) / without)
    height, width = (-(-side // 4) for side in options.size)
    held = options.batch * prototypes.means.shape[1] * height * width * 4
    print(
        f"with / without prototypes of the image: {statistics.median(ratios):.2f} "
        f"[{min(ratios):.2f}, {max(ratios):.2f}]; features {held / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
