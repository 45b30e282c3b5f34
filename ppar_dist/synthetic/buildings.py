"""Rows of houses: facades with windows, doors and shops, gables and roofs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppar_dist.synthetic.canvas import BUILDING, NEAR, Canvas, Colour, Point, shade
from ppar_dist.synthetic.styles import Style

WINDOW_GLOWS: tuple[Colour, ...] = ((250, 206, 130), (255, 226, 170), (222, 226, 236), (240, 170, 96))
ROOFS: tuple[Colour, ...] = ((120, 66, 52), (82, 80, 84), (96, 72, 60), (70, 74, 84))


@dataclass(frozen=True)
class House:
    """A house whose facade lies in the plane x = ``front`` between distances ``near`` and ``far``."""

    side: int  # -1 left of the road, +1 right
    front: float
    near: float
    far: float
    storeys: int
    wall: Colour
    roof: Colour | None  # a pitched roof, or None for a flat one
    shop: bool
    column: float  # metres per window axis
    lit: float

    @property
    def height(self) -> float:
        """Metres to the eaves."""
        return 3.0 * self.storeys + 0.8


def row_of_houses(rng: np.random.Generator, style: Style, side: int, front: float, end: float) -> list[House]:
    """Houses of one side of the street from far to near, some with gaps between them."""
    houses: list[House] = []
    z = rng.uniform(-6.0, 1.0)
    tall = int(rng.integers(2, 6))
    while z < end:
        length = rng.uniform(7.0, 17.0)
        wall = shade(style.walls[rng.integers(len(style.walls))], rng.uniform(0.85, 1.1))
        roof = shade(ROOFS[rng.integers(len(ROOFS))], rng.uniform(0.9, 1.15)) if rng.random() < 0.5 else None
        houses.append(
            House(
                side,
                side * (abs(front) + rng.choice([0.0, 0.0, 0.4, 1.5])),
                z,
                z + length,
                max(1, tall + int(rng.integers(-1, 2))),
                wall,
                roof,
                bool(rng.random() < 0.35),
                rng.uniform(2.0, 3.4),
                style.lit_windows,
            )
        )
        z += length + (rng.uniform(3.0, 9.0) if rng.random() < 0.28 else 0.0)
    return houses[::-1]


def draw_house(canvas: Canvas, rng: np.random.Generator, house: House) -> None:
    """Paint gable, roof, facade and their openings."""
    x, h, z0, z1 = house.front, house.height, house.near, house.far
    back = x + house.side * 9.0
    if z1 <= NEAR:
        return
    gable = shade(house.wall, 0.8)
    if z0 > NEAR:
        canvas.face([(x, 0, z0), (back, 0, z0), (back, h, z0), (x, h, z0)], gable, BUILDING)
        _gable_windows(canvas, rng, house)
    if house.roof:
        ridge, top = x + house.side * 4.5, h + 3.2
        canvas.face([(x, h, z0), (ridge, top, z0), (back, h, z0)], gable, BUILDING)
        canvas.face([(x, h, z0), (x, h, z1), (ridge, top, z1), (ridge, top, z0)], house.roof, BUILDING)
    canvas.face([(x, 0, z0), (x, 0, z1), (x, h, z1), (x, h, z0)], house.wall, BUILDING)
    _trim(canvas, house)
    _facade(canvas, rng, house)


def draw_block(
    canvas: Canvas, rng: np.random.Generator, style: Style, x: float, z: float, width: float
) -> None:
    """A distant block that faces us and closes the street."""
    storeys = int(rng.integers(3, 9))
    top = 3.0 * storeys + 1.0
    wall = shade(style.walls[rng.integers(len(style.walls))], rng.uniform(0.75, 0.95))
    canvas.face([(x, 0, z), (x + width, 0, z), (x + width, top, z), (x, top, z)], wall, BUILDING)
    for column in range(int(width / 3.2)):
        for storey in range(storeys):
            a, low = x + 0.9 + 3.2 * column, 1.0 + 3.0 * storey
            lit = rng.random() < style.lit_windows
            glow = WINDOW_GLOWS[rng.integers(len(WINDOW_GLOWS))] if lit else None
            quad: list[Point] = [(a, low, z), (a + 1.4, low, z), (a + 1.4, low + 1.6, z), (a, low + 1.6, z)]
            canvas.face(quad, glow or shade(wall, 0.5), None, glow)


def _trim(canvas: Canvas, house: House) -> None:
    """Plinth and cornice, which give the facade its perspective lines."""
    pale = shade(house.wall, 1.18)
    for low, high, colour in (
        (0.0, 0.5, shade(house.wall, 0.65)),
        (3.1, 3.3, pale),
        (house.height - 0.35, house.height, pale),
    ):
        canvas.face(_on_facade(house, house.near, house.far, low, high), colour)


def _on_facade(house: House, z0: float, z1: float, low: float, high: float) -> list[Point]:
    x = house.front
    return [(x, low, z0), (x, low, z1), (x, high, z1), (x, high, z0)]


def _facade(canvas: Canvas, rng: np.random.Generator, house: House) -> None:
    """Windows on every storey; a shop front or a door on the ground."""
    columns = max(2, round((house.far - house.near - 1.0) / house.column))
    pitch = (house.far - house.near) / columns
    door = int(rng.integers(columns))
    glass = shade((86, 100, 116), rng.uniform(0.75, 1.2))
    frame = shade(house.wall, 1.25 if rng.random() < 0.6 else 0.7)
    first = 1 if house.shop else 0
    if house.shop:
        _shop(canvas, rng, house)
    for column in range(columns):
        z = house.near + pitch * (column + 0.5)
        if z < NEAR:
            continue
        half = min(0.62, pitch * 0.3)
        for storey in range(first, house.storeys):
            if storey == 0 and column == door:
                leaf = shade((92, 62, 44), rng.uniform(0.6, 1.4))
                canvas.face(_on_facade(house, z - 0.55, z + 0.55, 0.0, 2.3), leaf)
                continue
            low = 3.0 * storey + 1.15
            if z < 32:  # thinner than a pixel further away
                canvas.face(
                    _on_facade(house, z - half - 0.12, z + half + 0.12, low - 0.12, low + 1.62), frame
                )
            lit = rng.random() < house.lit
            glow = (
                shade(WINDOW_GLOWS[rng.integers(len(WINDOW_GLOWS))], rng.uniform(0.5, 1.0)) if lit else None
            )
            tone = shade(glass, rng.uniform(0.7, 1.25))
            canvas.face(_on_facade(house, z - half, z + half, low, low + 1.5), glow or tone, None, glow)


def _shop(canvas: Canvas, rng: np.random.Generator, house: House) -> None:
    """A shop window below a coloured sign."""
    z0, z1 = house.near + 0.5, house.far - 0.5
    sign: Colour = tuple(int(c) for c in rng.integers(40, 215, 3))  # type: ignore[assignment]
    lit = rng.random() < 2.0 * house.lit
    glow = shade((255, 220, 168), rng.uniform(0.35, 0.6)) if lit else None
    canvas.face(_on_facade(house, z0, z1, 0.5, 2.5), glow or (66, 76, 84), None, glow)
    canvas.face(_on_facade(house, z0, z1, 2.5, 3.05), sign, None, shade(sign, 0.6) if lit else None)
    for share in np.linspace(0.0, 1.0, 5):
        z = z0 + share * (z1 - z0)
        canvas.face(_on_facade(house, z - 0.08, z + 0.08, 0.5, 2.5), shade(house.wall, 0.6))


def _gable_windows(canvas: Canvas, rng: np.random.Generator, house: House) -> None:
    z, sign = house.near, house.side
    for storey in range(house.storeys):
        for column in (2.4, 5.6):
            x, low = house.front + sign * column, 3.0 * storey + 1.15
            lit = rng.random() < house.lit
            glow = WINDOW_GLOWS[rng.integers(len(WINDOW_GLOWS))] if lit else None
            quad: list[Point] = [(x, low, z), (x + sign, low, z), (x + sign, low + 1.4, z), (x, low + 1.4, z)]
            canvas.face(quad, glow or shade(house.wall, 0.45), None, glow)
