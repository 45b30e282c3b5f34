"""Images per second and MFU, and FLOPs against what is multiplied by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ppar_dist.distributed.world import World
from ppar_dist.models.segmentor import Prediction, Segmentor, build_segmentor
from ppar_dist.training import throughput as module
from ppar_dist.training.parts import compile_parts, recompute
from ppar_dist.training.throughput import Throughput, flops_per_image, throughput
from tests.unit.tiny_run import CLASSES, make_config


class Small(nn.Module):
    """A convolution 3x3 of stride 2, batch norm, attention over the cells, and a linear layer on each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)

    def forward(self, images: Tensor, dense: bool) -> Prediction:
        maps = self.norm(self.conv(images.float() / 255))
        cells = maps.flatten(2).mT[:, None]  # (B, 1, hw, 8)
        mixed = nn.functional.scaled_dot_product_attention(cells, cells, cells)
        return Prediction(self.linear(mixed), maps if dense else maps[..., :0, :0])


def by_hand(height: int, width: int, conv: bool = True, linear: bool = True) -> int:
    """A multiplication and an addition are 2. The gradient of weights costs as much as the layer, and so does
    that of its input: of images there is none."""
    cells = height * width // 4
    of_conv, product, of_linear = 2 * cells * 8 * 27, 2 * cells * cells * 8, 2 * cells * 8 * 5
    attention = 2 * product + 4 * product  # q·k and p·v; each has two gradients
    return of_conv * (2 if conv else 1) + attention + of_linear * (3 if linear else 2)


def flops(model: nn.Module, size: tuple[int, int]) -> float:
    return flops_per_image(model, size, True)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(8, 8), (16, 12)])
def test_flops_are_those_counted_by_hand(size: tuple[int, int]) -> None:
    model = Small()
    assert flops(model, size) == by_hand(*size)
    model.linear.requires_grad_(False)
    assert flops(model, size) == by_hand(*size, linear=False)


def test_a_frozen_layer_costs_its_forward_pass_alone() -> None:
    model = Small()
    model.conv.requires_grad_(False)
    assert flops(model, (8, 8)) == by_hand(8, 8, conv=False)


def test_counting_leaves_the_model_as_it_is() -> None:
    model = Small()
    torch.manual_seed(7)
    before, noise = {name: value.clone() for name, value in model.state_dict().items()}, torch.rand(4)
    torch.manual_seed(7)
    flops(model, (8, 8))
    assert torch.equal(torch.rand(4), noise)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(each.training for each in model.modules())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_segmentor_costs_what_a_real_pass_does(tmp_path: Path, bf16: bool) -> None:
    config = make_config(tmp_path, tmp_path / "run", refit={"prototypes": True})
    segmentor, _ = build_segmentor(config, CLASSES, load_weights=False)
    segmentor.bf16 = bf16
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:  # torch's, of real tensors
        found = segmentor.train()(images, True)
        (found.logits.sum() + found.dense.sum()).backward()
    assert flops_per_image(segmentor, (32, 48), True) == counter.get_total_flops()


def test_neither_recomputation_nor_compilation_changes_what_counts(tmp_path: Path) -> None:
    _, segmentor = segmentor_of(tmp_path)
    expected = flops_per_image(segmentor, (32, 48), True)
    assert recompute(segmentor) > 0
    kinds = [type(part) for part in segmentor.modules()]
    assert flops_per_image(segmentor, (32, 48), True) == expected
    assert [type(part) for part in segmentor.modules()] == kinds
    compile_parts(segmentor)  # at their next call
    assert flops_per_image(segmentor, (32, 48), True) == expected


def segmentor_of(folder: Path, **engine: Any) -> tuple[Any, Segmentor]:
    config = make_config(folder, folder / "run", engine=engine)
    return config, build_segmentor(config, CLASSES, load_weights=False)[0]


def test_mfu_is_of_all_ranks(tmp_path: Path) -> None:
    config, model = segmentor_of(tmp_path, peak_tflops=0.5)
    found = throughput(config, World(rank=0, world_size=4), model)
    per_image = flops_per_image(model, config.data.crop, True)
    assert (found.images, found.flops, found.peak) == (4, per_image, 2e12)
    assert found.images_per_second(0.25) == 16.0
    assert found.mfu(16.0) == pytest.approx(16 * per_image / (4 * 0.5e12))
    assert "peak of all ranks 2 TFLOP/s" in found.lines()[0]


def test_without_a_peak_there_is_no_mfu(tmp_path: Path) -> None:
    config, model = segmentor_of(tmp_path)
    found = throughput(config, World(), model)
    assert found == Throughput(4)
    assert (found.mfu(16.0), found.lines()) == (None, [])


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA A100-SXM4-80GB", 312e12), ("Some Card 9000", None)])
def test_the_peak_of_a_gpu_is_looked_up_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    config, model = segmentor_of(tmp_path)
    assert throughput(config, World(device=torch.device("cuda", 0)), model).peak == peak


def test_a_model_that_cannot_be_counted_has_no_mfu_and_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(module, "flops_per_image", fail)
    config, model = segmentor_of(tmp_path, peak_tflops=1.0)
    assert throughput(config, World(), model).mfu(1.0) is None
    assert "so there is no MFU: RuntimeError: data-dependent" in caplog.text
