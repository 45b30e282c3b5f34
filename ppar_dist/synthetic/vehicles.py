"""Cars: side profiles extruded to their width, seen from behind, in front and the side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ppar_dist.synthetic.canvas import CAR, NEAR, Canvas, Colour, Point, shade

PAINTS: tuple[Colour, ...] = (
    (176, 28, 30),
    (30, 62, 128),
    (236, 236, 236),
    (34, 34, 38),
    (150, 154, 160),
    (96, 102, 110),
    (40, 92, 70),
    (208, 168, 52),
)
TYRE: Colour = (22, 22, 24)
GLASS: Colour = (58, 70, 82)

# Outline from the lower rear to the lower front: (z, y) in metres. A segment that joins the
# belt line to the roof is glass.
SALOON = (
    (0.0, 0.32),
    (0.0, 0.86),
    (0.7, 0.98),
    (1.3, 1.42),
    (2.6, 1.44),
    (3.3, 0.98),
    (4.3, 0.8),
    (4.35, 0.32),
)
HATCHBACK = ((0.0, 0.32), (0.0, 0.95), (0.4, 1.46), (2.3, 1.5), (3.0, 1.0), (3.85, 0.82), (3.9, 0.32))
OFFROAD = ((0.0, 0.42), (0.0, 1.08), (0.25, 1.7), (2.7, 1.74), (3.3, 1.14), (4.3, 1.02), (4.35, 0.42))
VAN = ((0.0, 0.4), (0.0, 1.15), (0.08, 2.05), (3.6, 2.08), (4.3, 1.25), (4.9, 1.05), (4.95, 0.4))
PROFILES = (SALOON, SALOON, HATCHBACK, HATCHBACK, OFFROAD, VAN)


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


def random_car(rng: np.random.Generator, x: float, z: float, away: bool, lights: bool) -> Car:
    """A car of random make and paint."""
    profile = PROFILES[rng.integers(len(PROFILES))]
    paint = shade(PAINTS[rng.integers(len(PAINTS))], rng.uniform(0.85, 1.1))
    return Car(x, z, away, profile, rng.uniform(1.68, 1.86), paint, lights)


def draw_car(canvas: Canvas, car: Car, asphalt: Colour) -> None:
    """Paint the shadow, the body, its windows, the wheels and the lamps."""
    half = car.width / 2
    a, b, z0, z1 = car.x - half - 0.1, car.x + half + 0.1, car.z - 0.15, car.z + car.length + 0.1
    canvas.face([(a, 0, z0), (b, 0, z0), (b, 0, z1), (a, 0, z1)], shade(asphalt, 0.38))
    _end_wheels(canvas, car)
    outline = _outline(car)
    for lower, upper in reversed(list(pairwise(outline))):
        _strip(canvas, car, lower, upper)
    _side(canvas, car, outline)
    _near_end(canvas, car)


def _outline(car: Car) -> list[tuple[float, float]]:
    """The profile seen from the near end: mirrored for a car that comes towards us."""
    if car.away:
        return list(car.profile)
    return [(car.length - z, y) for z, y in reversed(car.profile)]


def _half(car: Car, y: float) -> float:
    """Half the width at height y: the cabin narrows towards the roof."""
    return car.width / 2 * (1.0 - 0.16 * max(0.0, y - car.belt))


def _strip(canvas: Canvas, car: Car, lower: tuple[float, float], upper: tuple[float, float]) -> None:
    """One segment of the outline drawn out across the car, when it faces the camera."""
    (za, ya), (zb, yb) = lower, upper
    ha, hb = _half(car, ya), _half(car, yb)
    quad: list[Point] = [
        (car.x - ha, ya, car.z + za),
        (car.x + ha, ya, car.z + za),
        (car.x + hb, yb, car.z + zb),
        (car.x - hb, yb, car.z + zb),
    ]
    if car.z + za < NEAR or canvas.camera.project(quad[0])[1] <= canvas.camera.project(quad[3])[1]:
        return
    flat = abs(zb - za) > 2 * abs(yb - ya)
    canvas.face(quad, shade(car.paint, 1.22 if flat else 0.92), CAR)
    if min(ya, yb) > car.belt - 0.05 and not flat:
        glass: list[Point] = [_mix(quad, s, t) for s, t in ((0.07, 0.1), (0.93, 0.1), (0.9, 0.9), (0.1, 0.9))]
        canvas.face(glass, GLASS)
        glint: list[Point] = [
            _mix(quad, s, t) for s, t in ((0.2, 0.55), (0.8, 0.55), (0.84, 0.88), (0.16, 0.88))
        ]
        canvas.face(glint, shade(GLASS, 1.5))


def _mix(quad: Sequence[Point], s: float, t: float) -> Point:
    """Point at share s across and t up a quadrilateral."""
    a, b, c, d = (np.asarray(point) for point in quad)
    x, y, z = (1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * d + s * c)
    return float(x), float(y), float(z)


def _side(canvas: Canvas, car: Car, outline: Sequence[tuple[float, float]]) -> None:
    """The flank that faces the camera, with windows and wheels."""
    bend = canvas.camera.bend * (car.z + car.length / 2) ** 2
    sign = -1.0 if car.x + bend > 0 else 1.0
    if abs(car.x + bend) < car.width / 2:
        return
    flank: list[Point] = [(car.x + sign * _half(car, y), y, car.z + z) for z, y in outline]
    canvas.face(flank, shade(car.paint, 0.72 if sign < 0 else 0.8), CAR)
    cabin = [(z, y) for z, y in outline if y > car.belt + 0.02 or abs(y - car.belt) < 0.2]
    low, high = car.belt + 0.06, max(y for _, y in outline) - 0.1
    top = [z for z, y in cabin if y > high - 0.1]
    bottom = [z for z, y in outline if car.belt - 0.2 < y < high - 0.1]
    reach = sorted(z for z in bottom if min(top) - 0.8 < z < max(top) + 0.8) or top
    corners = ((reach[0] + 0.2, low), (reach[-1] - 0.2, low), (max(top) - 0.1, high), (min(top) + 0.1, high))
    canvas.face(
        [(car.x + sign * _half(car, y) * 1.002, y, car.z + z) for z, y in corners], shade(GLASS, 0.85)
    )
    pillar = (min(top) + max(top)) / 2
    bar = ((pillar - 0.05, low), (pillar + 0.05, low), (pillar + 0.05, high), (pillar - 0.05, high))
    canvas.face([(car.x + sign * _half(car, y), y, car.z + z) for z, y in bar], shade(car.paint, 0.6))
    for z in (0.78, car.length - 0.78):
        _wheel(canvas, car.x + sign * car.width / 2, car.z + z)


def _wheel(canvas: Canvas, x: float, z: float, radius: float = 0.33) -> None:
    turns = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    for scale, colour, label in ((1.0, TYRE, CAR), (0.58, (120, 122, 126), None)):
        ring: list[Point] = [
            (x, float(radius + scale * radius * np.sin(a)), float(z + scale * radius * np.cos(a)))
            for a in turns
        ]
        canvas.face(ring, colour, label)


def _end_wheels(canvas: Canvas, car: Car) -> None:
    """What shows below the bumper at the near end."""
    if car.z < NEAR:
        return
    for x in (car.x - car.width / 2, car.x + car.width / 2 - 0.24):
        _panel(canvas, x, x + 0.24, 0.0, 0.45, car.z + 0.3, TYRE, CAR)
    a, b = car.x - car.width / 2 + 0.2, car.x + car.width / 2 - 0.2
    _panel(canvas, a, b, 0.2, 0.45, car.z + 0.3, (18, 18, 20), CAR)


def _near_end(canvas: Canvas, car: Car) -> None:
    """Bumper, plate, grille and lamps of the end that faces us."""
    if car.z < NEAR:
        return
    base = car.profile[0][1]
    deck = _outline(car)[1][1]
    half, z = car.width / 2, car.z
    _panel(canvas, car.x - half, car.x + half, base, base + 0.16, z, shade(car.paint, 0.55))
    _panel(canvas, car.x - 0.26, car.x + 0.26, base + 0.2, base + 0.31, z, (226, 224, 208))
    if not car.away:
        _panel(canvas, car.x - 0.45, car.x + 0.45, deck - 0.2, deck - 0.06, z, (30, 30, 32))
    colour: Colour = (196, 24, 22) if car.away else (236, 234, 216)
    glow: Colour | None = ((255, 40, 30) if car.away else (255, 246, 220)) if car.lights else None
    for x in (car.x - half + 0.05, car.x + half - 0.37):
        _panel(canvas, x, x + 0.32, deck - 0.22, deck - 0.06, z, colour, None, glow)


def _panel(
    canvas: Canvas,
    left: float,
    right: float,
    low: float,
    high: float,
    z: float,
    colour: Colour,
    label: int | None = None,
    glow: Colour | None = None,
) -> None:
    """An upright rectangle that faces the camera."""
    corners: list[Point] = [(left, low, z), (right, low, z), (right, high, z), (left, high, z)]
    canvas.face(corners, colour, label, glow)
