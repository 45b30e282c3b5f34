"""Adapters in towers of every kind: they begin as nothing, learn alone, and can be merged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppar_dist.config.method_section import BankConfig
from ppar_dist.config.model_section import BackboneConfig, ModelConfig
from ppar_dist.config.schema import OptimConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone, build_backbone
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.ppar.teacher import Teacher
from tests.unit.models.tiny_clip import noise, register

TOWERS = ["tiny-vit", "tiny-vit-custom", "tiny-rn", "tiny-eva", "tiny-siglip", "test_convnext", "test_vit"]
DORA = [("test_vit", "dora"), ("tiny-rn", "dora")]


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("models"))


def build(name: str, trainable: str = "lora", **lora: Any) -> Backbone:
    timm = {} if name.startswith("tiny") else {"kind": "timm", "embed_dim": 16}
    torch.manual_seed(0)
    options = {"lora": lora} if lora else {}
    return build_backbone(BackboneConfig(name=name, trainable=trainable, **timm, **options)).eval()


def features(backbone: Backbone) -> list[Tensor]:
    found = backbone(noise(2 * backbone.multiple, 3 * backbone.multiple))
    assert found.dense is not None
    return [*found.pyramid, found.dense]


def stir(backbone: Backbone) -> None:
    """As a training would: adapters that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone.tower.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "lora") for name in TOWERS), ("test_vit", "rslora"), *DORA]
)
def test_adapters_begin_as_nothing_and_merge_to_what_they_are(name: str, kind: str) -> None:
    plain, adapted = build(name, "all"), build(name, kind=kind, rank=4)
    for a, b in zip(features(plain), features(adapted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    stir(adapted)
    before = [each.detach() for each in features(adapted)]
    changes = [(a.detach() - b).abs().max() for a, b in zip(features(plain), before, strict=True)]
    assert float(max(changes)) > 1e-7
    adapted.remove_adapters(merge=True)
    assert adapted.state_dict().keys() == plain.state_dict().keys()
    for a, b in zip(before, features(adapted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-siglip"])
def test_only_adapters_learn_and_the_tower_stays_bit_for_bit(name: str) -> None:
    backbone = build(name).train()
    names = {key for key, each in backbone.tower.named_parameters() if each.requires_grad}
    assert names
    assert all(".lora_" in key for key in names)
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    own = {key: each.clone() for key, each in backbone.tower.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward([each.square().mean() for each in features(backbone)])
        optimizer.step()
    for key, value in backbone.tower.state_dict().items():
        assert torch.equal(value, own[key]) == (key not in names), key


def test_attention_of_torch_gets_the_sum_of_its_matrices() -> None:
    """The output's adapter counts once, where peft's own layer counts it twice."""
    backbone = build("tiny-vit")
    stir(backbone)
    attention: Any = backbone.tower.transformer.resblocks[0].attn
    plain = nn.MultiheadAttention(attention.embed_dim, attention.num_heads, batch_first=True).eval()
    with torch.no_grad():
        for target, layer in ((plain.in_proj_weight, attention), (plain.out_proj.weight, attention.out_proj)):
            base = layer.base_layer.in_proj_weight if layer is attention else layer.base_layer.weight
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            target.copy_(base + b @ a)  # α/r = 1
        plain.in_proj_bias.copy_(attention.in_proj_bias)
        plain.out_proj.bias.copy_(attention.out_proj.base_layer.bias)
        x = torch.randn(2, 5, attention.embed_dim)
        torch.testing.assert_close(attention(x, x, x)[0], plain(x, x, x)[0])


def test_layers_that_a_tower_uses_past_an_adapter_are_left_out_or_refused() -> None:
    report = build("tiny-eva").adapters
    assert report is not None
    assert all(name.endswith("attn.qkv") for name in report.left_out)
    assert len(report.left_out) == 12
    assert "36 layers of the tower; none in trunk.blocks.0.attn.qkv" in report.text()
    with pytest.raises(UserError, match=r"adapters of trunk\.blocks\.0\.attn\.qkv, .* would learn nothing"):
        build("tiny-eva", targets=["*.attn.*"])


def test_targets_are_patterns_of_names() -> None:
    report = build("tiny-vit", targets=["*.mlp.c_fc", "*.1.attn"]).adapters
    assert report is not None
    assert {name.partition("resblocks.")[2] for name in report.adapted} == {
        "0.mlp.c_fc",
        "1.mlp.c_fc",
        "2.mlp.c_fc",
        "1.attn",
    }
    upper = build("tiny-rn", targets=["layer4.*.conv2"]).adapters  # lower levels have no gradient then
    assert upper is not None
    assert upper.adapted == ("layer4.0.conv2",)
    with pytest.raises(UserError, match=r"no layer of tiny-vit is called q_proj; there are "):
        build("tiny-vit", targets=["q_proj"])
    with pytest.raises(UserError, match=r"kind=dora has no adapter for attention as torch has it"):
        build("tiny-vit", kind="dora")


def test_a_teacher_follows_adapters() -> None:
    cfg = BackboneConfig(name="tiny-vit", trainable="lora")
    student = Segmentor(ModelConfig(backbone=cfg, classifier="linear"), build_backbone(cfg), None, 5).eval()
    teacher = Teacher(student, BankConfig(teacher="ema", teacher_momentum=0.5))
    own = copy.deepcopy(teacher.copy.state_dict())
    stir(student.backbone)
    teacher.follow(student)
    for name, value in teacher.copy.state_dict().items():
        expected = (own[name] + student.state_dict()[name]) / 2 if value.is_floating_point() else own[name]
        torch.testing.assert_close(value, expected, msg=name)
    assert not torch.equal(
        teacher.copy.backbone.tower.transformer.resblocks[0].attn.lora_B["default"].weight,
        own["backbone.tower.transformer.resblocks.0.attn.lora_B.default.weight"],
    )


def test_lengths_of_dora_do_not_decay() -> None:
    cfg = BackboneConfig(name="tiny-rn", trainable="lora", lora={"kind": "dora"})
    segmentor = Segmentor(ModelConfig(backbone=cfg, classifier="linear"), build_backbone(cfg), None, 5)
    lengths = {id(p) for name, p in segmentor.named_parameters() if "lora_magnitude_vector" in name}
    assert lengths
    for group in segmentor.param_groups(OptimConfig()):
        if any(id(p) in lengths for p in group["params"]):
            assert (group["name"], group["weight_decay"]) == ("backbone", 0.0)
