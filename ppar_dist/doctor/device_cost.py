"""What a configuration costs on an accelerator, without one: `ppar-dist doctor CONFIG --device NAME`.

The model runs forward and backward on FakeTensors, which have shapes and dtypes but no values: operations and
bytes are counted exactly, times are not measured at all. Rates follow from a device's peak and a share of it
that trainings of this kind reach.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ppar_dist.config.schema import Config
from ppar_dist.data.batches import Batching
from ppar_dist.data.loader import order_of
from ppar_dist.data.reading import SampleReader
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.style_bank import style_bank
from ppar_dist.data.transforms import TrainTransform
from ppar_dist.doctor.device_probe import DeviceProbe
from ppar_dist.models.losses import segmentation_loss
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.training.engine import BUCKET_ELEMENTS
from ppar_dist.training.parts import recompute

MFU = 0.4  # of a device's peak that a training reaches
LOADER_MS = 15.6  # of CPU per image: a JPEG of 1914×1052, cropped to 512, on an AMD EPYC; where none is there
_PROBED = 12  # images that are loaded to measure it
_FLOAT = 4  # bytes
RESERVED = 1.5 * 2**30  # bytes of a device: context, work spaces of libraries
_USABLE = 0.95  # of the rest; fragmentation takes what is missing


@dataclass(frozen=True)
class ImageCost:
    """What a model needs for an image; FLOPs count a multiplication and an addition as two."""

    parameters: int
    trained: int
    forward_flops: float
    train_flops: float  # forward and backward, with what is computed again
    fp32_flops: float  # of those, in fp32
    teacher_flops: float  # of the teacher's forward pass, spread over the steps without it; 0: no teacher
    activation_bytes: float  # held for the backward pass, for each image of a micro-batch
    copy_bytes: float  # held for it whatever the images are: weights in bf16, or frozen ones made float32
    halved: int = 0  # of the parameters, frozen and kept in bf16
    calls: float = 0.0  # that the host makes for a micro-batch, forward and backward, teacher included


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank holds during a step, but for activations."""

    parameters: int
    optimizer: int  # moments of AdamW, and the fp32 copy that ZeRO updates; this rank's part of both
    teacher: int
    copies: int  # weights in bf16
    buckets: int  # in which gradients are gathered to be reduced
    gradients: int  # they grow while activations go: a step of one micro-batch never holds both whole
    average: int = 0  # of the weights

    @property
    def fixed(self) -> int:
        """All but the gradients."""
        kept = self.parameters + self.optimizer + self.teacher + self.average
        return kept + self.copies + self.buckets


def image_cost(config: Config, model: Segmentor) -> ImageCost:
    """Count a training step of a small micro-batch; ``model``, on any device, stays as it is."""
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    few, more = 2, 3  # images: what grows between them is theirs
    with FakeTensorMode(allow_non_fake_inputs=True), DeviceProbe("cpu") as probe:
        segmentor = _without_values(model).train()
        segmentor.bf16 = config.engine.precision == "bf16"
        halved = 0
        if config.model.backbone.frozen_dtype == "bfloat16":
            halved = segmentor.backbone.keep_frozen_in_bf16().values
        _normalise_in_fp32(segmentor)
        if config.model.backbone.checkpointing:
            recompute(segmentor)
        before = probe.held
        held_by_few = _held(segmentor, config, probe, few) - before
        probe.reset()
        loss = _loss(segmentor, config, more)
        activations, forward = probe.held - before - held_by_few, probe.flops.total()
        torch.autograd.backward(loss)
        flops, fp32 = probe.flops.total(), probe.flops[torch.float32]
        teacher, calls = 0.0, float(probe.operations.total())
        if _has_teacher(config):
            teacher = _teacher_flops(segmentor, config, probe) / config.ppar.bank.teacher_every
            calls += probe.operations.total() / config.ppar.bank.teacher_every
    return ImageCost(
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, is_trained in sizes if is_trained),
        forward_flops=forward / more,
        train_flops=flops / more,
        fp32_flops=fp32 / more,
        teacher_flops=teacher,
        activation_bytes=activations / (more - few),
        copy_bytes=held_by_few - few * activations / (more - few),
        calls=calls,
        halved=halved,
    )


