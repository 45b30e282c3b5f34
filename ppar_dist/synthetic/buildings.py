"""Rows of houses: facades with windows, doors and shops, gables and roofs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from ppar_dist.synthetic.canvas import BUILDING, NEAR, Canvas, Colour, any_colour, pick, shade
from ppar_dist.synthetic.styles import Style

_GLOWS: tuple[Colour, ...] = ((250, 206, 130), (255, 226, 170), (222, 226, 236), (240, 170, 96))
_ROOFS: tuple[Colour, ...] = ((120, 66, 52), (82, 80, 84), (96, 72, 60), (70, 74, 84))


@dataclass(frozen=True)
class House:
    """A house whose facade is in the plane x = ``front`` between distances ``near`` and ``far``."""

    side: int  # -1 left of the road, +1 right
    front: float
    near: float
    far: float
    storeys: int
    wall: Colour
    roof: Colour | None  # a pitched roof, or None for a flat one
    shop: bool
    column: float  # metres per window axis
    lit: float  # share of windows

    @property
    def height(self) -> float:
        """Metres to the eaves."""
        return 3.0 * self.storeys + 0.8


def row_of_houses(rng: Generator, style: Style, side: int, front: float, end: float) -> list[House]:
    """Houses of one side of the street from far to near, some with gaps between them."""
    houses: list[House] = []
    z = rng.uniform(-6.0, 1.0)
    tall = int(rng.integers(2, 6))
    while z < end:
        length = rng.uniform(7.0, 17.0)
        wall = pick(rng, style.walls, 0.85, 1.1)
        roof = pick(rng, _ROOFS, 0.9, 1.15) if rng.random() < 0.5 else None
        x = side * (abs(front) + rng.choice([0.0, 0.0, 0.4, 1.5]))
        storeys = max(1, tall + int(rng.integers(-1, 2)))
        shop, column = bool(rng.random() < 0.35), rng.uniform(2.0, 3.4)
        houses.append(House(side, x, z, z + length, storeys, wall, roof, shop, column, style.lit_windows))
        z += length + (rng.uniform(3.0, 9.0) if rng.random() < 0.28 else 0.0)
    return houses[::-1]


def draw_house(canvas: Canvas, rng: Generator, house: House) -> None:
    """Paint gable, roof, facade and their openings."""
    x, h, z0, z1 = house.front, house.height, house.near, house.far
    back = x + house.side * 9.0
    if z1 <= NEAR:
        return
    gable = shade(house.wall, 0.8)
    if z0 > NEAR:
        canvas.pane((x, back), (0, h), (z0, z0), gable, BUILDING)
        for storey in range(house.storeys):
            for column in (2.4, 5.6):
                left, low = x + house.side * column, 3.0 * storey + 1.15
                glow, span = _glow(rng, house.lit), (left, left + house.side)
                canvas.pane(span, (low, low + 1.4), (z0, z0), glow or shade(house.wall, 0.45), None, glow)
    if house.roof:
        ridge, top = x + house.side * 4.5, h + 3.2
        canvas.face([(x, h, z0), (ridge, top, z0), (back, h, z0)], gable, BUILDING)
        canvas.face([(x, h, z0), (x, h, z1), (ridge, top, z1), (ridge, top, z0)], house.roof, BUILDING)
    _facade(canvas, rng, house)


def _glow(rng: Generator, lit: float) -> Colour | None:
    return _GLOWS[rng.integers(len(_GLOWS))] if rng.random() < lit else None


def draw_block(canvas: Canvas, rng: Generator, style: Style, x: float, z: float, width: float) -> None:
    """A distant block that faces us and closes the street."""
    storeys = int(rng.integers(3, 9))
    wall = pick(rng, style.walls, 0.75, 0.95)
    canvas.pane((x, x + width), (0, 3.0 * storeys + 1.0), (z, z), wall, BUILDING)
    for column in range(int(width / 3.2)):
        for storey in range(storeys):
            a, low = x + 0.9 + 3.2 * column, 1.0 + 3.0 * storey
            glow = _glow(rng, style.lit_windows)
            canvas.pane((a, a + 1.4), (low, low + 1.6), (z, z), glow or shade(wall, 0.5), None, glow)


def _facade(canvas: Canvas, rng: Generator, house: House) -> None:
    """Wall, plinth and cornice; windows on every storey; a shop front or a door on the ground."""
    plane, along = (house.front, house.front), (house.near, house.far)
    pale = shade(house.wall, 1.18)
    canvas.pane(plane, (0, house.height), along, house.wall, BUILDING)
    canvas.pane(plane, (0.0, 0.5), along, shade(house.wall, 0.65))
    canvas.pane(plane, (3.1, 3.3), along, pale)
    canvas.pane(plane, (house.height - 0.35, house.height), along, pale)
    columns = max(2, round((house.far - house.near - 1.0) / house.column))
    pitch = (house.far - house.near) / columns
    door = int(rng.integers(columns))
    glass = shade((86, 100, 116), rng.uniform(0.75, 1.2))
    frame = shade(house.wall, 1.25 if rng.random() < 0.6 else 0.7)
    if house.shop:
        _shop(canvas, rng, house)
    half = min(0.62, pitch * 0.3)
    for column in range(columns):
        z = house.near + pitch * (column + 0.5)
        if z < NEAR:
            continue
        for storey in range(1 if house.shop else 0, house.storeys):
            if storey == 0 and column == door:
                leaf = shade((92, 62, 44), rng.uniform(0.6, 1.4))
                canvas.pane(plane, (0.0, 2.3), (z - 0.55, z + 0.55), leaf)
                continue
            low = 3.0 * storey + 1.15
            if z < 32:  # thinner than a pixel further away
                canvas.pane(plane, (low - 0.12, low + 1.62), (z - half - 0.12, z + half + 0.12), frame)
            glow = _glow(rng, house.lit)
            glow = shade(glow, rng.uniform(0.5, 1.0)) if glow else None
            tone = shade(glass, rng.uniform(0.7, 1.25))
            canvas.pane(plane, (low, low + 1.5), (z - half, z + half), glow or tone, None, glow)


def _shop(canvas: Canvas, rng: Generator, house: House) -> None:
    """A shop window below a coloured sign."""
    plane, (z0, z1) = (house.front, house.front), (house.near + 0.5, house.far - 0.5)
    sign = any_colour(rng, 40, 215)
    lit = rng.random() < 2.0 * house.lit
    glow = shade((255, 220, 168), rng.uniform(0.35, 0.6)) if lit else None
    canvas.pane(plane, (0.5, 2.5), (z0, z1), glow or (66, 76, 84), None, glow)
    canvas.pane(plane, (2.5, 3.05), (z0, z1), sign, None, shade(sign, 0.6) if lit else None)
    for share in np.linspace(0.0, 1.0, 5):
        z = z0 + share * (z1 - z0)
        canvas.pane(plane, (0.5, 2.5), (z - 0.08, z + 0.08), shade(house.wall, 0.6))
