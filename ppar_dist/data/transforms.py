"""Augmentation and resizing of one sample. All a sample gets depends on (seed, position) alone.

Random numbers come from a generator made for the position; global random state is neither read nor
changed. Geometry is done here, on uint8 tensors; of colours and blur only their numbers are settled, which
the device applies (see ``colours``).

Letters: (H, W) pixels of the stored label, (h, w) pixels of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from ppar_dist.data.style import StyleBank, exchange, statistics

_STREAM = 0x41554731  # keeps these draws apart from other uses of the seed
_PLACES = 0x43524F50  # stream of the further places of a crop
_STYLE = 0x5354594C  # stream of the random convolution
_EXCHANGE = 0x45584348  # stream of the exchange of style
_TRIES = 10  # places of a crop, as in mmsegmentation's RandomCrop
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
        return cls(*_generator(seed, position, _STREAM).random(len(cls._fields)).tolist())


def _generator(seed: int, position: int, stream: int) -> np.random.Generator:
    entropy = (seed % (1 << 64), position, stream)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


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
    losing detail at the largest scale (see ``decode_pixels``). ``styles`` are those that images take, with
    ``augment.style_exchange``.
    """

    def __init__(
        self, augment: AugmentConfig, data: DataConfig, seed: int, styles: StyleBank | None = None
    ) -> None:
        assert styles is not None or not augment.style_exchange, "styles are exchanged with a bank of them"
        self.augment, self.data, self.seed, self.styles = augment, data, seed, styles
        self.min_side = decoded_side(augment, data)

    def __call__(
        self,
        image: Tensor | Image.Image,
        label: LabelArray | Tensor,
        position: int,
        rare: int | None = None,
        source: int = 0,
    ) -> Crop:
        """Augment one sample.

        Args:
            image: RGB, uint8 (3, H', W') or Pillow: the label's size, or that divided by 2, 4 or 8.
            label: uint8 (H, W) train ids.
            position: the sample's place in the order.
            rare: the class that the sample was drawn for; a crop that has it is looked for.
            source: number of the sample's domain, which takes the styles of the others.
        """
        draws = Draws.at(self.seed, position)
        picture = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
        style = self._style(picture, position, source)
        picture, ids = self._crop(
            picture, np.asarray(label), self._places(draws, position, rare), draws, rare
        )
        if draws.flip < self.augment.flip:
            picture, ids = F.horizontal_flip(picture), ids[:, ::-1]
        ids = np.array(ids, order="C")
        drawn = _drawn_colours(picture, self.augment, draws, style)
        if self.augment.random_convolution:
            rng = _generator(self.seed, position, _STYLE)
            if rng.random() < self.augment.random_convolution:
                drawn = drawn._replace(kernel=colours.random_kernel(rng))
        return Crop(picture, torch.from_numpy(ids), drawn)

    def _style(self, picture: Tensor, position: int, source: int) -> list[colours.Step]:
        """What gives a whole picture the statistics drawn for a position; none where none are drawn."""
        if not self.augment.style_exchange:
            return []
        rng = _generator(self.seed, position, _EXCHANGE)
        if rng.random() >= self.augment.style_exchange:
            return []
        assert self.styles is not None
        return [exchange(statistics(picture), self.styles.draw(rng, source))]

    def _crop(
        self,
        image: Tensor,
        label: LabelArray,
        places: Sequence[tuple[float, float]],
        draws: Draws,
        rare: int | None,
    ) -> tuple[Tensor, LabelArray]:
        low, high = self.augment.scale
        height, width = image.shape[1:]
        factor = max(1, round(label.shape[1] / width))  # label pixels per pixel of the image
        zoom = self.data.size * (low + (high - low) * draws.scale) / min(height, width)
        for top, left in places:
            rows = _window(height, self.data.crop[0], zoom, top)
            columns = _window(width, self.data.crop[1], zoom, left)
            whole = rows.whole(label.shape[0]) and columns.whole(label.shape[1])
            ids = label if whole else _resized_label(label, rows, columns, factor)
            if _varied(ids, self.augment.cat_max_ratio) and self._has(ids, rare):
                break
        picture = image if whole else _resized_picture(image, rows, columns)
        if (rows.out, columns.out) == self.data.crop:
            return picture, ids
        return self._pad(picture, ids, rows, columns)

    def _has(self, ids: LabelArray, rare: int | None) -> bool:
        """Whether a crop has enough of a class: DAFormer's rule, half of what the sample must have."""
        return rare is None or 2 * int(np.count_nonzero(ids == rare)) >= self.data.rare_classes.min_pixels

    def _places(self, draws: Draws, position: int, rare: int | None) -> list[tuple[float, float]]:
        """Where a crop may be, in the order of the tries; the first is the same whatever the limit."""
        places = [(draws.top, draws.left)]
        if self.augment.cat_max_ratio < 1.0 or rare is not None:
            more = _generator(self.seed, position, _PLACES).random((_TRIES - 1, 2)).tolist()
            places += [(top, left) for top, left in more]
        return places

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


def _varied(ids: LabelArray, limit: float) -> bool:
    """True when no class has more than ``limit`` of the labelled pixels, and there are some; 1 takes any.

    The rule of mmsegmentation's ``RandomCrop(cat_max_ratio)``.
    """
    if limit >= 1.0:
        return True
    counts = np.bincount(ids.ravel(), minlength=256)[:IGNORE_INDEX]
    return bool(0 < counts.max() <= limit * counts.sum())


def _resized_picture(image: Tensor, rows: Window, columns: Window) -> Tensor:
    """Crop and resize an image."""
    picture = image[:, rows.start : rows.start + rows.length, columns.start : columns.start + columns.length]
    # A part in one piece is resized a quarter faster, and stays channels last.
    picture = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    size = [rows.out, columns.out]
    resized: Tensor = F.resize(picture, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


def _resized_label(label: LabelArray, rows: Window, columns: Window, factor: int) -> LabelArray:
    """Crop and resize a label by nearest pixel, from the same part of the scene as the image."""
    part = label[
        rows.start * factor : (rows.start + rows.length) * factor,
        columns.start * factor : (columns.start + columns.length) * factor,
    ]
    ids = Image.fromarray(part).resize((columns.out, rows.out), resample=Image.Resampling.NEAREST)
    return np.asarray(ids)


def decoded_side(augment: AugmentConfig, data: DataConfig) -> int:
    """The least shorter side, in pixels, at which an image may be decoded for training."""
    return math.ceil(data.size * augment.scale[1])


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


def _drawn_colours(crop: Tensor, cfg: AugmentConfig, draws: Draws, style: list[colours.Step]) -> Colours:
    """Colours and blur of a crop, uint8 (3, h, w), from its style on."""
    steps = list(style)
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
