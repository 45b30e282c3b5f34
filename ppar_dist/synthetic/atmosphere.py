"""Sky, light, weather and the camera's own look. Images are (H, W, 3) float32 in 0..1."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ppar_dist.synthetic.canvas import (
    BUILDING,
    CAR,
    ROAD,
    SIDEWALK,
    SKY,
    SUPERSAMPLE,
    VEGETATION,
    Camera,
    Canvas,
    Float,
)
from ppar_dist.synthetic.styles import Style

_GRAIN = np.zeros(256, np.float32)  # relative roughness of the surfaces of each class
_GRAIN[[ROAD, SIDEWALK, BUILDING, VEGETATION, CAR]] = (0.07, 0.06, 0.05, 0.22, 0.02)


def clouds(rng: Generator, height: int, width: int) -> Float:
    """Smooth random field (H, W) in 0..1, stretched sideways like clouds."""
    total = np.zeros((height, width), np.float32)
    for cells, share in ((3, 0.45), (7, 0.3), (16, 0.25)):
        coarse = Image.fromarray(rng.random((2 * cells, cells)).astype(np.float32))
        total += share * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    result: Float = np.clip((total - 0.25) * 2.0, 0.0, 1.0)
    return result


def paint_sky(canvas: Canvas, rng: Generator, style: Style) -> None:
    """Fill the picture with a sky; everything else is painted over it."""
    height, width = canvas.height // 4, canvas.width // 4
    ramp = np.clip(np.arange(height, dtype=np.float32) * 4 / max(canvas.camera.horizon, 1.0), 0, 1)
    ramp = ramp[:, None, None] ** rng.uniform(0.8, 1.6)
    top, low = np.array(style.sky_top, np.float32), np.array(style.sky_low, np.float32)
    sky = (top * (1 - ramp) + low * ramp) * np.float32(rng.uniform(0.92, 1.06))
    sky = np.broadcast_to(sky, (height, width, 3))
    cover = np.clip((clouds(rng, height, width) - (1 - style.clouds)) * 2.5, 0, 0.9)[:, :, None]
    sky = sky * (1 - cover) + np.array(style.cloud_colour, np.float32) * cover
    small = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    canvas.attach(small.resize((canvas.width, canvas.height), Image.Resampling.BILINEAR))


def surface(rng: Generator, image: Float, label: NDArray[np.uint8]) -> Float:
    """Roughness of asphalt, walls and leaves."""
    height, width = label.shape
    fine = rng.standard_normal((height, width), np.float32)
    patch = Image.fromarray(rng.standard_normal((height // 6 + 1, width // 6 + 1), np.float32))
    coarse = np.asarray(patch.resize((width, height), Image.Resampling.BICUBIC))
    grain = _GRAIN[label]
    return image * (1.0 + grain * (0.75 * fine + 0.6 * coarse))[:, :, None]


def illuminate(
    image: Float, label: NDArray[np.uint8], distance: Float, camera: Camera, style: Style
) -> Float:
    """Tint by daylight; after dark add our own headlights and the pools below the lamps."""
    light = np.broadcast_to(np.array(style.light, np.float32), image.shape)
    if style.lamps and min(style.light) < 0.6:
        width = label.shape[1]
        columns = np.arange(width, dtype=np.float32)[None, :] * SUPERSAMPLE - camera.center
        aside = columns / camera.focal * distance  # metres from the axis
        beam = (
            np.exp(-((aside / (2.0 + 0.22 * distance)) ** 2))
            * np.clip(distance / 5, 0.3, 1)
            / (1 + (distance / 16) ** 2)
        )
        pools = 0.5 + 0.5 * np.cos(2 * np.pi * (distance + 3) / 22)
        pools = pools * np.exp(-distance / 60)
        near_ground = np.where((label == SKY)[:, :, None], 0.0, 1.0)
        street_light = np.array((1.0, 0.82, 0.56), np.float32) * (0.34 * pools[:, :, None] + 0.07)
        headlights = np.array((1.0, 0.96, 0.86), np.float32) * (0.5 * beam[:, :, None])
        light = light + near_ground * (street_light + headlights)
    return np.where((label == SKY)[:, :, None], image, image * light).astype(np.float32)


def wet_road(image: Float, label: NDArray[np.uint8], camera: Camera) -> Float:
    """Darken the road and mirror in it what stands above the horizon."""
    height = label.shape[0]
    rows = np.arange(height)
    mirrored = np.clip((2 * camera.horizon / SUPERSAMPLE - rows).astype(int), 0, height - 1)
    blurred = _blur(image, 2.5)[mirrored]
    share = np.where(label == ROAD, 0.32, np.where(label == SIDEWALK, 0.12, 0.0))[:, :, None]
    result: Float = (image * (1 - 0.25 * (share > 0)) * (1 - share) + blurred * share).astype(np.float32)
    return result


def veil(image: Float, distance: Float, length: float, colour: tuple[int, int, int]) -> Float:
    """Fog: contrast falls as exp(−distance / length), metres."""
    through = np.exp(-distance / np.float32(length))[:, :, None]
    result: Float = image * through + np.array(colour, np.float32) / 255 * (1 - through)
    return result


def bloom(image: Float, light: Float, strength: float) -> Float:
    """Lamps and windows shine by themselves, with a halo."""
    halo = 0.8 * _blur(light, 1.5) + 1.8 * _blur(light, 8.0)
    return np.maximum(image, light) + strength * halo


def streaks(rng: Generator, image: Float) -> Float:
    """Slanted streaks of rain."""
    height, width = image.shape[:2]
    layer = Image.new("L", (width, height))
    draw = ImageDraw.Draw(layer)
    slant = rng.uniform(-0.25, 0.25)
    for _ in range(int(rng.uniform(0.6, 1.4) * width)):
        x, y, length = rng.uniform(0, width), rng.uniform(-8, height), rng.uniform(5, 16)
        draw.line((x, y, x + slant * length, y + length), fill=int(rng.uniform(50, 130)))
    alpha = np.asarray(layer.filter(ImageFilter.BoxBlur(0.4)), np.float32)[:, :, None] / 255
    tone = np.minimum(image.mean() * 1.25 + 0.08, 1.0)
    result: Float = image * (1 - alpha) + tone * alpha
    return result


def develop(rng: Generator, image: Float, style: Style) -> NDArray[np.uint8]:
    """The camera: exposure, saturation, contrast, vignette and noise; (H, W, 3) uint8."""
    height, width = image.shape[:2]
    image = image * rng.uniform(0.9, 1.1)
    grey = image @ np.array((0.299, 0.587, 0.114), np.float32)
    image = grey[:, :, None] + (image - grey[:, :, None]) * style.saturation * rng.uniform(0.9, 1.1)
    image = (image - 0.45) * style.contrast + 0.45
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    u = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    image = image * (1 - 0.1 * (u * u + v * v))[:, :, None]
    noise = rng.standard_normal(image.shape, np.float32) * style.noise
    result: NDArray[np.uint8] = np.clip((image + noise) * 255, 0, 255).astype(np.uint8)
    return result


def _blur(image: Float, radius: float) -> Float:
    """Gaussian blur of a (H, W, 3) image in 0..1."""
    raw = Image.fromarray(np.clip(image * 255, 0, 255).astype(np.uint8))
    return np.asarray(raw.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
