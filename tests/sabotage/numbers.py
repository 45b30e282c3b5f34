"""Numbers that go wrong: a loss or gradient that is not finite, a bit that flips in memory."""

from __future__ import annotations

import os
from typing import Any

_BIT = 20  # of a float32: large enough to outlive the rounding of the moving average


def poison(what: str, first: str, stop: str) -> None:
    """Spoil the ``loss``, or only its ``gradient``, of images at positions [first, stop)."""
    from ppar_dist.training import trainer

    its_step, its_loss = trainer.Trainer.train_step, trainer.segmentation_loss
    hits: list[bool] = []  # of the step's micro-batches to come

    def train_step(self: trainer.Trainer, batches: Any) -> Any:
        hits[:] = [bool(((b.positions >= int(first)) & (b.positions < int(stop))).any()) for b in batches]
        return its_step(self, batches)

    def segmentation_loss(*inputs: Any) -> Any:
        value = its_loss(*inputs)
        if hits.pop(0):
            if what == "loss":
                return value * float("nan")
            value.register_hook(lambda gradient: gradient * float("inf"))
        return value

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]
    trainer.segmentation_loss = segmentation_loss


def flip(rank: str, step: str) -> None:
    """Change the largest sum of the rank's prototype bank when ``step`` is done."""
    if os.environ.get("RANK", "0") != rank:
        return
    import torch

    from ppar_dist.training import trainer

    original = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, batches: Any) -> Any:
        figures = original(self, batches)
        if self.state.step == int(step):
            sums = self.learner.objective.state.bank.sums.view(-1)
            sums.view(torch.int32)[sums.abs().argmax()] ^= 1 << _BIT
        return figures

    trainer.Trainer.train_step = train_step  # type: ignore[method-assign]
