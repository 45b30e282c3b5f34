"""How fast a run computes: images per second, and which share of its devices' peak that takes (MFU)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ppar_dist.config.schema import Config
from ppar_dist.distributed.world import World
from ppar_dist.models.segmentor import Prediction, Segmentor
from ppar_dist.training.device_peaks import peak_tflops
from ppar_dist.training.parts import compute_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Throughput:
    """What turns the seconds of a step into figures.

    Attributes:
        images: of a step, over all ranks.
        flops: floating point operations of an image, forward and backward; None where nothing asks for them.
        peak: operations per second that the devices of all ranks can do together; None where unknown.
    """

    images: int
    flops: float | None = None
    peak: float | None = None

    def images_per_second(self, seconds: float) -> float:
        """Of the whole job, whose step took ``seconds``, waiting for data included."""
        return self.images / max(seconds, 1e-9)

    def lines(self) -> list[str]:
        """What MFU is made of, where there is one."""
        if self.flops is None or self.peak is None:
            return []
        flops, peak = f"{self.flops / 1e9:.4g} GFLOP", f"{self.peak / 1e12:g} TFLOP/s"
        return [f"model: {flops} for an image of training; peak of all ranks {peak}"]

    def mfu(self, images_per_second: float) -> float | None:
        """Model FLOPs utilisation, 1 is the peak; None where FLOPs or peak are unknown."""
        if self.flops is None or not self.peak:
            return None
        return images_per_second * self.flops / self.peak


def throughput(config: Config, world: World, model: nn.Module) -> Throughput:
    """The figures of a job; the FLOPs of its ``model`` are counted only where a peak is known.

    All ranks are taken to have the device of this one. Takes a second at most, and no device time.
    """
    images, tflops = config.train.global_batch, _peak_tflops(config, world.device)
    if tflops is None:
        return Throughput(images)
    assert isinstance(model, Segmentor)
    try:
        flops = flops_per_image(model, config.data.crop, config.ppar.enabled)
    except Exception as error:  # a layer that cannot be traced without data
        text = "the model's FLOPs cannot be counted, so there is no MFU: %s: %s"
        log.warning(text, type(error).__name__, error)
        return Throughput(images)
    return Throughput(images, flops, world.world_size * tflops * 1e12)


def flops_per_image(model: Segmentor, size: tuple[int, int], dense: bool) -> float:
    """Floating point operations of one training image: a multiplication and an addition count as two.

    Matrix products, convolutions and attention are counted, forward and backward, as the model asks for them:
    neither what is recomputed, nor a teacher's pass, nor the losses. Works on tensors without data, of a copy
    of the model without its weights: the model stays as it is.

    Args:
        model: a segmentor, on any device.
        size: height and width of the image in pixels.
        dense: whether training asks for the dense features too.
    """
    from torch.utils.flop_counter import flop_registry  # late: 0.3 s, and not every run has a peak

    fakes = FakeTensorMode(allow_non_fake_inputs=True)  # constants that a layer keeps besides
    known: dict[int, object] = {id(buffer): fakes.from_tensor(buffer) for buffer in model.buffers()}
    for parameter in model.parameters():
        known[id(parameter)] = nn.Parameter(fakes.from_tensor(parameter.detach()), parameter.requires_grad)
    bare = copy.deepcopy(model, known).eval()  # without noise, and batch norm takes a single image
    compute_once(bare)
    bare.training = True  # the segmentor itself: in evaluation prototypes correct its logits
    device = next(model.parameters()).device
    with fakes, sdpa_kernel(SDPBackend.MATH), _Counter(flop_registry) as counter:
        image = torch.empty(1, 3, *size, dtype=torch.uint8, device=device)
        found: Prediction = bare(image, dense)
        (found.logits.sum() + found.dense.sum()).backward()  # type: ignore[no-untyped-call]
    return float(counter.flops)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up torch's own formulas; its FlopCounterMode gives the same in a multiple of the time."""

    def __init__(self, formulas: Mapping[Any, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas, self.flops = formulas, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _peak_tflops(config: Config, device: torch.device) -> float | None:
    """Of one device: as configured, or by its name."""
    if config.engine.peak_tflops is not None:
        return config.engine.peak_tflops
    return peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