def rank_memory(cost: ImageCost, config: Config, ranks: int) -> RankMemory:
    """What a rank of ``ranks`` holds besides activations, under the ZeRO stage of ``config``."""
    stage, trained = config.engine.zero_stage, _FLOAT * cost.trained
    all_of = _FLOAT * cost.parameters - _FLOAT // 2 * cost.halved
    part = -(-trained // ranks)
    return RankMemory(
        parameters=all_of,
        optimizer=3 * part if stage else 2 * trained,
        teacher=all_of if _has_teacher(config) else 0,
        copies=round(cost.copy_bytes),
        buckets=(2 if ranks > 1 else 1) * _FLOAT * BUCKET_ELEMENTS if stage else 0,
        gradients=part if stage == 2 else trained,
        average=trained if config.train.weight_average is not None else 0,
    )


def largest_micro_batch(cost: ImageCost, memory: RankMemory, device_bytes: float) -> int:
    """Images that fit into a device of so many bytes at once, where they are a whole step; 0: none."""
    left = (device_bytes - RESERVED) * _USABLE - memory.fixed
    return max(0, int(left // cost.activation_bytes)) if left > memory.gradients else 0


def rank_bytes(cost: ImageCost, memory: RankMemory, cut: Batching) -> float:
    """What tensors of a rank take of its device at the peak of a step."""
    activations = cut.micro_batch * cost.activation_bytes
    if cut.accumulation > 1:  # the gradient of the micro-batches before is there from the start
        return memory.fixed + activations + memory.gradients
    return memory.fixed + max(activations, memory.gradients)


def images_per_second(cost: ImageCost, tflops: float) -> float:
    """What a device of this peak trains at `MFU`."""
    return MFU * tflops * 1e12 / (cost.train_flops + cost.teacher_flops)


def cpu_image_s(config: Config, model: Segmentor) -> float:
    """Seconds in which this CPU trains an image, by a forward and backward pass of two that really run.

    ``model`` has values, which stay as they are; of a teacher nothing is measured.
    """
    images = 2
    model.train()
    model.bf16 = config.engine.precision == "bf16"
    for _ in range(2):  # the first pays for what is set up once
        began = time.perf_counter()
        torch.autograd.backward(_loss(model, config, images))
        seconds = time.perf_counter() - began
    model.zero_grad()
    return seconds / images


def loader_ms(config: Config, indexes: list[DomainIndex]) -> float:
    """Milliseconds of CPU that a few of the configuration's own images take from shard to crop.

    Raises:
        SampleError: none of several samples can be read.
    """
    transform = TrainTransform(config.augment, config.data, config.seed, style_bank(config, indexes))
    reader = SampleReader(order_of(config, indexes), indexes, transform)
    reader.read(0)  # opens shards and loads what is loaded once
    began = time.process_time()
    for position in range(1, 1 + _PROBED):
        reader.read(position)
    return 1000 * (time.process_time() - began) / _PROBED


def _without_values(model: Segmentor) -> Segmentor:
    """A copy on the CPU; within FakeTensorMode its tensors have no values."""
    known: dict[int, Tensor] = {
        id(each): torch.empty(each.shape, dtype=each.dtype) for each in model.buffers()
    }
    for each in model.parameters():
        known[id(each)] = nn.Parameter(torch.empty(each.shape, dtype=each.dtype), each.requires_grad)
    return copy.deepcopy(model, known)


def _has_teacher(config: Config) -> bool:
    return config.ppar.enabled and config.ppar.bank.teacher != "student"


def _normalise_in_fp32(model: Segmentor) -> None:
    """As autocast does on GPUs, and on CPUs does not: what is held for the backward pass is larger."""
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.register_forward_pre_hook(lambda _, inputs: tuple(each.float() for each in inputs))


def _held(segmentor: Segmentor, config: Config, probe: DeviceProbe, images: int) -> int:
    """Bytes held when the forward pass has ended."""
    loss = _loss(segmentor, config, images)
    assert loss.requires_grad
    return probe.held


def _loss(segmentor: Segmentor, config: Config, images: int) -> Tensor:
    """A loss that sends gradients wherever training does."""
    labels = torch.zeros(images, *config.data.crop, dtype=torch.uint8)
    prediction = segmentor(_images(config, images), config.ppar.enabled)
    loss = segmentation_loss(prediction.logits, labels).mean()
    return loss + prediction.dense.float().mean() if config.ppar.enabled else loss


@torch.no_grad()
def _teacher_flops(segmentor: Segmentor, config: Config, probe: DeviceProbe) -> float:
    probe.reset()
    segmentor.dense(_images(config, 1))
    return float(probe.flops.total())


def _images(config: Config, images: int) -> Tensor:
    return torch.zeros(images, 3, *config.data.crop)
