"""Cost of the method alone: time of its parts in a training step, and bytes of the one all-reduce.

    python benchmarks/speed/method.py [--threads 1] [--repeats 30]

Per size, of the pixel stage (all losses on): `begin_step`, `losses` forward, backward from the total
to the dense features, `end_step` with and without detail; then the same in the warm-up stage.
Medians of CPU time in milliseconds: on one thread that is the cost in a step, whatever else the
machine does. Random features, blocky labels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ppar_dist.config.method_section import PparConfig
from ppar_dist.ppar.objective import Objective

# B images, K classes, M domains, D joint width, (h, w) grid, pixels per cell
SIZES = (
    (8, 6, 3, 512, (12, 15), 16),
    (8, 19, 3, 512, (12, 15), 16),
    (4, 19, 3, 1024, (32, 32), 16),
    (8, 19, 5, 512, (32, 64), 16),
)


class Case:
    """Random inputs of one size."""

    def __init__(self, size: tuple[int, int, int, int, tuple[int, int], int]) -> None:
        """Draw features and labels."""
        batch, classes, domains, width, (h, w), stride = size
        torch.manual_seed(0)
        self.dense = torch.randn(batch, width, h, w, requires_grad=True)
        cells = torch.randint(0, classes, (batch, h, w), dtype=torch.uint8)
        self.labels = cells.repeat_interleave(stride, 1).repeat_interleave(stride, 2).contiguous()
        self.domains = torch.arange(batch) % domains
        self.seg_loss = torch.rand(batch)
        text = torch.randn(classes, width)
        self.objective = Objective(PparConfig(), text, domains, classes, global_batch=batch)

    def step(self, progress: float, detail: bool) -> dict[str, float]:
        """Milliseconds of each part of one step."""
        spent: dict[str, float] = {}
        batch_slots = torch.arange(len(self.domains))
        settings = _timed(spent, "begin", lambda: self.objective.begin_step(progress))
        inputs = (self.dense, self.labels, self.domains, self.seg_loss, batch_slots)
        losses = _timed(spent, "losses", lambda: self.objective.losses(settings, *inputs))
        self.dense.grad = None
        if losses.total.requires_grad:
            _timed(spent, "backward", lambda: losses.total.mean().backward())
        _timed(spent, "end, detail" if detail else "end", lambda: self.objective.end_step(settings, detail))
        return spent


def _timed(spent: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    began = time.process_time()
    result = work()
    spent[name] = 1e3 * (time.process_time() - began)
    return result


def measure(case: Case, progress: float, repeats: int) -> dict[str, float]:
    """Median milliseconds of each part over ``repeats`` steps, after two to warm up."""
    runs = [case.step(progress, detail=number % 2 == 0) for number in range(2 * repeats + 2)][2:]
    names = {name: None for run in runs for name in run}
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def main() -> None:
    """Print one block per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for size in SIZES:
        batch, classes, domains, width, grid, _ = size
        case = Case(size)
        print(f"B={batch} K={classes} M={domains} D={width} grid={grid[0]}x{grid[1]}", end="  ")
        print(f"buffer {case.objective.buffer.nbytes / 1024:.0f} KiB")
        for stage, progress in (("warmup", 0.0), ("pixel", 0.75)):
            parts = measure(case, progress, arguments.repeats)
            print(f"  {stage:7}" + "  ".join(f"{name} {value:.2f} ms" for name, value in parts.items()))


if __name__ == "__main__":
    main()
