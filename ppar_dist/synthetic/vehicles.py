"""Cars: side profiles extruded to their width, seen from behind, in front and the side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from ppar_dist.synthetic.canvas import CAR, NEAR, Canvas, Colour, Point, pick, shade

_RED, _BLUE, _WHITE, _BLACK = (176, 28, 30), (30, 62, 128), (236, 236, 236), (34, 34, 38)
_SILVER, _GREY, _GREEN, _GOLD = (150, 154, 160), (96, 102, 110), (40, 92, 70), (208, 168, 52)
_PAINTS = (_RED, _BLUE, _WHITE, _BLACK, _SILVER, _GREY, _GREEN, _GOLD)
_TYRE, _GLASS = (22, 22, 24), (58, 70, 82)

# Outline from the lower rear to the lower front: (z, y) in metres. A segment that joins the
# belt line to the roof is glass.
_SALOON = ((0, 0.32), (0, 0.86), (0.7, 0.98), (1.3, 1.42), (2.6, 1.44), (3.3, 0.98), (4.3, 0.8), (4.35, 0.32))
_HATCHBACK = ((0, 0.32), (0, 0.95), (0.4, 1.46), (2.3, 1.5), (3.0, 1.0), (3.85, 0.82), (3.9, 0.32))
_OFFROAD = ((0, 0.42), (0, 1.08), (0.25, 1.7), (2.7, 1.74), (3.3, 1.14), (4.3, 1.02), (4.35, 0.42))
_VAN = ((0, 0.4), (0, 1.15), (0.08, 2.05), (3.6, 2.08), (4.3, 1.25), (4.9, 1.05), (4.95, 0.4))
_PROFILES = (_SALOON, _SALOON, _HATCHBACK, _HATCHBACK, _OFFROAD, _VAN)


@dataclass(frozen=True)
class Car:
    """One car: ``x`` of its middle, ``z`` of its near end, and whether it drives away from us."""

    x: float
    z: float
    away: bool
    profile: Sequence[tuple[float, float]]
    width: float
    paint: Colour
    lights: bool

    @property
    def length(self) -> float:
        """Metres from bumper to bumper."""
        return self.profile[-1][0]

    @property
    def belt(self) -> float:
        """Height of the lower edge of the windows, metres."""
        return self.profile[1][1]

    @property
    def outline(self) -> list[tuple[float, float]]:
        """The profile seen from the near end: mirrored for a car that comes towards us."""
        if self.away:
            return list(self.profile)
        return [(self.length - z, y) for z, y in reversed(self.profile)]

    def point(self, side: float, y: float, z: float) -> Point:
        """A point of the body, ``side`` half widths (-1..1) from its middle; the cabin narrows upwards."""
        half = self.width / 2 * (1.0 - 0.16 * max(0.0, y - self.belt))
        return self.x + side * half, y, self.z + z


def random_car(rng: Generator, x: float, z: float, away: bool, lights: bool) -> Car:
    """A car of random make and paint."""
    profile = _PROFILES[rng.integers(len(_PROFILES))]
    paint = pick(rng, _PAINTS, 0.85, 1.1)
    return Car(x, z, away, profile, rng.uniform(1.68, 1.86), paint, lights)


def draw_car(canvas: Canvas, car: Car, asphalt: Colour) -> None:
    """Paint the shadow, the body, its windows, the wheels and the lamps."""
    half = car.width / 2
    a, b, z0, z1 = car.x - half - 0.1, car.x + half + 0.1, car.z - 0.15, car.z + car.length + 0.1
    canvas.face([(a, 0, z0), (b, 0, z0), (b, 0, z1), (a, 0, z1)], shade(asphalt, 0.38))
    if car.z >= NEAR:  # what shows below the bumper
        z = (car.z + 0.3, car.z + 0.3)
        for x in (car.x - half, car.x + half - 0.24):
            canvas.pane((x, x + 0.24), (0.0, 0.45), z, _TYRE, CAR)
        canvas.pane((car.x - half + 0.2, car.x + half - 0.2), (0.2, 0.45), z, (18, 18, 20), CAR)
    for lower, upper in reversed(list(pairwise(car.outline))):
        _strip(canvas, car, lower, upper)
    _side(canvas, car)
    if car.z >= NEAR:
        _near_end(canvas, car)


def _strip(canvas: Canvas, car: Car, lower: tuple[float, float], upper: tuple[float, float]) -> None:
    """One segment of the outline drawn out across the car, when it faces the camera."""
    (za, ya), (zb, yb) = lower, upper
    quad = [car.point(-1, ya, za), car.point(1, ya, za), car.point(1, yb, zb), car.point(-1, yb, zb)]
    if car.z + za < NEAR or canvas.camera.project(quad[0])[1] <= canvas.camera.project(quad[3])[1]:
        return
    flat = abs(zb - za) > 2 * abs(yb - ya)
    canvas.face(quad, shade(car.paint, 1.22 if flat else 0.92), CAR)
    if min(ya, yb) > car.belt - 0.05 and not flat:
        canvas.face(_inset(quad, ((0.07, 0.1), (0.93, 0.1), (0.9, 0.9), (0.1, 0.9))), _GLASS)
        glint = _inset(quad, ((0.2, 0.55), (0.8, 0.55), (0.84, 0.88), (0.16, 0.88)))
        canvas.face(glint, shade(_GLASS, 1.5))


def _inset(quad: Sequence[Point], shares: Sequence[tuple[float, float]]) -> list[Point]:
    """Points at shares (s across, t up) of a quadrilateral."""
    a, b, c, d = np.asarray(quad, float)
    points = ((1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * d + s * c) for s, t in shares)
    return [(float(x), float(y), float(z)) for x, y, z in points]


def _side(canvas: Canvas, car: Car) -> None:
    """The flank that faces the camera, with windows and wheels."""
    aside = car.x + canvas.camera.bend * (car.z + car.length / 2) ** 2
    sign = -1.0 if aside > 0 else 1.0
    if abs(aside) < car.width / 2:
        return
    outline = car.outline
    canvas.face([car.point(sign, y, z) for z, y in outline], shade(car.paint, 0.72 if sign < 0 else 0.8), CAR)
    low, high = car.belt + 0.06, max(y for _, y in outline) - 0.1
    top = [z for z, y in outline if y > high - 0.1 and (y > car.belt + 0.02 or abs(y - car.belt) < 0.2)]
    bottom = [z for z, y in outline if car.belt - 0.2 < y < high - 0.1]
    reach = sorted(z for z in bottom if min(top) - 0.8 < z < max(top) + 0.8) or top
    corners = ((reach[0] + 0.2, low), (reach[-1] - 0.2, low), (max(top) - 0.1, high), (min(top) + 0.1, high))
    canvas.face([car.point(sign * 1.002, y, z) for z, y in corners], shade(_GLASS, 0.85))
    pillar = (min(top) + max(top)) / 2
    bar = ((pillar - 0.05, low), (pillar + 0.05, low), (pillar + 0.05, high), (pillar - 0.05, high))
    canvas.face([car.point(sign, y, z) for z, y in bar], shade(car.paint, 0.6))
    for z in (0.78, car.length - 0.78):
        _wheel(canvas, car.x + sign * car.width / 2, car.z + z)


def _wheel(canvas: Canvas, x: float, z: float) -> None:
    radius, turns = 0.33, np.linspace(0, 2 * np.pi, 14, endpoint=False)
    for r, colour, label in ((radius, _TYRE, CAR), (0.58 * radius, (120, 122, 126), None)):
        ring = [(x, float(radius + r * np.sin(a)), float(z + r * np.cos(a))) for a in turns]
        canvas.face(ring, colour, label)


def _near_end(canvas: Canvas, car: Car) -> None:
    """Bumper, plate, grille and lamps of the end that faces us."""
    x, half, z = car.x, car.width / 2, (car.z, car.z)
    base, deck = car.profile[0][1], car.outline[1][1]
    canvas.pane((x - half, x + half), (base, base + 0.16), z, shade(car.paint, 0.55))
    canvas.pane((x - 0.26, x + 0.26), (base + 0.2, base + 0.31), z, (226, 224, 208))
    if not car.away:
        canvas.pane((x - 0.45, x + 0.45), (deck - 0.2, deck - 0.06), z, (30, 30, 32))
    colour, glow = ((196, 24, 22), (255, 40, 30)) if car.away else ((236, 234, 216), (255, 246, 220))
    for left in (x - half + 0.05, x + half - 0.37):
        span = (left, left + 0.32)
        canvas.pane(span, (deck - 0.22, deck - 0.06), z, colour, None, glow if car.lights else None)
