"""Augmentation and resizing of one sample. All a sample gets depends on (seed, position) alone.

Random numbers come from a generator made for the position; global random state is neither read nor
changed. Geometry comes first, so that colours are changed on the crop and not on the whole picture,
and on Pillow images, whose colour operations cost about half of those on uint8 tensors (CPU, 180x240).

Letters: (H, W) pixels of the stored label, (h, w) pixels of the crop.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ppar_dist.config import AugmentConfig, DataConfig
from ppar_dist.labels import IGNORE_INDEX

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


class TrainTransform:
    """Random scale, crop, flip, colours and blur, seeded by position.

    ``min_side`` is the least shorter side, in pixels, at which an image may be decoded without
    losing detail at the largest scale (see ``decode_pixels``).
    """

    def __init__(self, augment: AugmentConfig, data: DataConfig, seed: int) -> None:
        self.augment, self.data, self.seed = augment, data, seed
        self.min_side = math.ceil(data.size * augment.scale[1])

    def __call__(
        self, image: Image.Image | Tensor, label: LabelArray | Tensor, position: int
    ) -> tuple[Tensor, Tensor]:
        """Augment one sample.

        Args:
            image: RGB, Pillow or uint8 (3, H', W'): the label's size, or that divided by 2, 4 or 8.
            label: uint8 (H, W) train ids.
            position: the sample's place in the order.

        Returns:
            image uint8 (3, h, w) and label uint8 (h, w); label pixels outside the picture are 255.
        """
        draws = Draws.at(self.seed, position)
        picture = F.to_pil_image(image) if isinstance(image, Tensor) else image
        picture, ids = self._crop(picture, np.asarray(label), draws)
        if draws.flip < self.augment.flip:
            picture, ids = F.horizontal_flip(picture), ids[:, ::-1]
        picture = _recolour(picture, self.augment, draws)
        return F.pil_to_tensor(picture), torch.from_numpy(np.array(ids, order="C"))

    def _crop(self, image: Image.Image, label: LabelArray, draws: Draws) -> tuple[Image.Image, LabelArray]:
        low, high = self.augment.scale
        factor = max(1, round(label.shape[1] / image.width))  # label pixels per pixel of the image
        zoom = self.data.size * (low + (high - low) * draws.scale) / min(image.size)
        rows = _window(image.height, self.data.crop[0], zoom, draws.top)
        columns = _window(image.width, self.data.crop[1], zoom, draws.left)
        picture, ids = image, label
        if not (rows.whole(label.shape[0]) and columns.whole(label.shape[1])):
            picture, ids = _resized(image, label, rows, columns, factor)
        if (rows.out, columns.out) == self.data.crop:
            return picture, ids
        return self._pad(picture, ids, rows, columns)

    def _pad(
        self, picture: Image.Image, ids: LabelArray, rows: Window, columns: Window
    ) -> tuple[Image.Image, LabelArray]:
        height, width = self.data.crop
        right = width - columns.offset - columns.out
        bottom = height - rows.offset - rows.out
        picture = F.pad(picture, [columns.offset, rows.offset, right, bottom], fill=_PADDING)
        margins = ((rows.offset, bottom), (columns.offset, right))
        return picture, np.pad(ids, margins, constant_values=IGNORE_INDEX)


def _resized(
    image: Image.Image, label: LabelArray, rows: Window, columns: Window, factor: int
) -> tuple[Image.Image, LabelArray]:
    """Crop and resize both; the label by nearest pixel, from the same part of the scene."""
    picture = F.resized_crop(
        image,
        *(rows.start, columns.start, rows.length, columns.length),
        size=[rows.out, columns.out],
        interpolation=InterpolationMode.BILINEAR,
    )
    part = label[
        rows.start * factor : (rows.start + rows.length) * factor,
        columns.start * factor : (columns.start + columns.length) * factor,
    ]
    size = (columns.out, rows.out)
    return picture, np.asarray(Image.fromarray(part).resize(size, resample=Image.Resampling.NEAREST))


class EvalTransform:
    """Resize an image so that its shorter side has ``size`` pixels; labels stay as they are stored."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 (3, h, w) of an RGB image."""
        resized = F.resize(image, [self.size], interpolation=InterpolationMode.BILINEAR)
        return F.pil_to_tensor(resized)


def _window(extent: int, crop: int, zoom: float, place: float) -> Window:
    """Choose what part of an axis of ``extent`` pixels, zoomed, fills ``crop`` pixels.

    When the zoomed axis is too short all of it is taken, and ``place`` says where in the crop it lies.
    """
    length = max(1, round(crop / zoom))
    if length > extent:
        out = min(crop, max(1, round(extent * zoom)))
        return Window(0, extent, out, int(place * (crop - out + 1)))
    return Window(int(place * (extent - length + 1)), length, crop, 0)


def _recolour(image: Image.Image, cfg: AugmentConfig, draws: Draws) -> Image.Image:
    if draws.photometric < cfg.photometric:
        jitter = [
            (F.adjust_brightness, _factor(cfg.brightness, draws.brightness)),
            (F.adjust_contrast, _factor(cfg.contrast, draws.contrast)),
            (F.adjust_saturation, _factor(cfg.saturation, draws.saturation)),
            (F.adjust_hue, cfg.hue * (2.0 * draws.hue - 1.0)),
        ]
        neutral = (1.0, 1.0, 1.0, 0.0)
        active = [step for step, still in zip(jitter, neutral, strict=True) if step[1] != still]
        turn = int(draws.order * len(active))
        for adjust, amount in active[turn:] + active[:turn]:
            image = adjust(image, amount)
        if cfg.gamma is not None:
            low, high = (math.log(bound) for bound in cfg.gamma)
            image = F.adjust_gamma(image, math.exp(low + (high - low) * draws.gamma))
    if draws.grayscale < cfg.grayscale:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if draws.blur < cfg.blur:
        low, high = _BLUR_SIGMA
        image = image.filter(ImageFilter.GaussianBlur(low + (high - low) * draws.sigma))
    return image


def _factor(strength: float, draw: float) -> float:
    """Uniform in [1 - strength, 1 + strength], never negative."""
    return max(0.0, 1.0 + strength * (2.0 * draw - 1.0))
