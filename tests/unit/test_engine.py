"""The engine's own promises, on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppar_dist import distributed
from ppar_dist.config import parse_config
from ppar_dist.distributed import World
from ppar_dist.engine import Engine
from tests.ranks import tiny_config


class Root(nn.Module):
    """√|p|: at 0 the value is finite and the gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return self.p.sqrt().sum()


@pytest.fixture
def world() -> Iterator[World]:
    yield distributed.join({})
    distributed.leave()


def test_a_gradient_that_is_not_finite_touches_no_parameter(world: World, tmp_path: Path) -> None:
    config = parse_config(tiny_config(tmp_path, tmp_path / "run"))
    model = Root()
    groups = [{"name": "head", "params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.0}]
    engine = Engine(model, groups, config, world)
    loss = engine.forward()
    assert loss.item() == 0.0
    engine.backward(loss, last=True)
    with pytest.raises(FloatingPointError, match="step 3 gave a gradient of norm inf"):
        engine.step(2)
    assert model.p.item() == 0.0
