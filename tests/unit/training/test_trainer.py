"""What a step trains on, and random draws of the training loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch

from ppar_dist.data.colours import Colours
from ppar_dist.data.loader import Batch
from ppar_dist.training.trainer import Trainer, noise_seed


def test_student_and_teacher_see_the_colours_drawn() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    zeros = torch.zeros(2, dtype=torch.int64)
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    drawn = [Colours(gamma=2.0), Colours()]
    batch = Batch(images, labels, zeros, zeros, zeros, zeros, ["a", "b"], drawn)
    seen: list[torch.Tensor] = []

    def forward(given: torch.Tensor, dense: bool) -> Any:
        seen.append(given)
        return SimpleNamespace(logits=torch.zeros(2, 6, 8, 8), dense=None)

    trainer = MagicMock(spec=Trainer)
    trainer.config = trainer.learner = trainer.state = MagicMock()
    trainer.learner.engine.forward = forward
    trainer.learner.objective.label_likelihood.return_value = None
    trainer.learner.teacher.features = seen.append
    trainer._teacher_features = lambda given: Trainer._teacher_features(trainer, given)
    Trainer._loss(trainer, batch, MagicMock())
    assert len(seen) == 2
    squared = 255 * (images[0].float() / 255) ** 2
    for each in seen:
        torch.testing.assert_close(each[0], squared, atol=1e-3, rtol=0)
        assert torch.equal(each[1], images[1].float())


def test_noise_differs_between_ranks_and_steps_and_repeats() -> None:
    seeds = {noise_seed(seed, step, rank) for seed in range(3) for step in range(5) for rank in range(4)}
    assert len(seeds) == 60
    assert noise_seed(1, 2, 3) == noise_seed(1, 2, 3)
