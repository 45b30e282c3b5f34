"""The order of a tower's parameters, against timm's own."""

from __future__ import annotations

import pytest
import timm
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

from ppar_dist.config.model_section import BackboneConfig, ModelConfig
from ppar_dist.config.schema import OptimConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import build_backbone
from ppar_dist.models.blocks import depths, layers
from ppar_dist.models.segmentor import Segmentor
from tests.unit.models.tiny_clip import register, tower

MODELS = ["test_vit", "test_convnext", "resnet18", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"]


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", MODELS)
def test_depths_are_those_by_which_timm_decays(name: str) -> None:
    model = timm.create_model(name)
    theirs = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert depths(model) == {parameter: theirs[parameter] for parameter, _ in model.named_parameters()}


def test_depths_of_a_clip_tower() -> None:
    found = depths(tower("tiny-vit").visual)
    expected = {
        "class_embedding": 0,
        "positional_embedding": 0,
        "conv1.weight": 0,
        "ln_pre.weight": 0,
        "transformer.resblocks.0.ln_1.weight": 1,
        "transformer.resblocks.2.attn.in_proj_weight": 3,
        "ln_post.weight": 3,
        "proj": 4,
    }
    assert {name: found[name] for name in expected} == expected
    assert len(layers(tower("tiny-rn").visual)) == 4


@pytest.mark.parametrize("name", ["tiny-eva", "tiny-siglip"])
def test_rates_are_those_of_timm(name: str) -> None:
    """lr and weight decay of each parameter of the tower, the order of groups, and the head as it was."""
    cfg = BackboneConfig(name=name)
    model = ModelConfig(backbone=cfg, classifier="linear")
    segmentor = Segmentor(model, build_backbone(cfg), None, 5)
    optim = OptimConfig(lr=1e-2, backbone_lr=1e-3, layer_decay=0.5, weight_decay=0.1)
    trunk: nn.Module = segmentor.backbone.tower.trunk
    groups = param_groups_layer_decay(trunk, weight_decay=0.1, layer_decay=0.5)
    theirs = {
        id(p): (1e-3 * group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    mine = {id(p): (g["lr"], g["weight_decay"]) for g in segmentor.param_groups(optim) for p in g["params"]}
    assert theirs
    # Positions are (1, N, C) here and there, so both let them decay.
    for number in (0, 1):
        expected = {each: values[number] for each, values in theirs.items()}
        assert {each: mine[each][number] for each in theirs} == pytest.approx(expected)
    rates = [group["lr"] for group in segmentor.param_groups(optim) if group["name"] == "backbone"]
    assert rates == sorted(rates)
    assert {group["lr"] for group in segmentor.param_groups(optim) if group["name"] == "head"} == {1e-2}
    assert len(mine) == sum(p.requires_grad for p in segmentor.parameters())


def test_without_decay_there_are_four_groups() -> None:
    cfg = BackboneConfig(name="tiny-vit")
    segmentor = Segmentor(ModelConfig(backbone=cfg, classifier="linear"), build_backbone(cfg), None, 5)
    found = [
        (group["name"], group["lr"], group["weight_decay"]) for group in segmentor.param_groups(OptimConfig())
    ]
    assert found == [(name, 1e-3, decay) for name in ("backbone", "head") for decay in (0.0, 0.05)]


def test_a_tower_without_blocks_has_no_layer_decay() -> None:
    cfg = BackboneConfig(name="regnety_002", kind="timm", embed_dim=16)
    segmentor = Segmentor(ModelConfig(backbone=cfg, classifier="linear"), build_backbone(cfg), None, 5)
    with pytest.raises(
        UserError, match=r"optim\.layer_decay=0\.5 follows the tower's blocks, and regnety_002 has"
    ):
        segmentor.param_groups(OptimConfig(layer_decay=0.5))
