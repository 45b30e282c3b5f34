"""Augmentation and resizing of one sample. All a sample gets depends on (seed, position) alone.

Random numbers come from a generator made for the position; global random state is neither read nor
changed. Geometry is done here, on uint8 tensors; of colours and blur only their numbers are settled, which
the device applies (see ``colours``).

Letters: (H, W) pixels of the stored label, (h, w) pixels of the crop.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.config.data_section import AugmentConfig, DataConfig
from ppar_dist.data import colours
from ppar_dist.data.colours import Colours

_STREAM = 0x41554731  # keeps these draws apart from other uses of the seed
_PADDING = [123, 117, 104]  # the mean colour, near zero once normalised
_BLUR_SIGMA = (0.3, 1.5)  # pixels of the crop

LabelArray = npt.NDArray[np.uint8]


class Draws(NamedTuple):
    """Uniform numbers in [0, 1), one per decision: what is off does not shift the others."""

    scale: float
    top: float
    left: float
    flip: float
    photometric: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    gamma: float
    grayscale: float
    blur: float
    sigma: float
    order: float

    @classmethod
    def at(cls, seed: int, position: int) -> Draws:
        """The numbers of a position."""
        entropy = (seed % (1 << 64), position, _STREAM)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        return cls(*rng.random(len(cls._fields)).tolist())


class Window(NamedTuple):
    """One axis of a crop: input pixels [start, start+length) become ``out`` pixels, from ``offset`` on."""

    start: int
    length: int
    out: int
    offset: int

    def whole(self, extent: int) -> bool:
        """True when an axis of ``extent`` pixels is taken as it is."""
        return self.length == self.out == extent


class Crop(NamedTuple):
    """An augmented sample, but for its colours."""

    image: Tensor  # uint8 (3, h, w), channels last in memory
    label: Tensor  # uint8 (h, w); pixels outside the picture are 255
    colours: Colours  # what is still to happen to the image


class TrainTransform:
    """Random scale, crop, flip, colours and blur, seeded by position.

    ``min_side`` is the least shorter side, in pixels, at which an image may be decoded without
    losing detail at the largest scale (see ``decode_pixels``).
    """

    def __init__(self, augment: AugmentConfig, data: DataConfig, seed: int) -> None:
        self.augment, self.data, self.seed = augment, data, seed
        self.min_side = math.ceil(data.size * augment.scale[1])

    def __call__(self, image: Tensor | Image.Image, label: LabelArray | Tensor, position: int) -> Crop:
        """Augment one sample.

        Args:
            image: RGB, uint8 (3, H', W') or Pillow: the label's size, or that divided by 2, 4 or 8.
            label: uint8 (H, W) train ids.
            position: the sample's place in the order.
        """
        draws = Draws.at(self.seed, position)
        picture = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
        picture, ids = self._crop(picture, np.asarray(label), draws)
        if draws.flip < self.augment.flip:
            picture, ids = F.horizontal_flip(picture), ids[:, ::-1]
        ids = np.array(ids, order="C")
        return Crop(picture, torch.from_numpy(ids), _drawn_colours(picture, self.augment, draws))

    def _crop(self, image: Tensor, label: LabelArray, draws: Draws) -> tuple[Tensor, LabelArray]:
        low, high = self.augment.scale
        height, width = image.shape[1:]
        factor = max(1, round(label.shape[1] / width))  # label pixels per pixel of the image
        zoom = self.data.size * (low + (high - low) * draws.scale) / min(height, width)
        rows = _window(height, self.data.crop[0], zoom, draws.top)
        columns = _window(width, self.data.crop[1], zoom, draws.left)
        picture, ids = image, label
        if not (rows.whole(label.shape[0]) and columns.whole(label.shape[1])):
            picture, ids = _resized(image, label, rows, columns, factor)
        if (rows.out, columns.out) == self.data.crop:
            return picture, ids
        return self._pad(picture, ids, rows, columns)

    def _pad(
        self, picture: Tensor, ids: LabelArray, rows: Window, columns: Window
    ) -> tuple[Tensor, LabelArray]:
        height, width = self.data.crop
        right = width - columns.offset - columns.out
        bottom = height - rows.offset - rows.out
        canvas = torch.tensor(_PADDING, dtype=torch.uint8).expand(height, width, 3).contiguous()
        inner = canvas[rows.offset : height - bottom, columns.offset : width - right]
        inner.copy_(picture.permute(1, 2, 0))
        margins = ((rows.offset, bottom), (columns.offset, right))
        return canvas.permute(2, 0, 1), np.pad(ids, margins, constant_values=IGNORE_INDEX)


def _resized(
    image: Tensor, label: LabelArray, rows: Window, columns: Window, factor: int
) -> tuple[Tensor, LabelArray]:
    """Crop and resize both; the label by nearest pixel, from the same part of the scene."""
    picture = image[:, rows.start : rows.start + rows.length, columns.start : columns.start + columns.length]
    # A part in one piece is resized a quarter faster, and stays channels last.
    picture = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    size = [rows.out, columns.out]
    picture = F.resize(picture, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    part = label[
        rows.start * factor : (rows.start + rows.length) * factor,
        columns.start * factor : (columns.start + columns.length) * factor,
    ]
    ids = Image.fromarray(part).resize((columns.out, rows.out), resample=Image.Resampling.NEAREST)
    return picture, np.asarray(ids)


class EvalTransform:
    """Resize an image so that its shorter side has ``size`` pixels; labels stay as they are stored."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor | Image.Image) -> Tensor:
        """uint8 (3, h, w) of an RGB image, uint8 (3, H, W) or Pillow."""
        picture: Tensor = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
        picture = F.resize(picture, [self.size], interpolation=InterpolationMode.BILINEAR, antialias=True)
        return picture


