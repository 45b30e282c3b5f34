"""What a job needs of GPUs, told without one, against models that really run and sums done by hand."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ppar_dist.cli.parser import main
from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.device_cost import (
    ImageCost,
    image_cost,
    images_per_second,
    largest_micro_batch,
    rank_bytes,
    rank_memory,
)
from ppar_dist.doctor.device_probe import DeviceProbe
from ppar_dist.models.losses import segmentation_loss
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.training.engine import BUCKET_ELEMENTS
from tests.ranks import tiny_config
from tests.unit.doctor.worlds import Doctor

COST = ImageCost(
    parameters=1000,
    trained=800,
    forward_flops=1e9,
    train_flops=3e9,
    fp32_flops=0.0,
    teacher_flops=1e9,
    activation_bytes=1e9,
    copy_bytes=100.0,
)


def test_the_probe_counts_bytes_while_they_are_held() -> None:
    with DeviceProbe("cpu") as probe:
        first = torch.zeros(1000)  # 4000 bytes, given out as 4096
        second = first + 1
        view = second[:10]
        assert (probe.held, probe.peak) == (8192, 8192)
        del first, second
        gc.collect()
        assert probe.held == 4096, "the view holds what it looks at"
        del view
        gc.collect()
        assert (probe.held, probe.peak) == (0, 8192)
        assert probe.operations == {"aten.zeros": 1, "aten.add": 1}


def test_operations_are_those_that_torch_counts_of_a_model_that_runs(blocks: Path, tmp_path: Path) -> None:
    config = _tiny(blocks, tmp_path)
    case = ConfigCase(config)
    cost = image_cost(config, case.segmentor)
    model = _real(case)
    with FlopCounterMode(display=False) as counter:
        loss = _loss(model, config, 3)
        forward = counter.get_total_flops()
        loss.backward()
    assert cost.forward_flops == pytest.approx(forward / 3, rel=0.001)
    assert cost.train_flops == pytest.approx(counter.get_total_flops() / 3, rel=0.001)
    assert cost.fp32_flops == cost.train_flops, "engine.precision is fp32"
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_activations_are_what_autograd_keeps(blocks: Path, tmp_path: Path) -> None:
    config = _tiny(blocks, tmp_path)
    case = ConfigCase(config)
    model = _real(case)
    kept = _kept(model, config, 3) - _kept(model, config, 2)
    assert image_cost(config, case.segmentor).activation_bytes == pytest.approx(kept, rel=0.1)


def test_bf16_halves_activations_and_leaves_the_classifier_in_fp32(blocks: Path, tmp_path: Path) -> None:
    full, half = (_tiny(blocks, tmp_path, precision) for precision in ("fp32", "bf16"))
    segmentor = ConfigCase(full).segmentor
    whole, mixed = image_cost(full, segmentor), image_cost(half, segmentor)
    assert mixed.train_flops == whole.train_flops
    assert 0 < mixed.fp32_flops < 0.5 * mixed.train_flops
    assert 0.4 * whole.activation_bytes < mixed.activation_bytes < 0.95 * whole.activation_bytes
    assert not segmentor.bf16, "the model stays as it is"


@pytest.mark.parametrize(
    ("stage", "optimizer", "gradients"), [(0, 6400, 3200), (1, 2400, 3200), (2, 2400, 800)]
)
def test_memory_of_a_rank_follows_the_stage(
    stage: int, optimizer: int, gradients: int, blocks: Path, tmp_path: Path
) -> None:
    config = _tiny(blocks, tmp_path, zero_stage=stage)
    memory = rank_memory(COST, config, 4)
    assert (memory.parameters, memory.teacher) == (4000, 4000)
    assert (memory.optimizer, memory.gradients) == (optimizer, gradients)
    buckets = 8 * BUCKET_ELEMENTS if stage else 0
    assert memory.fixed == 4000 + 4000 + optimizer + 100 + buckets


def test_gradients_and_activations_meet_where_a_step_has_several_micro_batches(
    blocks: Path, tmp_path: Path
) -> None:
    config = _tiny(blocks, tmp_path, zero_stage=0)
    memory = rank_memory(COST, config, 1)
    cut = batching(config, 1)
    assert cut.accumulation == 1
    assert rank_bytes(COST, memory, cut) == memory.fixed + 6e9
    several = batching(
        config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": 2})}), 1
    )
    assert rank_bytes(COST, memory, several) == memory.fixed + 2e9 + memory.gradients


def test_frozen_matrices_in_bf16_take_half(blocks: Path, tmp_path: Path) -> None:
    """What the estimate counts is what the tower's parameters take, and the model stays as it is."""
    plain = _tiny(blocks, tmp_path)
    backbone = plain.model.backbone.model_copy(update={"trainable": "none", "frozen_dtype": "bfloat16"})
    config = plain.model_copy(update={"model": plain.model.model_copy(update={"backbone": backbone})})
    model = ConfigCase(config).segmentor
    memory = rank_memory(image_cost(config, model), config, 1)
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    model.backbone.keep_frozen_in_bf16()
    assert memory.parameters == memory.teacher == sum(each.nbytes for each in model.parameters())
    assert memory.parameters < 4 * sum(each.numel() for each in model.parameters())


