"""``ppar-dist`` in which memory of one rank goes wrong: a bit of its prototype bank changes after a step.

python -m tests.faults.flipped RANK STEP ARGUMENTS…
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from ppar_dist.cli.parser import main
from ppar_dist.training import trainer

_ITS_STEP = trainer.Trainer.train_step
_BIT = 20  # of a float32: large enough to outlive the rounding of the moving average


def flip(step: int) -> None:
    """Change the largest sum of the bank when ``step`` is done."""

    def train_step(self: trainer.Trainer, batches: Any) -> Any:
        figures = _ITS_STEP(self, batches)
        if self.state.step == step:
            sums = self.learner.objective.state.bank.sums.view(-1)
            sums.view(torch.int32)[sums.abs().argmax()] ^= 1 << _BIT
        return figures

    trainer.Trainer.train_step = train_step


if __name__ == "__main__":
    if os.environ["RANK"] == sys.argv[1]:
        flip(int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
