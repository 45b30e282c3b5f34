"""Exchange of style between sources: an image takes the colour statistics of an image of another source.

Colour transfer as in Reinhard et al., "Color transfer between images" (2001), on red, green and blue: each
channel gets the mean and the standard deviation that it has in another image. Those of some training images
of each source are the bank (``style_bank``). A channel is stretched or compressed four times at most, so that
the noise of a flat picture stays noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from ppar_dist.data.colours import Array, Step

_SIDE = 64  # pixels along the shorter side that are looked at, at least
_MOST = 4.0  # times that a channel is stretched or compressed
_LEAST = 1e-3  # standard deviation that divides: of a channel of one value


class Statistics(NamedTuple):
    """Of a picture's values of 0 to 255, over its pixels."""

    mean: tuple[float, float, float]  # of red, green and blue
    std: tuple[float, float, float]


def statistics(picture: UInt8[Tensor, "3 H W"]) -> Statistics:
    """Mean and standard deviation of each channel, over every k-th row and column of a large picture."""
    step = max(1, min(picture.shape[1:]) // _SIDE)
    pixels = picture[:, ::step, ::step].flatten(1).numpy().astype(np.float64)  # (3, pixels)
    red, green, blue = pixels.mean(axis=1).tolist()
    return Statistics((red, green, blue), tuple(pixels.std(axis=1).tolist()))


def exchange(own: Statistics, other: Statistics) -> Step:
    """Colours of a picture with the statistics ``own``, so that it has those of another."""
    gain: Array = np.asarray(other.std) / np.maximum(own.std, _LEAST)
    gain = gain.clip(1.0 / _MOST, _MOST)
    addend = np.asarray(other.mean) - gain * np.asarray(own.mean)
    return lambda grey: (np.diag(gain), addend)


@dataclass(frozen=True)
class StyleBank:
    """Statistics of some training images of each source, in the order of the sources."""

    sources: tuple[tuple[Statistics, ...], ...]

    def draw(self, rng: np.random.Generator, source: int) -> Statistics:
        """An image of another source than this one; of the same, where there is no other."""
        others = [number for number in range(len(self.sources)) if number != source] or [source]
        first, second = rng.random(2).tolist()
        images = self.sources[others[int(first * len(others))]]
        return images[int(second * len(images))]