def test_the_largest_micro_batch_fits_and_one_more_does_not(blocks: Path, tmp_path: Path) -> None:
    memory = rank_memory(COST, _tiny(blocks, tmp_path, zero_stage=0), 1)
    most = largest_micro_batch(COST, memory, 24e9)
    usable = 0.95 * (24e9 - 1.5 * 2**30) - memory.fixed
    assert most * COST.activation_bytes <= usable < (most + 1) * COST.activation_bytes
    assert largest_micro_batch(COST, memory, 1e9) == 0


def test_the_rate_counts_the_teacher() -> None:
    assert images_per_second(COST, 100.0) == pytest.approx(0.4 * 100e12 / 4e9)


def test_doctor_tells_what_a_device_will_need(doctor: Doctor) -> None:
    plain = doctor("--device", "A100")
    cost, memory = plain["cost of an image"]["facts"], plain["device memory"]["facts"]
    assert cost["trained"] == plain["model"]["facts"]["trained"]
    assert memory["peak_bytes"] > 8 * cost["parameters"]
    most = plain["largest micro-batch"]["facts"]["largest_micro_batch"]
    assert 0 < most["24"] < most["40"] < most["80"]
    loader = plain["loader rate"]
    assert loader["facts"]["peak_tflops"] == 312
    assert "measured on 2 sources here" in loader["found"]
    assert loader["status"] == "warning"
    assert "takes more than 128 cores" in loader["found"], "no machine can feed so small a model"
    assert "data.workers" not in loader["remedy"]
    assert "cost of an image" not in doctor()


def test_a_device_that_nobody_knows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "demo", "--device", "abacus"]) == 78
    assert "--device is cuda or one of A10" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert main(["doctor", str(tmp_path), "--device", "cuda"]) == 78
    assert "--device has no effect" in capsys.readouterr().err
    for option in ("--nproc 2", "--nodes 2", "--quick"):
        assert main(["doctor", str(tmp_path), *option.split()]) == 78
        assert f"{option.split()[0]} has no effect" in capsys.readouterr().err


def _tiny(blocks: Path, tmp_path: Path, precision: str = "fp32", zero_stage: int = 0) -> Config:
    tree = tiny_config(
        blocks,
        tmp_path / "run",
        engine={"precision": precision, "zero_stage": zero_stage},
        ppar={"bank": {"teacher": "frozen"}},
    )
    return parse_config(tree)


def _real(case: ConfigCase) -> Segmentor:
    """The model in memory, with values of no meaning."""
    model = case.segmentor.to_empty(device="cpu").train()
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.constant_(tensor.detach(), 0.01)
    return model


def _loss(model: Segmentor, config: Config, images: int) -> torch.Tensor:
    prediction = model(torch.full((images, 3, *config.data.crop), 7.0))
    labels = torch.zeros(images, *config.data.crop, dtype=torch.uint8)
    return segmentation_loss(prediction.logits, labels).mean() + prediction.dense.mean()


def _kept(model: Segmentor, config: Config, images: int) -> int:
    """Bytes that autograd saves for the backward pass, each storage once, but for parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _loss(model, config, images)
    assert loss.requires_grad
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own)
