"""Random draws of the training loop."""

from __future__ import annotations

from ppar_dist.training.trainer import noise_seed


def test_noise_differs_between_ranks_and_steps_and_repeats() -> None:
    seeds = {noise_seed(seed, step, rank) for seed in range(3) for step in range(5) for rank in range(4)}
    assert len(seeds) == 60
    assert noise_seed(1, 2, 3) == noise_seed(1, 2, 3)
