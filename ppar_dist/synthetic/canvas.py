"""Camera and painter: every primitive is drawn into the picture and the label in one call.

World axes in metres: x to the right, y up from the road, z forward. Letters: (H, W) pixels.
The canvas is ``SUPERSAMPLE`` times finer than the result, which smooths the picture's edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float, float]
Span = tuple[float, float]
_Ink = tuple[Colour, int | None, Colour | None]  # colour, label, glow
Float = NDArray[np.floating[Any]]  # float32 throughout; the stubs widen some results

SUPERSAMPLE = 2
NEAR = 1.2  # metres; geometry closer to the camera is cut away
END = 130.0  # metres to the houses that close the street
_STEPS = (1.0, 2.0, 3.0, 4.5, 7.0, 10.0, 15.0, 22.0, 32.0, 46.0, 65.0, 90.0)  # where a strip of road may bend
_FAR_CODE = 255  # depth code of the sky

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
        """Canvas outline of a world polygon, cut at the near plane; empty when it is behind."""
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


def pick(rng: Generator, colours: tuple[Colour, ...], low: float, high: float) -> Colour:
    """One of the colours in a random shade."""
    return shade(colours[rng.integers(len(colours))], rng.uniform(low, high))


def any_colour(rng: Generator, low: int, high: int) -> Colour:
    """Channels drawn from low..high-1."""
    r, g, b = (int(channel) for channel in rng.integers(low, high, 3))
    return r, g, b


class Canvas:
    """Picture, label with depth, and emitted light, painted from far to near.

    In all methods ``label=None`` is a detail that keeps the label below it, and what is painted with a label
    hides the light behind it.
    """

    def __init__(self, camera: Camera, height: int, width: int) -> None:
        """Start with a black picture, ``height`` × ``width`` canvas pixels of sky that emit no light."""
        self.camera, self.height, self.width = camera, height, width
        size = (width, height)
        self.light, self._codes = Image.new("RGB", size), Image.new("I", size, SKY + 256 * _FAR_CODE)
        self._mark = ImageDraw.Draw(self._codes)  # label + 256 · depth code
        self._emit = ImageDraw.Draw(self.light)
        self.attach(Image.new("RGB", size))

    def attach(self, picture: Image.Image) -> None:
        """Go on painting over ``picture`` (same size)."""
        self.picture, self._paint = picture, ImageDraw.Draw(picture)

    def face(
        self, points: Sequence[Point], colour: Colour, label: int | None = None, glow: Colour | None = None
    ) -> None:
        """Fill a world polygon."""
        outline = self.camera.outline(points)
        if outline:
            self._stamp("polygon", outline, min(point[2] for point in points), (colour, label, glow))

    def pane(
        self, x: Span, y: Span, z: Span, colour: Colour, label: int | None = None, glow: Colour | None = None
    ) -> None:
        """Fill an upright rectangle between two opposite corners."""
        corners = [(x[0], y[0], z[0]), (x[1], y[0], z[1]), (x[1], y[1], z[1]), (x[0], y[1], z[0])]
        self.face(corners, colour, label, glow)

    def post(self, x: float, y: Span, z: float, half: Span, colour: Colour, label: int) -> None:
        """Fill an upright trapezoid that is ``half`` wide to either side, at its foot and at its top."""
        foot, top = half
        corners = [(x - foot, y[0], z), (x + foot, y[0], z), (x + top, y[1], z), (x - top, y[1], z)]
        self.face(corners, colour, label)

    def disc(
        self,
        center: Point,
        radius: float,
        colour: Colour,
        label: int,
        glow: Colour | None = None,
        flat: float = 1,
    ) -> None:
        """Fill a disc that faces the camera; ``radius`` in metres, ``flat`` squeezes its height."""
        if center[2] < NEAR:
            return
        u, v = self.camera.project(center)
        r = max(radius * self.camera.focal / center[2], 0.5)
        box = [(u - r, v - r * flat), (u + r, v + r * flat)]
        self._stamp("ellipse", box, center[2], (colour, label, glow))

    def ground(
        self, x: Span, colour: Colour, label: int | None = None, near: float = 0.3, far: float = END
    ) -> None:
        """Fill a strip of the road plane."""
        distances = (near, *(z for z in _STEPS if near < z < far), far)
        left, right = ([self.camera.project((side, 0.0, z)) for z in distances] for side in x)
        self._stamp("polygon", [*left, *reversed(right)], 0.0, (colour, label, None))

    def _stamp(self, shape: str, outline: Sequence[Span], depth: float, ink: _Ink) -> None:
        colour, label, glow = ink
        getattr(self._paint, shape)(outline, fill=colour)
        if label is not None:
            getattr(self._mark, shape)(outline, fill=label + 256 * _depth_code(depth))
        if label is not None or glow is not None:
            getattr(self._emit, shape)(outline, fill=glow or (0, 0, 0))

    def finish(self) -> tuple[Float, NDArray[np.uint8], Float, Float]:
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
        return np.where(code == _FAR_CODE, np.float32(1000.0), metres).astype(np.float32)


def _depth_code(depth: float) -> int:
    """Whole metres from 1 to 254; 0 says that the road plane gives the distance."""
    return 0 if depth <= 0 else min(_FAR_CODE - 1, max(1, round(depth)))
