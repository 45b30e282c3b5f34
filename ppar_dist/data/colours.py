"""Colours and blur of a crop: the loader settles what happens to them, the device does it.

Brightness, contrast, saturation, hue and grey are affine in RGB, so all that is drawn of them is one 3x4
matrix. Clamping, a gamma, a blur and a random convolution follow. Nothing depends on other samples of a
batch, and what is to be done is known on the host: no device is waited for.

Letters: B samples, (H, W) pixels of the crop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

Array = npt.NDArray[np.float64]
Row = tuple[float, float, float, float]  # weights of red, green and blue, and what is added
Step = Callable[[float], tuple[Array, Array | float]]
"""Mean grey of the pixels it meets → (3, 3) matrix and (3,) addend, or one for all three."""

_LUMA = np.array([0.299, 0.587, 0.114])  # grey of red, green and blue (ITU-R BT.601)
# RGB → YIQ: grey, and a plane of colours in which a turn changes the hue alone.
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)
_SAME: tuple[Row, Row, Row] = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))
_CENTRE = (123.0, 117.0, 104.0)  # mean colour, about which a random convolution filters
_REACH = 5  # pixels that a blur looks to each side: more than three sigmas of the strongest


class Colours(NamedTuple):
    """What happens to the colours of a crop of values 0 to 255, in this order; by default nothing."""

    matrix: tuple[Row, Row, Row] | None = None  # rows make red, green and blue, then clamped; None: they stay
    gamma: float = 1.0
    sigma: float = 0.0  # of the Gaussian blur, in pixels of the crop; 0: none
    kernel: tuple[float, ...] | None = None  # 81 weights (out, in, 3, 3) of a convolution; None: none


def brightness(factor: float) -> Step:
    """Colours times ``factor``."""
    return lambda grey: (factor * np.eye(3), 0.0)


def contrast(factor: float) -> Step:
    """Away from the mean grey of the crop, or towards it."""
    return lambda grey: (factor * np.eye(3), (1.0 - factor) * grey)


def saturation(factor: float) -> Step:
    """Away from each pixel's grey, or towards it: 0 makes the crop grey."""
    return lambda grey: (factor * np.eye(3) + (1.0 - factor) * _LUMA, 0.0)


def hue(turn: float) -> Step:
    """Round the circle of hues by this part of it; grey stays."""
    angle = -2.0 * math.pi * turn  # red goes to yellow, as in HSV
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    return lambda grey: (_RGB @ rotation @ _YIQ, 0.0)


def random_kernel(rng: np.random.Generator) -> tuple[float, ...]:
    """The filter of RandConv, mixed with the image.

    Xu et al., "Robust and generalizable visual representation learning via random convolutions", ICLR 2021.

    With a size k of 1 or 3, weights Θ ~ N(0, 1 / (3 k²)) and a share α ~ U(0, 1), a centred image x becomes
    ``α x + (1 - α) Θ * x``. Both terms are linear, so that one kernel does both. Unlike the paper's, the
    result is clamped to what an image can hold, and k is at most 3.

    Args:
        rng: the generator of one position.

    Returns:
        81 weights, (out, in, 3, 3) in C order.
    """
    narrow, share = rng.random(2).tolist()
    kernel = np.zeros((3, 3, 3, 3))
    if narrow < 0.5:
        kernel[:, :, 1, 1] = rng.normal(0.0, 1.0 / math.sqrt(3), (3, 3))
    else:
        kernel[:] = rng.normal(0.0, 1.0 / math.sqrt(27), (3, 3, 3, 3))
    kernel *= 1.0 - share
    kernel[range(3), range(3), 1, 1] += share
    return tuple(kernel.ravel().tolist())


def composed(steps: Sequence[Step], crop: UInt8[Tensor, "3 H W"]) -> tuple[Row, Row, Row] | None:
    """The one matrix of these steps, taken in turn on a crop; None of none.

    The mean that a contrast needs is the crop's, exactly, as the steps before leave it.
    """
    if not steps:
        return None
    mean = _mean(crop)
    matrix, addend = np.eye(3), np.zeros(3)
    for step in steps:
        factors, more = step(float(_LUMA @ (matrix @ mean + addend)))
        matrix, addend = factors @ matrix, factors @ addend + more
    red, green, blue = np.column_stack([matrix, addend]).tolist()
    return tuple(red), tuple(green), tuple(blue)


def _mean(crop: UInt8[Tensor, "3 H W"]) -> Array:
    """Mean red, green and blue: whole rows first, which numpy adds side by side."""
    _, height, width = crop.shape
    rows = crop.permute(1, 2, 0).numpy().reshape(height, width * 3)  # no copy of what is channels last
    sums = rows.sum(axis=0, dtype=np.uint32).reshape(width, 3).sum(axis=0)
    mean: Array = sums / (height * width)
    return mean


def recoloured(images: UInt8[Tensor, "B 3 H W"], colours: Sequence[Colours]) -> Float[Tensor, "B 3 H W"]:
    """Images of values 0 to 255 with their colours changed, on the device where they are.

    Each sample has the same pixels in any batch, and those that came where nothing is drawn for it.
    """
    return all_at_once(images, colours) if images.is_cuda else one_by_one(images, colours)


