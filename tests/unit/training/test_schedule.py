"""Cutting the batch and the learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config, OptimConfig
from ppar_dist.data.batches import batching
from ppar_dist.errors import UserError
from ppar_dist.training.learning_rate import learning_rate_factor
from tests.ranks import tiny_config


def config(folder: Path, global_batch: int, micro_batch: int | None) -> Config:
    train = {"steps": 8, "global_batch": global_batch, "micro_batch": micro_batch}
    return parse_config(tiny_config(folder, folder, train=train))


@pytest.mark.parametrize(
    ("total", "micro", "ranks", "expected"),
    [
        (12, None, 1, (12, 12, 1)),
        (12, 2, 3, (4, 2, 2)),
        (12, 12, 2, (6, 6, 1)),
        (12, 1, 4, (3, 1, 3)),
        (12, 4, 2, (6, 3, 2)),  # 4 does not divide 6: the largest that does and fits
        (24, 6, 3, (8, 4, 2)),
        (14, 3, 2, (7, 1, 7)),
    ],
)
def test_parts_multiply_to_the_whole(
    tmp_path: Path, total: int, micro: int | None, ranks: int, expected: tuple[int, int, int]
) -> None:
    cut = batching(config(tmp_path, total, micro), ranks)
    assert (cut.local_batch, cut.micro_batch, cut.accumulation) == expected
    assert cut.micro_batch * cut.accumulation * ranks == cut.global_batch == total


@pytest.mark.parametrize(
    ("total", "micro", "ranks", "message"),
    [
        (2, None, 3, "every rank needs a sample per step: train.global_batch=2 on 3 ranks"),
        (8, None, 3, "multiple of the number of ranks, got 8 on 3 ranks"),
    ],
)
def test_what_does_not_divide_is_refused(
    tmp_path: Path, total: int, micro: int | None, ranks: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        batching(config(tmp_path, total, micro), ranks)


def test_the_rate_rises_to_one_and_falls_as_a_power() -> None:
    optim = OptimConfig(warmup_ratio=0.1, power=0.9)
    factors = [learning_rate_factor(step, 100, optim) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:] == pytest.approx([(1 - i / 90) ** 0.9 for i in range(90)])
    assert min(factors) > 0


def test_without_warmup_the_first_step_is_full() -> None:
    assert learning_rate_factor(0, 10, OptimConfig(warmup_ratio=0.0)) == 1.0
