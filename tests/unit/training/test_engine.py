"""The engine on one rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppar_dist.config.load import parse_config
from ppar_dist.distributed.world import World
from ppar_dist.training.engine import Engine
from tests.ranks import tiny_config

STAGES = (0, 1, 2)


class Net(nn.Module):
    """A frozen layer, a trained one, a late starter, and √|p|: at 0 it is finite and its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.trained = nn.Linear(4, 3)
        self.root = nn.Parameter(torch.ones(1))
        self.late = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor, late: bool = False) -> Tensor:
        loss = self.trained(self.frozen(x)).square().mean() + self.root.sqrt().sum()
        return loss + self.late.sum() * float(late)


def build(world: World, folder: Path, stage: int) -> Engine:
    tree = tiny_config(folder, folder / "run", engine={"zero_stage": stage}, optim={"warmup_ratio": 0.0})
    model = Net()
    layers = [{"name": "head", "params": list(model.trained.parameters()), "lr": 0.1, "weight_decay": 0.1}]
    single = {"name": "rest", "params": [model.root, model.late], "lr": 0.01, "weight_decay": 0.0}
    return Engine(model, [*layers, single], parse_config(tree), world)


def train(engine: Engine, steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        engine.backward(engine.forward(x, step >= 2), last=True)
        assert engine.step(step)


def state(engine: Engine) -> dict[str, Tensor]:
    """Parameters, buffers and moments, as copies."""
    model = {name: value.clone() for name, value in engine.module.state_dict().items()}
    return model | engine.moments()


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("updates", [0, 2])
def test_a_gradient_that_is_not_finite_touches_nothing(
    world: World, tmp_path: Path, stage: int, updates: int
) -> None:
    engine, clean = build(world, tmp_path, stage), build(world, tmp_path, stage)
    for each in (engine, clean):
        train(each, range(updates))
    before = state(engine)
    with torch.no_grad():
        kept = engine.module.root.clone()
        engine.module.root.zero_()
    loss = engine.forward(torch.zeros(5, 4))
    assert loss.isfinite()
    engine.backward(loss, last=True)
    assert not engine.step(updates)
    with torch.no_grad():
        engine.module.root.copy_(kept)
    assert_equal(state(engine), before)
    for each in (engine, clean):
        train(each, range(updates, updates + 2))
    assert_equal(state(engine), state(clean))


@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_gradient_is_gone(world: World, tmp_path: Path, stage: int) -> None:
    engine, clean = build(world, tmp_path, stage), build(world, tmp_path, stage)
    for each in (engine, clean):
        train(each, range(2))
    engine.backward(100 * engine.forward(torch.ones(5, 4)), last=True)
    engine.skip()
    assert_equal(state(engine), state(clean))
    for each in (engine, clean):
        train(each, range(2, 4))
    assert_equal(state(engine), state(clean))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_restored_engine_goes_on_bit_for_bit(world: World, tmp_path: Path, stage: int, at: int) -> None:
    """Before the first update, before the late parameter's first gradient, and after it."""
    whole, first = build(world, tmp_path, stage), build(world, tmp_path, stage)
    train(whole, range(6))
    train(first, range(at))
    with torch.no_grad():
        first.module.frozen.weight.add_(1)  # frozen parameters and buffers travel too
        first.module.seen.add_(7)
        whole.module.frozen.weight.add_(1)
    model, optimizer = dict(first.module.state_dict()), first.moments()
    second = build(world, tmp_path, stage)
    train(second, range(4, 6))  # whatever it held before is forgotten
    second.load({name: value.clone() for name, value in model.items()}, optimizer)
    assert_equal(state(second), state(first))
    for each in (first, second):
        train(each, range(at, 6))
    assert_equal(state(second), state(first))
    assert second.module.seen.item() == 7


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 2), (2, 1)])
def test_a_state_fits_every_zero_stage(world: World, tmp_path: Path, before: int, after: int) -> None:
    whole, first, second = (build(world, tmp_path, stage) for stage in (before, before, after))
    train(whole, range(2, 7))
    train(first, range(2, 4))
    second.load(dict(first.module.state_dict()), first.moments())
    train(second, range(4, 7))
    for (name, a), b in zip(state(whole).items(), state(second).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_moments_of_another_shape_are_refused(world: World, tmp_path: Path) -> None:
    engine = build(world, tmp_path, 0)
    train(engine, range(2))
    optimizer = engine.moments()
    optimizer["exp_avg.trained.weight"] = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match=r"exp_avg of trained\.weight is \(2, 2\), not \(3, 4\)"):
        engine.load(engine.module.state_dict(), optimizer)