def one_by_one(images: UInt8[Tensor, "B 3 H W"], colours: Sequence[Colours]) -> Float[Tensor, "B 3 H W"]:
    """For a CPU: what is not drawn is not computed."""
    changed = images.to(torch.float32, memory_format=torch.contiguous_format)
    for image, (matrix, gamma, sigma, kernel) in zip(changed, colours, strict=True):
        if matrix is not None:
            image.copy_(_mixed(image, matrix))
        if gamma != 1.0:
            image.div_(255.0).pow_(gamma).mul_(255.0)
        if sigma:
            image.copy_(_blurred(image, sigma))
        if kernel is not None:
            image.copy_(_convolved(image[None], [kernel])[0])
    return changed


def all_at_once(images: UInt8[Tensor, "B 3 H W"], colours: Sequence[Colours]) -> Float[Tensor, "B 3 H W"]:
    """For a GPU, which a call costs more than its pixels: as many calls for a batch as for a sample.

    The numbers travel as one table. What is not drawn for a sample is done with numbers that change nothing.
    """
    changed = images.to(torch.float32, memory_format=torch.contiguous_format)
    rows = [
        [*itertools.chain(*(each.matrix or _SAME)), each.gamma, *_weights(each.sigma)] for each in colours
    ]
    table = torch.tensor(rows).to(images.device, non_blocking=True)[..., None, None]
    *matrix, gamma = table[:, :13].unbind(1)  # (B, 1, 1) each
    if any(each.matrix is not None for each in colours):
        red, green, blue = changed.unbind(1)
        by_row = zip(*[iter(matrix)] * 4, strict=True)
        planes = [red * r + green * g + blue * b + more for r, g, b, more in by_row]
        changed = torch.stack(planes, 1).clamp_(0.0, 255.0)
    if any(each.gamma != 1.0 for each in colours):
        power = gamma[:, None]
        changed = torch.where(power == 1.0, changed, (changed / 255.0).pow(power) * 255.0)
    if any(each.sigma for each in colours):
        changed = _spread(changed, [weight[:, None] for weight in table[:, 13:].unbind(1)])
    chosen = [number for number, each in enumerate(colours) if each.kernel is not None]
    if chosen:
        kernels = [each.kernel for each in colours if each.kernel is not None]
        where = torch.tensor(chosen).to(images.device, non_blocking=True)
        changed = changed.index_copy(0, where, _convolved(changed.index_select(0, where), kernels))
    return changed


def _convolved(
    images: Float[Tensor, "B 3 H W"], kernels: Sequence[tuple[float, ...]]
) -> Float[Tensor, "B 3 H W"]:
    """Each image filtered by its kernel about the mean colour, edges repeated, clamped to 0 to 255.

    Sums of shifted planes: a convolution would be rounded as the device is set to.
    """
    height, width = images.shape[2:]
    # (B, 3 out, 3 in, 3, 3)
    weights = torch.tensor(kernels).view(-1, 3, 3, 3, 3).to(images.device, non_blocking=True)
    centre = torch.tensor(_CENTRE).to(images.device, non_blocking=True).view(1, 3, 1, 1)
    padded = F.pad(images - centre, [1] * 4, mode="replicate")  # (B, 3, H+2, W+2)
    total = torch.zeros_like(images)
    for plane, row, column in itertools.product(range(3), range(3), range(3)):
        part = padded[:, plane : plane + 1, row : row + height, column : column + width]  # (B, 1, H, W)
        total.addcmul_(part, weights[:, :, plane, row, column, None, None])
    return total.add_(centre).clamp_(0.0, 255.0)


def _mixed(image: Float[Tensor, "3 H W"], matrix: Sequence[Row]) -> Float[Tensor, "3 H W"]:
    # Numbers of the host, plane by plane: a product of matrices would be rounded as the device is set to.
    red, green, blue = image
    planes = [red * r + green * g + blue * b + more for r, g, b, more in matrix]
    return torch.stack(planes).clamp_(0.0, 255.0)


def _blurred(image: Float[Tensor, "3 H W"], sigma: float) -> Float[Tensor, "3 H W"]:
    return _spread(image[None], _weights(sigma))[0]


def _spread(images: Float[Tensor, "B 3 H W"], weights: Sequence[float | Tensor]) -> Float[Tensor, "B 3 H W"]:
    """Sums of shifted images, rows first: faster on a CPU than a convolution, and float32 everywhere.

    ``weights`` are numbers, or tensors (B, 1, 1, 1) of a number for each sample.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, [_REACH] * 4, mode="replicate")  # (B, 3, H+10, W+10)
    rows = torch.zeros_like(padded[..., :width])  # (B, 3, H+10, W)
    for start, weight in enumerate(weights):
        _add(rows, padded[..., start : start + width], weight)
    result = torch.zeros_like(images)
    for start, weight in enumerate(weights):
        _add(result, rows[..., start : start + height, :], weight)
    return result


def _add(total: Tensor, part: Tensor, weight: float | Tensor) -> None:
    if isinstance(weight, float):
        total.add_(part, alpha=weight)
    else:
        total.addcmul_(part, weight)


def _weights(sigma: float) -> list[float]:
    """Of a Gaussian blur, from one end of its reach to the other; 0 pixels wide it changes nothing."""
    if not sigma:
        return [float(offset == 0) for offset in range(-_REACH, _REACH + 1)]
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-_REACH, _REACH + 1)]
    return [weight / sum(weights) for weight in weights]
