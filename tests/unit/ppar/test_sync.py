"""The flat buffer: named views of one tensor."""

from __future__ import annotations

import pytest
import torch

from ppar_dist.ppar.sync import SyncBuffer

LAYOUT = {"a": (2, 3), "empty": (0,), "b": (1,), "c": (2, 1, 2)}


def test_views_tile_the_flat_tensor_in_order() -> None:
    buffer = SyncBuffer(LAYOUT)
    assert buffer.flat.shape == (11,)
    assert buffer.flat.dtype == torch.float32
    assert buffer.nbytes == 44
    for number, name in enumerate(LAYOUT):
        buffer.view(name).fill_(number)
    assert buffer.flat.tolist() == [0] * 6 + [2] + [3] * 4
    assert [buffer.start(name) for name in LAYOUT] == [0, 6, 6, 7]
    assert buffer.view("c").shape == (2, 1, 2)


def test_summing_flats_sums_every_entry() -> None:
    torch.manual_seed(0)
    ranks = [SyncBuffer(LAYOUT) for _ in range(3)]
    parts = [{name: torch.randn(shape) for name, shape in LAYOUT.items()} for _ in ranks]
    for buffer, part in zip(ranks, parts, strict=True):
        for name, value in part.items():
            buffer.add(name, value / 2)
            buffer.add(name, value / 2)  # micro-batches add up
    ranks[0].flat.add_(ranks[1].flat).add_(ranks[2].flat)
    for name in LAYOUT:
        torch.testing.assert_close(ranks[0].view(name), sum(part[name] for part in parts))
    ranks[0].zero()
    assert not ranks[0].flat.any()


def test_a_view_of_a_front_part() -> None:
    buffer = SyncBuffer(LAYOUT)
    buffer.view("b").fill_(5)
    head = buffer.flat[: buffer.start("c")].double()
    assert buffer.view("b", head).tolist() == [5]
    assert buffer.view("b", head).dtype == torch.float64


def test_no_gradient_and_no_broadcast_enters() -> None:
    buffer = SyncBuffer(LAYOUT)
    buffer.add("b", torch.ones(1, requires_grad=True) * 2)
    assert not buffer.flat.requires_grad
    assert buffer.view("b").tolist() == [2]
    with pytest.raises(ValueError, match=r"a has shape \(2, 3\), got \(3,\)"):
        buffer.add("a", torch.ones(3))
