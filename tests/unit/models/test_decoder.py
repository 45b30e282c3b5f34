"""Decoders: output grid, what reaches it, and no statistics of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppar_dist.config.model_section import DecoderConfig
from ppar_dist.models.decoder import build_decoder, group_norm

CHANNELS, STRIDES = (8, 12, 16, 20), (4.0, 8.0, 16.0, 32.0)


def pyramid(batch: int = 2) -> list[torch.Tensor]:
    grids = [(45, 60), (23, 30), (12, 15), (6, 8)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, *g, generator=generator) for c, g in zip(CHANNELS, grids, strict=True)]


@pytest.mark.parametrize("kind", ["fpn", "aspp"])
def test_every_level_reaches_the_finest_grid(kind: str) -> None:
    decoder = build_decoder(DecoderConfig(kind=kind, width=24), CHANNELS, STRIDES)
    levels = [level.requires_grad_() for level in pyramid()]
    out = decoder(levels)
    assert out.shape == (2, 24, 45, 60)
    out.square().sum().backward()
    used = [float(level.grad.abs().sum()) > 0 for level in levels if level.grad is not None]
    assert used == ([True] * 4 if kind == "fpn" else [True] * 3)  # ASPP: the finest and strides 16 and 32
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@pytest.mark.parametrize("kind", ["fpn", "aspp"])
def test_an_image_does_not_feel_its_batch_nor_any_noise(kind: str) -> None:
    decoder = build_decoder(DecoderConfig(kind=kind, width=24), CHANNELS, STRIDES).train()
    levels = pyramid()
    alone = torch.cat([decoder([level[i : i + 1] for level in levels]) for i in range(2)])
    torch.testing.assert_close(decoder(levels), alone, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout) for m in decoder.modules())


@pytest.mark.parametrize("width", [1, 2, 7, 8, 96, 100, 256])
def test_groups_divide_the_width(width: int) -> None:
    norm = group_norm(width)
    assert width % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert width < 4 or width // norm.num_groups >= 4
