"""Micro-batches of steps: in order, and an error waits for its step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ppar_dist.data.loader import Batch
from ppar_dist.training.step_batches import StepBatches


def batch(number: int) -> Batch:
    empty = torch.zeros(1, dtype=torch.int64)
    pictures = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    return Batch(pictures, pictures[:, 0], empty, empty + number, empty, empty, [str(number)], [])


def test_each_step_gets_its_own_and_an_error_ends_the_step_it_belongs_to() -> None:
    def loader() -> Iterator[Batch]:
        yield from map(batch, range(4))
        raise OSError("storage is gone")

    batches = StepBatches(loader(), 2, torch.device("cpu"))
    assert [each.keys for each in batches.take()] == [["0"], ["1"]]
    batches.bring_next()  # on a CPU nothing is fetched before its turn
    assert [each.keys for each in batches.take()] == [["2"], ["3"]]
    batches.bring_next()
    with pytest.raises(OSError, match="storage is gone"):
        batches.take()