def _window(extent: int, crop: int, zoom: float, place: float) -> Window:
    """Choose what part of an axis of ``extent`` pixels, zoomed, fills ``crop`` pixels.

    When the zoomed axis is too short all of it is taken, and ``place`` says where in the crop it is.
    """
    length = max(1, round(crop / zoom))
    if length > extent:
        out = min(crop, max(1, round(extent * zoom)))
        return Window(0, extent, out, int(place * (crop - out + 1)))
    return Window(int(place * (extent - length + 1)), length, crop, 0)


def _drawn_colours(crop: Tensor, cfg: AugmentConfig, draws: Draws) -> Colours:
    """Colours and blur of a crop, uint8 (3, h, w)."""
    steps: list[colours.Step] = []
    gamma, sigma = 1.0, 0.0
    if draws.photometric < cfg.photometric:
        steps += _jitter(cfg, draws)
        if cfg.gamma is not None:
            low, high = (math.log(bound) for bound in cfg.gamma)
            gamma = math.exp(low + (high - low) * draws.gamma)
    if draws.grayscale < cfg.grayscale:
        steps.append(colours.saturation(0.0))
    if draws.blur < cfg.blur:
        sigma = _BLUR_SIGMA[0] + (_BLUR_SIGMA[1] - _BLUR_SIGMA[0]) * draws.sigma
    return Colours(colours.composed(steps, crop), gamma, sigma)


def _jitter(cfg: AugmentConfig, draws: Draws) -> list[colours.Step]:
    """Brightness, contrast, saturation and hue, beginning with any of them."""
    steps = [
        (cfg.brightness, colours.brightness(_factor(cfg.brightness, draws.brightness))),
        (cfg.contrast, colours.contrast(_factor(cfg.contrast, draws.contrast))),
        (cfg.saturation, colours.saturation(_factor(cfg.saturation, draws.saturation))),
        (cfg.hue, colours.hue(cfg.hue * (2.0 * draws.hue - 1.0))),
    ]
    active = [step for strength, step in steps if strength]
    turn = int(draws.order * len(active))
    return active[turn:] + active[:turn]


def _factor(strength: float, draw: float) -> float:
    """Uniform in [1 - strength, 1 + strength], never negative."""
    return max(0.0, 1.0 + strength * (2.0 * draw - 1.0))
