"""What of a tower trains, and in which mode the rest is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone, build_backbone
from tests.unit.models.tiny_clip import noise, register


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("models"))


def build(name: str, **options: Any) -> Backbone:
    timm = {} if name.startswith("tiny") else {"kind": "timm", "embed_dim": 16}
    return build_backbone(BackboneConfig(name=name, **timm, **options))


def learning(backbone: Backbone) -> set[str]:
    """Names of the tower's parameters that a gradient reaches."""
    backbone.zero_grad()
    found = backbone(noise(2 * backbone.multiple, 3 * backbone.multiple))
    ends = [each.square().mean() for each in (*found.pyramid, found.dense)]
    torch.autograd.backward([each for each in ends if each.requires_grad])
    return {name for name, each in backbone.tower.named_parameters() if each.grad is not None}


def test_the_last_blocks_train_and_what_comes_behind() -> None:
    assert {
        name.rpartition(".resblocks.")[2][:1]
        for name in learning(build("tiny-vit", trainable="last", last_blocks=1))
    } == {"2", "l", "p"}
    names = learning(build("resnet18", trainable="last", last_blocks=3, options={"norm_layer": "groupnorm"}))
    assert {name[:8] for name in names} == {"layer3.1", "layer4.0", "layer4.1"}
    names = learning(build("test_convnext", trainable="last", last_blocks=2))
    assert names
    assert all(name.startswith(("stages_3.", "stages.3.")) for name in names)


def test_frozen_blocks_are_in_evaluation_mode_and_the_others_are_not() -> None:
    backbone = build("tiny-vit", trainable="last", last_blocks=2).train()
    blocks = backbone.tower.transformer.resblocks
    assert [block.training for block in blocks] == [False, True, True]
    assert not backbone.tower.ln_pre.training
    assert backbone.neck.training


def test_norms_alone_train() -> None:
    backbone = build("tiny-vit", trainable="norm")
    expected = {
        f"{name}.{kind}"
        for name, module in backbone.tower.named_modules()
        if isinstance(module, nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    # The last block's features are used through its value path: all norms count.
    assert learning(backbone) == expected
    assert learning(build("test_convnext", trainable="norm"))


def test_frozen_batch_norm_stays_frozen() -> None:
    with pytest.raises(
        UserError, match=r"trainable=norm leaves nothing to train in tiny-rn \(model.backbone.bat"
    ):
        build("tiny-rn", trainable="norm")
    names = learning(build("tiny-rn", trainable="last", last_blocks=1))
    assert names
    assert not any(".bn" in name or name.endswith("downsample.1.weight") for name in names)
    assert any(name.startswith("layer4.0.conv") for name in names)
    assert not any(name.startswith(("layer3", "conv1")) for name in names)


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="last_blocks=4, but tiny-vit has 3 blocks"):
        build("tiny-vit", trainable="last", last_blocks=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable": "last"}, "needs last_blocks"),
        ({"last_blocks": 2}, "last_blocks goes with trainable: last, not all"),
        ({"lora": {"rank": 4}}, "lora goes with trainable: lora, not all"),
        ({"trainable": "lora", "lora": {"dropout": 0.1}}, "dropout is 0, got 0.1: its draws would depend"),
    ],
)
def test_settings_that_say_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BackboneConfig(name="tiny-vit", **options)
