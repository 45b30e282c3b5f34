"""A moving average of weights, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ppar_dist.models.average import AVERAGE, WeightAverage, averaged_values


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    return net


def step(net: nn.Module) -> None:
    net(torch.randn(5, 3))  # statistics
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99])
def test_it_is_the_average_of_torch(momentum: float) -> None:
    net = model()
    mine = WeightAverage(net, momentum)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(momentum), use_buffers=True)
    theirs.update_parameters(net)  # its first call copies
    for _ in range(5):
        step(net)
        mine.follow(net)
        theirs.update_parameters(net)
    expected = theirs.module.state_dict()
    found = mine.state_dict()
    assert found.keys() == {
        name for name in expected if not name.startswith("0.") and "num_batches" not in name
    }
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_it_stands_in_and_leaves_no_trace() -> None:
    net = model()
    average = WeightAverage(net, 0.5)
    step(net)
    average.follow(net)
    own = {name: value.clone() for name, value in net.state_dict().items()}
    with average.in_place(net):
        assert torch.equal(net.state_dict()["2.weight"], average.state_dict()["2.weight"])
        assert not torch.equal(net.state_dict()["2.weight"], own["2.weight"])
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())


def test_it_takes_what_was_fitted_in_place() -> None:
    net = model()
    average = WeightAverage(net, 0.5)
    with average.in_place(net):
        with torch.no_grad():
            net[2].bias.fill_(7.0)
        average.take(net)
    assert torch.equal(average.state_dict()["2.bias"], torch.full((2,), 7.0))
    assert not torch.equal(net[2].bias, torch.full((2,), 7.0))


def test_a_checkpoint_brings_it_back() -> None:
    net = model()
    first, second = WeightAverage(net, 0.9), WeightAverage(net, 0.9)
    for _ in range(3):
        step(net)
        first.follow(net)
    tensors = {AVERAGE + name: value for name, value in first.state_dict().items()} | {"bank": torch.ones(1)}
    second.load_state_dict(averaged_values(tensors))
    for average in (first, second):
        average.follow(net)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    with pytest.raises(KeyError):
        second.load_state_dict({})
