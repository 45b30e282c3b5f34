"""Camera and painter: every primitive is drawn into the picture and the label in one call.

World axes in metres: x to the right, y up from the road, z forward. Letters: (H, W) pixels.
The canvas is ``SUPERSAMPLE`` times finer than the result, which smooths the picture's edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float, float]
Float = NDArray[np.floating[Any]]

SUPERSAMPLE = 2
NEAR = 1.2  # metres; geometry closer to the camera is cut away
FAR_CODE = 255  # depth code of the sky

ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, CAR, VOID = 0, 1, 2, 3, 4, 5, 255
CLASSES = ("road", "sidewalk", "building", "vegetation", "sky", "car")


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above a road that bends by ``bend`` z² metres to the side."""

    focal: float  # canvas pixels
    center: float  # canvas column of the straight-ahead direction
    horizon: float  # canvas row
    height: float  # metres above the road
    bend: float  # 1/metres

    def project(self, point: Point) -> tuple[float, float]:
        """Canvas (column, row) of a world point with z > 0."""
        x, y, z = point
        scale = self.focal / z
        return self.center + (x + self.bend * z * z) * scale, self.horizon - (y - self.height) * scale

    def outline(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """Canvas outline of a world polygon, cut at the near plane; empty when it lies behind."""
        if all(point[2] >= NEAR for point in points):
            return [self.project(point) for point in points]
        kept: list[Point] = []
        for a, b in zip(points, [*points[1:], points[0]], strict=True):
            if a[2] >= NEAR:
                kept.append(a)
            if (a[2] >= NEAR) != (b[2] >= NEAR):
                t = (NEAR - a[2]) / (b[2] - a[2])
                kept.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), NEAR))
        return [self.project(point) for point in kept] if len(kept) > 2 else []


def shade(colour: Sequence[float], factor: float) -> Colour:
    """A colour made brighter or darker, within 0..255."""
    r, g, b = (min(255, max(0, int(channel * factor))) for channel in colour)
    return r, g, b


@dataclass
class Canvas:
    """Picture, label with depth, and emitted light, painted from far to near."""

    camera: Camera
    height: int  # canvas pixels
    width: int
    picture: Image.Image = field(init=False)
    _codes: Image.Image = field(init=False)  # label + 256 · depth code
    light: Image.Image = field(init=False)

    def __post_init__(self) -> None:
        """Start with a black picture that is sky everywhere and emits no light."""
        size = (self.width, self.height)
        self.picture = Image.new("RGB", size)
        self._codes = Image.new("I", size, SKY + 256 * FAR_CODE)
        self.light = Image.new("RGB", size)
        self.attach(self.picture)

    def attach(self, picture: Image.Image) -> None:
        """Go on painting over ``picture`` (same size)."""
        self.picture = picture
        self._paint = ImageDraw.Draw(picture)
        self._mark = ImageDraw.Draw(self._codes)
        self._emit = ImageDraw.Draw(self.light)

    def face(
        self,
        points: Sequence[Point],
        colour: Colour,
        label: int | None = None,
        glow: Colour | None = None,
    ) -> None:
        """Fill a world polygon; ``label=None`` is a detail that keeps the label below it."""
        outline = self.camera.outline(points)
        if outline:
            self.fill(outline, colour, label, min(point[2] for point in points), glow)

    def fill(
        self,
        outline: Sequence[tuple[float, float]],
        colour: Colour,
        label: int | None = None,
        depth: float = 0.0,
        glow: Colour | None = None,
    ) -> None:
        """Fill a canvas polygon of the given label and distance; it hides the light behind it."""
        self._paint.polygon(outline, fill=colour)
        if label is not None:
            self._mark.polygon(outline, fill=label + 256 * _depth_code(depth))
        if label is not None or glow is not None:
            self._emit.polygon(outline, fill=glow or (0, 0, 0))

    def disc(
        self,
        center: Point,
        radius: float,
        colour: Colour,
        label: int | None = None,
        glow: Colour | None = None,
        flat: float = 1.0,
    ) -> None:
        """Fill a disc that faces the camera; ``radius`` in metres, ``flat`` squeezes its height."""
        if center[2] < NEAR:
            return
        u, v = self.camera.project(center)
        r = max(radius * self.camera.focal / center[2], 0.5)
        box = (u - r, v - r * flat, u + r, v + r * flat)
        self._paint.ellipse(box, fill=colour)
        if label is not None:
            self._mark.ellipse(box, fill=label + 256 * _depth_code(center[2]))
        if label is not None or glow is not None:
            self._emit.ellipse(box, fill=glow or (0, 0, 0))

    def ground(self, strip: Iterable[tuple[float, float, float]], colour: Colour, label: int | None) -> None:
        """Fill a strip of the road plane given as (z, left x, right x) from near to far."""
        rows = list(strip)
        left = [self.camera.project((a, 0.0, z)) for z, a, _ in rows]
        right = [self.camera.project((b, 0.0, z)) for z, _, b in rows]
        self.fill([*left, *reversed(right)], colour, label)

    def finish(
        self,
    ) -> tuple[Float, NDArray[np.uint8], Float, Float]:
        """Picture (H, W, 3) and light (H, W, 3) in 0..1, label (H, W), distance (H, W) in metres."""
        codes = np.asarray(self._codes)[::SUPERSAMPLE, ::SUPERSAMPLE]
        picture = np.asarray(self.picture.reduce(SUPERSAMPLE), np.float32) / 255
        light = np.asarray(self.light.reduce(SUPERSAMPLE), np.float32) / 255
        label = (codes & 255).astype(np.uint8)
        return picture, label, self._distance(codes >> 8), light

    def _distance(self, code: NDArray[np.int32]) -> NDArray[np.float32]:
        rows = np.arange(code.shape[0], dtype=np.float32) * SUPERSAMPLE + SUPERSAMPLE / 2
        below = np.maximum(rows - self.camera.horizon, 1e-3)
        plane = np.minimum(self.camera.height * self.camera.focal / below, 500.0)
        metres = np.where(code == 0, plane[:, None], code.astype(np.float32))
        return np.where(code == FAR_CODE, np.float32(1000.0), metres).astype(np.float32)


def _depth_code(depth: float) -> int:
    """Whole metres from 1 to 254; 0 says that the road plane gives the distance."""
    return 0 if depth <= 0 else min(FAR_CODE - 1, max(1, round(depth)))
