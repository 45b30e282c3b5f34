"""``ppar-dist`` in which the loss, or only its gradient, is not a number for images of chosen positions.

python -m tests.faults.poisoned loss|gradient FIRST STOP ARGUMENTS…
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ppar_dist.cli.parser import main
from ppar_dist.training import trainer

_ITS_LOSS = trainer.Trainer._loss
_SEGMENTATION_LOSS = trainer.segmentation_loss


def poison(what: str, first: int, stop: int) -> None:
    """Spoil what images at positions [first, stop) contribute."""

    def loss(self: trainer.Trainer, batch: Any, *rest: Any) -> torch.Tensor:
        hit = bool(((batch.positions >= first) & (batch.positions < stop)).any())
        if hit and what == "loss":
            trainer.segmentation_loss = lambda *inputs: _SEGMENTATION_LOSS(*inputs) * float("nan")
        value = _ITS_LOSS(self, batch, *rest)
        trainer.segmentation_loss = _SEGMENTATION_LOSS
        return value * float("inf") if hit and what == "gradient" else value

    trainer.Trainer._loss = loss


if __name__ == "__main__":
    poison(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
