"""Pictures that show no street: (rng, height, width) to (H, W, 3) uint8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]


def squared_distances(rng: np.random.Generator, height: int, width: int, points: int) -> Array:
    """Squared distances of pixels to random points, (points, H, W); the longer side is 1."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    y, x = rng.random((2, points, 1, 1)) * np.array([rows.max(), columns.max()]).reshape(2, 1, 1, 1)
    squared: Array = (rows - y) ** 2 + (columns - x) ** 2
    return squared


def gradient(rng: np.random.Generator, height: int, width: int) -> Array:
    """A blend of two colours along a random direction."""
    along = _projection(rng, height, width)
    return _blend(rng, (along - along.min()) / np.ptp(along))


def stripes(rng: np.random.Generator, height: int, width: int) -> Array:
    """Waves of one direction, smooth or hard."""
    wave = np.sin(_projection(rng, height, width) * rng.uniform(10, 80) + rng.uniform(0, 7))
    return _blend(rng, (wave > 0).astype(float) if rng.random() < 0.5 else (wave + 1) / 2)


def noise(rng: np.random.Generator, height: int, width: int) -> Array:
    """Coloured noise of several scales."""
    picture = np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
        picture += rng.random() * (fine - 127.5)
    return _pixels(127.5 + picture)


def blobs(rng: np.random.Generator, height: int, width: int) -> Array:
    """Soft discs of random colours, added up."""
    distances = squared_distances(rng, height, width, 12)
    radii = rng.uniform(0.03, 0.25, (12, 1, 1))
    colours = rng.uniform(-200, 200, (12, 3))
    return _pixels(rng.uniform(60, 200, 3) + np.tensordot(np.exp(-distances / radii**2), colours, (0, 0)))


def tiles(rng: np.random.Generator, height: int, width: int) -> Array:
    """Voronoi tiles of random colours, with grain."""
    owner = squared_distances(rng, height, width, 60).argmin(0)
    grain = rng.normal(0, rng.uniform(0, 25), (height, width, 1))
    return _pixels(rng.integers(0, 256, (60, 3))[owner] + grain)


PICTURES: tuple[Callable[[np.random.Generator, int, int], Array], ...]
PICTURES = (gradient, stripes, noise, blobs, tiles)


def _projection(rng: np.random.Generator, height: int, width: int) -> Array:
    """Position along a random direction, (H, W)."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    along: Array = rows * np.sin(angle) + columns * np.cos(angle)
    return along


def _blend(rng: np.random.Generator, share: Array) -> Array:
    one, other = rng.integers(0, 256, (2, 3))
    return _pixels(one + share[..., None] * (other - one))


def _pixels(values: Array) -> Array:
    return values.clip(0, 255).astype(np.uint8)
