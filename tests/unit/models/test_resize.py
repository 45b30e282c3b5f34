"""Resizing by matrix products against the library's bilinear interpolation, both ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ppar_dist.models.resize import resize_bilinear


@pytest.mark.parametrize(
    ("grid", "size"),
    [((8, 10), (15, 20)), ((4, 5), (15, 20)), ((3, 3), (3, 3)), ((1, 2), (7, 5)), ((9, 7), (4, 3))],
)
def test_values_and_gradients_are_those_of_interpolate(grid: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = torch.randn(2, 5, *grid, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    wanted = F.interpolate(theirs, size, mode="bilinear", align_corners=False)
    found = resize_bilinear(ours, size)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(wanted)
    found.backward(upstream)
    wanted.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_under_autocast_it_runs_in_bf16() -> None:
    features = torch.randn(1, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize_bilinear(features, (6, 6))
    wanted = F.interpolate(features, (6, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.05)
