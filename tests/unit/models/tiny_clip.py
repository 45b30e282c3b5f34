"""Tiny open_clip models, registered under names of their own, with random weights everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-rn": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}},
    "tiny-rn-quickgelu": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
        "quick_gelu": True,
    },
    "tiny-rn-cell": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}},
    "tiny-vit": {"vision_cfg": VIT},
    "tiny-vit-quickgelu": {"vision_cfg": VIT, "quick_gelu": True},
    "tiny-vit-custom": {"vision_cfg": {**VIT, "qk_norm": True}},
    "tiny-eva": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": None,
        },
    },
    "tiny-siglip": {
        "embed_dim": 192,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "map",
            "timm_proj": "none",
        },
    },
    "tiny-convnext": {
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "convnext_atto",
            "timm_pool": "",
            "timm_proj": "linear",
        }
    },
    "tiny-swin": {
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "swin_tiny_patch4_window7_224",
            "timm_pool": "",
            "timm_proj": "linear",
        }
    },
}


def register(folder: Path) -> None:
    """Make the tiny models known to open_clip."""
    for name, config in CONFIGS.items():
        text = {"embed_dim": 16, "text_cfg": TEXT, **config}
        (folder / f"{name}.json").write_text(json.dumps(text), encoding="utf-8")
    open_clip.add_model_config(folder)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Overwrite every parameter and running statistic: what starts at 0 or 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module


def tower(name: str, seed: int = 0) -> Any:
    """A tiny open_clip model with random weights, in eval mode."""
    return randomise(open_clip.create_model(name), seed).eval()


def noise(height: int, width: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Prepared images (B, 3, H, W)."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
