"""Decoders: output grid, what reaches it, and no statistics of the batch, any size in one program."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from ppar_dist.config.model_section import DecoderConfig
from ppar_dist.errors import UserError
from ppar_dist.models.decoder import build_decoder, group_norm

KINDS = ("fpn", "aspp", "upernet", "segformer", "dpt")
CHANNELS, STRIDES = (8, 12, 16, 20), (4.0, 8.0, 16.0, 32.0)


def pyramid(batch: int = 2) -> list[torch.Tensor]:
    grids = [(45, 60), (23, 30), (12, 15), (6, 8)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, *g, generator=generator) for c, g in zip(CHANNELS, grids, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_reaches_the_finest_grid(kind: str) -> None:
    decoder = build_decoder(DecoderConfig(kind=kind, width=24), CHANNELS, STRIDES)
    levels = [level.requires_grad_() for level in pyramid()]
    out = decoder(levels)
    assert out.shape == (2, 24, 45, 60)
    out.square().sum().backward()
    used = [float(level.grad.abs().sum()) > 0 for level in levels if level.grad is not None]
    assert used == [True] * (3 if kind == "aspp" else 4)  # ASPP: the finest and strides 16 and 32
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_feel_its_batch_nor_any_noise(kind: str) -> None:
    decoder = build_decoder(DecoderConfig(kind=kind, width=24), CHANNELS, STRIDES).train()
    levels = pyramid()
    alone = torch.cat([decoder([level[i : i + 1] for level in levels]) for i in range(2)])
    torch.testing.assert_close(decoder(levels), alone, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout) for m in decoder.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_many_micro_batches_is_the_step_of_one_batch(kind: str) -> None:
    """As ranks share a batch: gradients of single images add up to those of all, up to rounding."""
    decoder = build_decoder(DecoderConfig(kind=kind, width=24), CHANNELS, STRIDES).train().double()
    levels = [level.double() for level in pyramid(3)]
    decoder(levels).square().sum().backward()
    whole = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    for i in range(3):
        decoder([level[i : i + 1] for level in levels]).square().sum().backward()
    for name, parameter in decoder.named_parameters():
        rounding = 1e-12 * float(whole[name].abs().max())
        torch.testing.assert_close(parameter.grad, whole[name], atol=rounding, rtol=1e-9, msg=name)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_one_exported_program_takes_every_size(kind: str) -> None:
    decoder = build_decoder(DecoderConfig(kind=kind, width=8), CHANNELS, STRIDES).eval()
    rows, columns = Dim("rows", min=2), Dim("columns", min=2)
    grids = [{2: share * rows, 3: share * columns} for share in (8, 4, 2, 1)]
    program = torch.export.export(decoder, (grid_of(3, 4),), dynamic_shapes=(grids,)).module()
    for size in ((2, 5), (5, 2)):
        levels = grid_of(*size)
        torch.testing.assert_close(program(levels), decoder(levels), atol=1e-5, rtol=1e-4)


def grid_of(rows: int, columns: int) -> list[torch.Tensor]:
    shares = zip(CHANNELS, (8, 4, 2, 1), strict=True)
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, c, n * rows, n * columns, generator=generator) for c, n in shares]


def test_dpt_fuses_as_its_blocks_are_written() -> None:
    """The library projects after the resizing; that is the same, on four times the cells."""
    decoder = build_decoder(DecoderConfig(kind="dpt", width=24), CHANNELS, STRIDES).eval()
    levels = pyramid()
    merged: torch.Tensor | None = None
    for number in (3, 2, 1, 0):
        block, level = decoder.fusion[3 - number], decoder.reassemble[number](levels[number])
        features = block.residual_conv_block1(level)
        if merged is not None:
            resized = F.interpolate(merged, level.shape[2:], mode="bilinear", align_corners=False)
            features = features + decoder.fusion[2 - number].project(resized)
        merged = block.residual_conv_block2(features)
    expected = decoder.fusion[3].project(merged)
    torch.testing.assert_close(decoder(levels), expected, atol=1e-5, rtol=1e-4)


def test_segformers_head_is_a_projection_of_joined_levels() -> None:
    decoder = build_decoder(DecoderConfig(kind="segformer", width=24), CHANNELS, STRIDES).eval()
    levels = pyramid()
    projections = list(decoder.head.mlp_stage)  # coarse to fine
    joined = [
        F.interpolate(
            torch.einsum("wc,bcij->bwij", p.linear.weight, level) + p.linear.bias[:, None, None],
            (45, 60),
            mode="bilinear",
            align_corners=False,
        )
        for p, level in zip(projections, reversed(levels), strict=True)
    ]
    torch.testing.assert_close(
        decoder(levels), decoder.head.fuse_stage(torch.cat(joined, 1)), atol=1e-5, rtol=1e-4
    )


def test_a_decoder_whose_library_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r"ppar-dist\[decoders\].*fpn or aspp"):
        build_decoder(DecoderConfig(kind="upernet"), CHANNELS, STRIDES)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 96, 100, 256])
def test_groups_divide_the_width(width: int) -> None:
    norm = group_norm(width)
    assert width % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert width < 4 or width // norm.num_groups >= 4
