"""timm's towers at other sizes than their own: against models that timm makes for that very size.

Weights are random, in timm's naming and in that of DINOv2's and DINOv3's publisher.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone, build_backbone
from tests.unit.models.tiny_clip import noise

SMALL: dict[str, Any] = {"depth": 4, "embed_dim": 64, "num_heads": 1}
SMALL_SWIN: dict[str, Any] = {"depths": [1, 1, 2, 2], "embed_dim": 24, "num_heads": [1, 2, 4, 8]}
# Name, options that make it small, options of a trunk that timm makes for one size, pixels of a patch.
PLAIN = {
    "vit_small_patch14_dinov2": (SMALL, {}, 14),
    "vit_small_patch14_reg4_dinov2": (SMALL, {}, 14),
    "vit_small_patch16_dinov3": (SMALL, {"dynamic_img_size": False}, 16),
    "eva02_tiny_patch14_224": ({"depth": 4}, {}, 14),
    "vit_base_patch16_siglip_224": (SMALL, {}, 16),
}
STAGES = {
    "swin_tiny_patch4_window7_224": (SMALL_SWIN, {"always_partition": True}, 4),
    "swinv2_tiny_window8_256": (SMALL_SWIN, {"always_partition": True}, 4),
    "convnext_atto": ({"depths": [1, 1, 1, 1]}, {}, 32),
}
SIZES = [(6, 9), (11, 4)]  # in units of what is padded to, times 8 where that is 4 pixels


def filled(module: nn.Module) -> nn.Module:
    """Random values everywhere: what starts at 0 or 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 400
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    return module.eval()


def saved(state: dict[str, Tensor], path: Path) -> str:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return str(path)


def built(name: str, weights: str | None = None, **options: Any) -> Backbone:
    cfg = BackboneConfig(kind="timm", name=name, embed_dim=8, pretrained=weights, options=options)
    return build_backbone(cfg).eval()


def made_for(name: str, size: tuple[int, int], file: str, options: dict[str, Any]) -> nn.Module:
    """timm's own model of one size, which resized the file's positions when it loaded them."""
    if not name.startswith("convnext"):
        options = {**options, "img_size": size}
    if name.startswith("swin"):
        options["window_size"] = 7 if "window7" in name else 8
    overlay = {"file": file, "num_classes": 0}
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options
    ).eval()


@pytest.mark.parametrize("name", [*PLAIN, *STAGES])
def test_levels_are_those_of_a_model_made_for_the_size(name: str, tmp_path: Path) -> None:
    small, fixed, unit = (PLAIN | STAGES)[name]
    file = saved(
        filled(timm.create_model(name, num_classes=0, **small)).state_dict(), tmp_path / "w.safetensors"
    )
    backbone = built(name, file, **small)
    assert backbone.multiple == unit
    for rows, columns in SIZES:
        size = (rows * unit * (8 if unit == 4 else 1), columns * unit * (8 if unit == 4 else 1))
        images = noise(*size, batch=1)
        reference = made_for(name, size, file, {**small, **fixed})
        with torch.no_grad():
            expected = reference.forward_intermediates(images, indices=4, intermediates_only=True)
            found = backbone.run_tower(images, dense=True).pyramid
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [*PLAIN, *STAGES])
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    backbone = built(name, **(PLAIN | STAGES)[name][0]).train()
    images = torch.randint(0, 256, (1, 3, 90, 70), dtype=torch.uint8)
    found = backbone(backbone.prepare(images))
    again = backbone(backbone.prepare(images))
    assert torch.equal(found.dense, again.dense)  # no noise, also while it trains
    sum(level.square().mean() for level in (*found.pyramid, found.dense)).backward()
    without = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    stride = backbone.dense_stride
    assert backbone.dense_features(images).shape == (1, 8, math.ceil(90 / stride), math.ceil(70 / stride))


def publishers_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 as facebookresearch names it: a mask token, and a place for the class token's position."""
    named = {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    if "reg_token" in named:
        position = torch.randn(state["cls_token"].shape)
        named["register_tokens"] = named.pop("reg_token")
        named["cls_token"] = named["cls_token"] - position
        named["pos_embed"] = torch.cat([position, named["pos_embed"]], 1)
    return named


def publishers_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3 as facebookresearch names it: one bias of query, key and value, with a mask of it."""
    named = {"mask_token": torch.zeros(1, 64), "rope_embed.periods": torch.ones(16)}
    for name, value in state.items():
        new = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        named[new.replace("reg_token", "storage_tokens")] = value
    for block in {name.rpartition(".attn.")[0] for name in state if ".attn." in name}:
        query = named.pop(f"{block}.attn.q_bias", torch.zeros(64))
        value = named.pop(f"{block}.attn.v_bias", torch.zeros(64))
        named[f"{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros(64), value])
        named[f"{block}.attn.qkv.bias_mask"] = torch.full((3 * 64,), math.nan)
    return named


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("vit_small_patch14_dinov2", publishers_dinov2),
        ("vit_small_patch14_reg4_dinov2", publishers_dinov2),
        ("vit_small_patch16_dinov3", publishers_dinov3),
        ("vit_small_patch16_dinov3_qkvb", publishers_dinov3),
    ],
)
def test_files_of_the_publisher_are_read(name: str, named: Any, tmp_path: Path) -> None:
    state = filled(timm.create_model(name, num_classes=0, **SMALL)).state_dict()
    path = tmp_path / "published.pth"
    torch.save(named(state), path)
    first, again = (
        built(name, saved(state, tmp_path / "w.safetensors"), **SMALL),
        built(name, str(path), **SMALL),
    )
    for mine, theirs in zip(again.tower.parameters(), first.tower.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_files_that_would_lose_something_are_refused(tmp_path: Path) -> None:
    biased = filled(timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, **SMALL))
    torch.save(publishers_dinov3(biased.state_dict()), tmp_path / "biased.pth")
    with pytest.raises(UserError, match=r"set model\.backbone\.name=vit_small_patch16_dinov3_qkvb"):
        built("vit_small_patch16_dinov3", str(tmp_path / "biased.pth"), **SMALL)
    plain = filled(timm.create_model("vit_small_patch14_dinov2", num_classes=0, **SMALL)).state_dict()
    torch.save(publishers_dinov2(plain), tmp_path / "plain.pth")
    with pytest.raises(UserError, match="give a checkpoint of this very model"):
        built("vit_small_patch14_reg4_dinov2", str(tmp_path / "plain.pth"), **SMALL)
    hugging_face = {f"encoder.layer.0.{name}": value for name, value in plain.items()}
    torch.save(hugging_face, tmp_path / "other.pth")
    with pytest.raises(UserError, match="give a checkpoint of this very model"):
        built("vit_small_patch14_dinov2", str(tmp_path / "other.pth"), **SMALL)


def test_towers_of_one_size_alone_are_refused() -> None:
    with pytest.raises(UserError, match=r"takes no image of 64x96 pixels, .*Swin"):
        built("hiera_tiny_224")
