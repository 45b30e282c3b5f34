"""A random street: ground, houses, trees, lamps, people and cars, painted from far to near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ppar_dist.synthetic.buildings import draw_block, draw_house, row_of_houses
from ppar_dist.synthetic.canvas import (
    END,
    NEAR,
    ROAD,
    SIDEWALK,
    VEGETATION,
    VOID,
    Camera,
    Canvas,
    Colour,
    Point,
    any_colour,
    pick,
    shade,
)
from ppar_dist.synthetic.styles import Style
from ppar_dist.synthetic.vehicles import draw_car, random_car

_MARKING: Colour = (214, 212, 204)
_Thing = tuple[float, Callable[[Canvas], None]]  # distance, painter
_Disc = tuple[Point, float, Colour]  # center, radius, colour


@dataclass(frozen=True)
class Street:
    """Plan of one scene, metres from the camera's axis."""

    left: float  # kerb left of the camera (negative)
    right: float
    pavement: float  # width of each sidewalk
    verge: float  # width of a green strip along the houses, 0 for none
    lanes: int

    @property
    def sides(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """Sign and kerb of either side."""
        return (-1, self.left), (1, self.right)

    @property
    def facade(self) -> float:
        """Distance from a kerb to the houses."""
        return self.pavement + self.verge


def plan(rng: Generator, height: int, width: int) -> tuple[Street, Camera]:
    """A random street and the camera that looks along it; ``height`` × ``width`` canvas pixels."""
    lanes = int(rng.choice([2, 2, 2, 3, 4]))
    parking = rng.uniform(0.0, 2.2)
    breadth = 3.1 * lanes + parking
    own = rng.uniform(0.52, 0.72)  # we drive on the right
    street = Street(
        -breadth * own,
        breadth * (1 - own),
        rng.uniform(1.8, 4.5),
        rng.uniform(1.5, 4.0) if rng.random() < 0.45 else 0.0,
        lanes,
    )
    camera = Camera(
        focal=width * rng.uniform(0.78, 1.05),
        center=width * rng.uniform(0.40, 0.60),
        horizon=height * rng.uniform(0.40, 0.52),
        height=rng.uniform(1.25, 1.75),
        bend=rng.uniform(-6e-4, 6e-4) if rng.random() < 0.6 else 0.0,
    )
    return street, camera


def draw_street(canvas: Canvas, rng: Generator, style: Style, street: Street, wet: bool) -> None:
    """Paint everything but the sky."""
    _backdrop(canvas, rng, style)
    _ground(canvas, rng, style, street)
    if style.sun:
        _cast_shadows(canvas, rng, style, street)
    for side, kerb in street.sides:
        for house in row_of_houses(rng, style, side, kerb + side * street.facade, END - 8):
            draw_house(canvas, rng, house)
    things = [*_plants(rng, style, street), *_lamps(rng, style, street)]
    things += [*_people(rng, street), *_traffic(rng, style, street, wet)]
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint(canvas)


def _backdrop(canvas: Canvas, rng: Generator, style: Style) -> None:
    """Hills of trees and blocks at the end of the street and behind the houses."""
    tone = shade(style.leaves[rng.integers(len(style.leaves))], 0.8)
    for x in np.arange(-150.0, 150.0, rng.uniform(9.0, 16.0)):
        canvas.disc((x, 2.0, END + 45), rng.uniform(9, 17), shade(tone, rng.uniform(0.8, 1.1)), VEGETATION)
    bend = -canvas.camera.bend * (END + 10) ** 2
    x = bend - 80.0
    while x < bend + 80:
        width = rng.uniform(9.0, 24.0)
        if rng.random() < 0.7:
            draw_block(canvas, rng, style, x, END + rng.uniform(0, 20), width)
        x += width + rng.uniform(-2.0, 8.0)


def _ground(canvas: Canvas, rng: Generator, style: Style, street: Street) -> None:
    """Sidewalk, green strips, kerbs, road, its wear and its markings."""
    asphalt = shade(style.asphalt, rng.uniform(0.85, 1.15))
    pavement = shade(style.pavement, rng.uniform(0.88, 1.1))
    canvas.ground((-150, 150), pavement, SIDEWALK)
    for side, kerb in street.sides:
        inner = kerb + side * street.pavement
        _joints(canvas, kerb, inner, shade(pavement, 0.86))
        if street.verge:
            grass = shade(style.leaves[rng.integers(len(style.leaves))], 1.15)
            canvas.ground((inner, inner + side * street.verge), grass, VEGETATION)
        canvas.ground((kerb - side * 0.02, kerb + side * 0.28), shade(pavement, 1.16), SIDEWALK)
        canvas.ground((kerb - side * 0.02, kerb + side * 0.07), shade(pavement, 0.7), SIDEWALK)
    canvas.ground((street.left, street.right), asphalt, ROAD)
    for x in rng.uniform(street.left, street.right, 5):
        canvas.ground((x, x + rng.uniform(0.3, 0.8)), shade(asphalt, rng.uniform(0.92, 1.07)))
    for _ in range(rng.integers(0, 4)):  # repairs
        x, z = rng.uniform(street.left, street.right - 1.2), rng.uniform(3, 25)
        breadth, length = rng.uniform(0.6, 1.2), rng.uniform(1, 4)
        canvas.ground((x, x + breadth), shade(asphalt, 0.82), None, z, z + length)
    _markings(canvas, rng, street)


def _joints(canvas: Canvas, a: float, b: float, colour: Colour) -> None:
    """Seams between the slabs, near enough to be seen."""
    for z in np.arange(NEAR, 22.0, 1.2):
        canvas.face([(a, 0, z), (b, 0, z), (b, 0, z + 0.05), (a, 0, z + 0.05)], colour)
    middle = (a + b) / 2
    canvas.ground((middle - 0.025, middle + 0.025), colour, None, NEAR, 22.0)


def _markings(canvas: Canvas, rng: Generator, street: Street) -> None:
    """Broken lines between lanes, lines at the kerbs, a crossing."""
    paint = shade(_MARKING, rng.uniform(0.8, 1.05))
    breadth = street.right - street.left
    offset = rng.uniform(0, 6)
    for lane in range(1, street.lanes):
        x = street.left + breadth * lane / street.lanes
        for z in np.arange(NEAR + offset, 80.0, 6.0):
            canvas.ground((x - 0.07, x + 0.07), paint, None, z, z + 3.0)
    if rng.random() < 0.5:
        for x in (street.left + 0.25, street.right - 0.25):
            canvas.ground((x - 0.06, x + 0.06), paint)
    if rng.random() < 0.2:
        z = rng.uniform(6, 22)
        for x in np.arange(street.left + 0.3, street.right - 0.4, 1.0):
            canvas.ground((x, x + 0.5), paint, None, z, z + 3.0)


def _cast_shadows(canvas: Canvas, rng: Generator, style: Style, street: Street) -> None:
    """Soft shadows of one row of houses and of the trees, multiplied into the ground."""
    mask = Image.new("L", canvas.picture.size, 255)
    draw = ImageDraw.Draw(mask)
    dark = int(255 * (1 - style.sun * rng.uniform(0.7, 1.1)))
    side, kerb = street.sides[0 if rng.random() < 0.5 else 1]
    facade = kerb + side * street.facade
    z = rng.uniform(-4, 4)
    while z < END:
        length = rng.uniform(6, 16)
        reach = facade - side * rng.uniform(2.0, 9.0)
        far = z + length
        corners = [(facade, 0, z), (reach, 0, z + 1.5), (reach, 0, far + 1.5), (facade, 0, far)]
        outline = canvas.camera.outline(corners)
        if outline:
            draw.polygon(outline, fill=dark)
        z += length + (rng.uniform(2, 8) if rng.random() < 0.4 else 0)
    soft = mask.filter(ImageFilter.BoxBlur(2))
    canvas.attach(ImageChops.multiply(canvas.picture, Image.merge("RGB", (soft, soft, soft))))


def _plants(rng: Generator, style: Style, street: Street) -> list[_Thing]:
    """An avenue, or a few single trees and bushes."""
    things: list[_Thing] = []
    for side, kerb in street.sides:
        density = rng.choice([0.0, 0.3, 0.9])
        spacing, shift = rng.uniform(7, 13), rng.uniform(0, 8)
        for z in map(float, np.arange(4.0 + shift, 95.0, spacing)):
            x = kerb + side * rng.uniform(0.7, max(0.9, street.facade - 0.6))
            if rng.random() < density:
                things.append((z, _tree(rng, style, x, z)))
            elif rng.random() < 0.25:
                things.append((z, _bush(rng, style, kerb + side * (street.facade - 0.5), z)))
    return things


def _blobs(rng: Generator, leaf: Colour, center: Point, size: tuple[float, float], count: int) -> list[_Disc]:
    """Leafy discs around ``center``: the lower ones dark and first, the upper ones lit and last."""
    spread, height = size
    angle, reach = rng.uniform(0, 2 * np.pi, count), 0.88 * np.sqrt(rng.uniform(0, 1, count))
    ys = np.sort(np.sin(angle) * reach)
    xs = np.cos(angle) * reach * np.sqrt(1.0 - 0.5 * ys**2)
    radii = rng.uniform(0.14, 0.34, count) * spread * (1.2 - 0.75 * reach)
    x, y, z = center
    core = (center, 0.72 * min(spread, height), shade(leaf, 0.66))
    return [core] + [
        ((x + dx * spread, y + dy * height, z), float(r), shade(leaf, 0.84 + 0.3 * dy + f))
        for dx, dy, r, f in zip(xs, ys, radii, rng.uniform(-0.14, 0.14, count), strict=True)
    ]


def _bush(rng: Generator, style: Style, x: float, z: float) -> Callable[[Canvas], None]:
    leaf = pick(rng, style.leaves, 0.75, 1.1)
    return partial(_crown, _blobs(rng, leaf, (x, 0.6, z), (rng.uniform(0.7, 1.5), 0.55), 36))


def _tree(rng: Generator, style: Style, x: float, z: float) -> Callable[[Canvas], None]:
    leaf = pick(rng, style.leaves, 0.8, 1.2)
    crown, trunk = rng.uniform(1.3, 2.6), rng.uniform(2.0, 3.2)
    tall = crown * rng.uniform(0.9, 1.5)
    count = 90 if z < 18 else 45 if z < 40 else 20
    blobs = _blobs(rng, leaf, (x, trunk + tall * 0.75, z), (crown, tall), count)
    bark = shade((88, 70, 54), rng.uniform(0.8, 1.2))
    thick = rng.uniform(0.12, 0.22)

    def paint(canvas: Canvas) -> None:
        canvas.post(x, (0, trunk + tall * 0.4), z, (thick, thick * 0.7), bark, VEGETATION)
        _crown(blobs, canvas)

    return paint


def _crown(blobs: list[_Disc], canvas: Canvas) -> None:
    for center, radius, colour in blobs:
        canvas.disc(center, radius, colour, VEGETATION)


def _lamps(rng: Generator, style: Style, street: Street) -> list[_Thing]:
    """Street lamps; no class of the set holds a pole, so their label is ignored."""
    things: list[_Thing] = []
    glow: Colour | None = (255, 214, 150) if style.lamps else None
    for side, kerb in street.sides:
        if rng.random() < 0.4:
            continue
        for z in map(float, np.arange(rng.uniform(6, 18), 90.0, rng.uniform(18, 26))):
            things.append((z, partial(_lamp, kerb + side * 0.5, z, -side * 1.1, glow)))
    return things


def _lamp(x: float, z: float, arm: float, glow: Colour | None, canvas: Canvas) -> None:
    grey: Colour = (84, 86, 90)
    canvas.post(x, (0, 6.0), z, (0.07, 0.05), grey, VOID)
    canvas.face([(x, 5.9, z), (x + arm, 6.1, z), (x + arm, 6.2, z), (x, 6.05, z)], grey, VOID)
    canvas.disc((x + arm, 6.05, z), 0.22, glow or (206, 206, 200), VOID, glow, flat=0.6)


def _people(rng: Generator, street: Street) -> list[_Thing]:
    """Walkers on the sidewalks; no class of the set holds them, so their label is ignored."""
    things: list[_Thing] = []
    for _ in range(rng.poisson(1.6)):
        side, kerb = street.sides[0 if rng.random() < 0.5 else 1]
        x, z = kerb + side * rng.uniform(0.5, street.pavement - 0.3), rng.uniform(5, 35)
        coat = any_colour(rng, 25, 190)
        things.append((z, partial(_walker, x, z, rng.uniform(0.92, 1.08), coat)))
    return things


def _walker(x: float, z: float, size: float, coat: Colour, canvas: Canvas) -> None:
    for step in (-0.11, 0.11):
        canvas.pane((x + step - 0.07, x + step + 0.07), (0, 0.9 * size), (z, z), (44, 46, 60), VOID)
    canvas.post(x, (0.8, 1.45 * size), z, (0.2, 0.24), coat, VOID)
    canvas.disc((x, 1.6 * size, z), 0.12, (196, 154, 130), VOID, flat=1.2)


def _traffic(rng: Generator, style: Style, street: Street, wet: bool) -> list[_Thing]:
    """Cars in the lanes and parked at the kerbs, with room between them."""
    things: list[_Thing] = []
    asphalt = shade(style.asphalt, 0.7 if wet else 1.0)
    own = max(street.right - 1.6 - (2.0 if street.right > 4.4 else 0.0), 0.0)
    lanes = [(own, True, 7.0, 0.5, False), (street.left + 2.9, False, 6.0, 0.6, False)]
    lanes += [(street.left + 0.95, False, 3.5, 0.7, True), (street.right - 0.95, True, 4.0, 0.6, True)]
    for x, away, start, share, parked in lanes:
        if rng.random() > share:
            continue
        z = start + rng.uniform(0, 9)
        while z < 75:
            car = random_car(rng, x + rng.uniform(-0.2, 0.2), z, away, style.lamps and not parked)
            things.append((z, partial(draw_car, car=car, asphalt=asphalt)))
            z += car.length + (rng.uniform(0.8, 7.0) if parked else rng.uniform(7, 40))
    return things
