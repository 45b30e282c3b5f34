"""Frozen matrices in bfloat16: half the bytes, and features as of float32 weights that were rounded once."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.models.backbone import Backbone
from tests.unit.models.test_adapters import TOWERS, build, features, stir
from tests.unit.models.tiny_clip import register


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("models"))


def rounded(backbone: Backbone) -> Backbone:
    """A copy in float32, whose frozen matrices of layers have the nearest values of bfloat16."""
    reference = copy.deepcopy(backbone)
    for module in reference.tower.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim > 1 and not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16).float()
    return reference


@pytest.mark.parametrize(
    ("name", "trainable"),
    [*((name, "lora") for name in TOWERS), ("tiny-vit", "none"), ("test_vit", "norm"), ("test_vit", "dora")],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_features_and_gradients_are_those_of_rounded_weights(
    name: str, trainable: str, autocast: bool
) -> None:
    plain = build(name, kind="dora") if trainable == "dora" else build(name, trainable)
    stir(plain)
    reference, kept = rounded(plain), copy.deepcopy(plain)
    kept.keep_frozen_in_bf16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected, before = features(kept), features(reference), features(plain)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    if not autocast:  # which rounds the matrices of most layers by itself
        assert any(not torch.equal(one, two) for one, two in zip(found, before, strict=True))
    if trainable == "none":
        return
    for each in (found, expected):
        torch.autograd.backward([level.float().square().mean() for level in each])
    gradients = [
        [parameter.grad for parameter in of.tower.parameters() if parameter.requires_grad]
        for of in (kept, reference)
    ]
    assert any(each is not None and float(each.abs().max()) > 0 for each in gradients[0])
    for one, two in zip(*gradients, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.equal(one, two)


@pytest.mark.parametrize("trainable", ["none", "lora"])
def test_they_take_half_the_bytes_and_stay_so(trainable: str) -> None:
    backbone = build("tiny-siglip", trainable)
    before = {name: each.nbytes for name, each in backbone.tower.named_parameters()}
    report = backbone.keep_frozen_in_bf16()
    features(backbone)
    after = {name: each.nbytes for name, each in backbone.tower.named_parameters()}
    assert after.keys() == before.keys() == {n for n, _ in backbone.tower.named_parameters()}
    assert sum(before.values()) - sum(after.values()) == 2 * report.values
    frozen = {n for n, each in backbone.tower.named_parameters() if not each.requires_grad}
    assert sum(after[n] for n in frozen) < 0.51 * sum(before[n] for n in frozen)
    assert all(after[n] == before[n] for n in after.keys() - frozen)
    assert f"{report.values} of its {report.all_values} values, kept in bfloat16" in report.text()
    of_state = backbone.tower.state_dict()
    assert all(of_state[n].nbytes == size for n, size in after.items())


def test_values_that_come_later_are_rounded_too() -> None:
    """As a resume brings them; a copy, as a teacher is one, keeps them as stored."""
    backbone, other = build("test_vit", "none"), build("test_vit", "none")
    stored = backbone.keep_frozen_in_bf16().values
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.01
    backbone.load_state_dict(other.state_dict())
    twin = copy.deepcopy(backbone)
    halves = [p for p in twin.tower.parameters() if p.dtype == torch.bfloat16]
    assert sum(p.numel() for p in halves) == stored
    for one, two in zip(features(twin), features(rounded(other)), strict=True):
        assert torch.equal(one, two)


def test_a_tower_that_trains_has_none() -> None:
    with pytest.raises(ValidationError, match=r"frozen_dtype: bfloat16 goes with a frozen tower"):
        BackboneConfig(frozen_dtype="bfloat16")
