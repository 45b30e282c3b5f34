"""Looks of the synthetic domains: light, weather, materials and camera grading.

Streets are planned from the same distribution in every style: domains differ in appearance alone.
"""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]
Range = tuple[float, float]

BRICK: tuple[Colour, ...] = ((150, 84, 66), (168, 104, 80), (128, 74, 62), (182, 140, 110))
PLASTER: tuple[Colour, ...] = (
    *((222, 206, 176), (206, 190, 190), (232, 224, 204)),
    *((198, 176, 138), (180, 190, 196)),
)
CONCRETE: tuple[Colour, ...] = ((158, 156, 150), (136, 138, 142), (176, 172, 164), (120, 116, 112))

SUMMER: tuple[Colour, ...] = ((66, 104, 44), (84, 122, 54), (56, 92, 50), (98, 128, 58))
AUTUMN: tuple[Colour, ...] = ((122, 112, 52), (146, 104, 44), (92, 104, 54), (132, 86, 44))


@dataclass(frozen=True)
class Style:
    """Appearance of one domain; colours are sRGB 0..255, distances metres, ratios 0..1."""

    sky_top: Colour
    sky_low: Colour  # at the horizon
    light: tuple[float, float, float]  # factor on every surface colour
    clouds: float = 0.3  # covered share of the sky
    cloud_colour: Colour = (244, 244, 246)
    sun: float = 0.0  # depth of cast shadows
    fog: Range | None = None  # distance at which 63 % of the contrast is lost, drawn per scene
    fog_colour: Colour = (200, 204, 208)
    rain: float = 0.0  # share of scenes with rain streaks and a wet road
    lit_windows: float = 0.0  # share of windows with a light behind them
    lamps: bool = False  # street lamps, headlights and tail lights are on
    walls: tuple[Colour, ...] = BRICK + PLASTER
    leaves: tuple[Colour, ...] = SUMMER
    asphalt: Colour = (98, 98, 102)
    pavement: Colour = (158, 152, 146)
    saturation: float = 1.0
    contrast: float = 1.0
    noise: float = 0.012  # standard deviation of the sensor noise, of full scale


STYLES: dict[str, Style] = {
    "synth_day": Style(
        sky_top=(88, 142, 214),
        sky_low=(196, 218, 238),
        light=(1.08, 1.04, 0.96),
        sun=0.5,
        saturation=1.15,
        contrast=1.08,
    ),
    "synth_overcast": Style(
        sky_top=(164, 170, 178),
        sky_low=(206, 208, 208),
        light=(0.80, 0.83, 0.87),
        clouds=0.8,
        cloud_colour=(190, 194, 200),
        fog=(120.0, 260.0),
        fog_colour=(190, 194, 198),
        rain=0.5,
        lit_windows=0.06,
        walls=CONCRETE + PLASTER,
        leaves=SUMMER + AUTUMN[:1],
        asphalt=(78, 80, 84),
        pavement=(136, 134, 132),
        saturation=0.75,
        noise=0.018,
    ),
    "synth_fog": Style(
        sky_top=(186, 186, 184),
        sky_low=(206, 202, 194),
        light=(0.92, 0.88, 0.80),
        clouds=0.0,
        fog=(22.0, 55.0),
        fog_colour=(206, 202, 194),
        lit_windows=0.12,
        lamps=True,
        walls=BRICK + CONCRETE,
        leaves=AUTUMN,
        asphalt=(92, 90, 86),
        pavement=(150, 142, 130),
        saturation=0.7,
        contrast=0.95,
        noise=0.015,
    ),
    "synth_night": Style(
        sky_top=(16, 20, 38),
        sky_low=(54, 48, 56),
        light=(0.21, 0.22, 0.29),
        clouds=0.4,
        cloud_colour=(40, 40, 52),
        rain=0.2,
        lit_windows=0.35,
        lamps=True,
        walls=BRICK + PLASTER + CONCRETE,
        asphalt=(86, 86, 92),
        saturation=0.95,
        contrast=1.05,
        noise=0.03,
    ),
}
"""By the name of its domain: three sources, and the target that is left for evaluation, last."""

DOMAINS = tuple(STYLES)
TARGET_DOMAIN = DOMAINS[-1]
