"""Colours and blur of a crop: the loader settles what happens to them, the device does it.

Brightness, contrast, saturation, hue and grey are affine in RGB, so all that is drawn of them is one 3x4
matrix. Clamping, a gamma and a blur follow. Nothing depends on other samples of a batch, and what is to be
done is known on the host: no device is waited for.

Letters: B samples, (H, W) pixels of the crop.
"""

from __future__ import annotations

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
_REACH = 5  # pixels that a blur looks to each side: more than three sigmas of the strongest


class Colours(NamedTuple):
    """What happens to the colours of a crop of values 0 to 255, in this order; by default nothing."""

    matrix: tuple[Row, Row, Row] | None = None  # rows make red, green and blue, then clamped; None: they stay
    gamma: float = 1.0
    sigma: float = 0.0  # of the Gaussian blur, in pixels of the crop; 0: none


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

    Samples are taken one by one, so that each has the same pixels in any batch.
    """
    changed = images.to(torch.float32, memory_format=torch.contiguous_format)
    for image, (matrix, gamma, sigma) in zip(changed, colours, strict=True):
        if matrix is not None:
            image.copy_(_mixed(image, matrix))
        if gamma != 1.0:
            image.div_(255.0).pow_(gamma).mul_(255.0)
        if sigma:
            image.copy_(_blurred(image, sigma))
    return changed


def _mixed(image: Float[Tensor, "3 H W"], matrix: Sequence[Row]) -> Float[Tensor, "3 H W"]:
    # Numbers of the host, plane by plane: a product of matrices would be rounded as the device is set to.
    red, green, blue = image
    planes = [red * r + green * g + blue * b + more for r, g, b, more in matrix]
    return torch.stack(planes).clamp_(0.0, 255.0)


def _blurred(image: Float[Tensor, "3 H W"], sigma: float) -> Float[Tensor, "3 H W"]:
    """By sums of shifted images, rows first: faster on a CPU than a convolution, and float32 everywhere."""
    height, width = image.shape[1:]
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-_REACH, _REACH + 1)]
    weights = [weight / sum(weights) for weight in weights]
    padded = F.pad(image[None], [_REACH] * 4, mode="replicate")[0]  # (3, H+10, W+10)
    blurred = torch.zeros_like(padded[..., :width])  # (3, H+10, W)
    for start, weight in enumerate(weights):
        blurred.add_(padded[..., start : start + width], alpha=weight)
    result = torch.zeros_like(image)
    for start, weight in enumerate(weights):
        result.add_(blurred[:, start : start + height], alpha=weight)
    return result
