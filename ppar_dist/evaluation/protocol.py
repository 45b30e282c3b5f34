"""The protocol of a score: what the model sees of an image, and at which size labels are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ppar_dist.config.evaluation_section import PRESETS, EvaluationConfig
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError

Size = tuple[int, int]  # height, width in pixels


class Slide(NamedTuple):
    """Windows over an image: their size, and the way from one to the next."""

    crop: Size
    stride: Size


class Sizes(NamedTuple):
    """The sizes at which one image is seen, one for each scale, and that of the labels to be compared."""

    images: tuple[Size, ...]
    labels: Size


@dataclass(frozen=True)
class Protocol:
    """How an image becomes labels.

    Args:
        size: pixels of the shorter side; or (height, width) that an image just fits into, lying or standing;
            None: as it is.
        unresized: (height, width) of images that stay as they are.
        slide: windows; None: the whole image at once.
        flip: average with the mirror image.
        scales: factors on the size, whose probabilities are averaged.
        at_test_size: labels are compared at the size that the model sees, not at their own.
    """

    size: int | Size | None
    unresized: tuple[Size, ...] = ()
    slide: Slide | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    at_test_size: bool = False

    def sizes(self, height: int, width: int) -> Sizes:
        """The sizes of an image of ``height`` × ``width`` pixels and of its label."""
        images = tuple(self._size(height, width, scale) for scale in self.scales)
        return Sizes(images, self._size(height, width, 1.0) if self.at_test_size else (height, width))

    def refuse_tiny(self, sizes: Sequence[Size], coarsest: int) -> None:
        """Refuse a scale that leaves of an image less than one cell of the model's coarsest level.

        Args:
            sizes: at which an image is seen, one for each scale.
            coarsest: pixels of that cell.

        Raises:
            UserError: there is such a scale.
        """
        for scale, size in zip(self.scales, sizes, strict=True):
            if scale < 1 and min(size) < coarsest:
                raise UserError(
                    f"at scale {scale:g} an image is seen at {_by(size)}, and the model's coarsest cell is "
                    f"{coarsest} pixels: what it says there is worth nothing; give a larger scale or size"
                )

    def _size(self, height: int, width: int, scale: float) -> Size:
        short, long = sorted((height, width))
        if self.size is None or (height, width) in self.unresized:
            factor = scale
        elif isinstance(self.size, int):
            side = max(1, round(self.size * scale))
            longer = int(side * long / short)
            return (side, longer) if height <= width else (longer, side)
        else:
            low, high = sorted(self.size)
            factor = scale * min(low / short, high / long)
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def __str__(self) -> str:
        """One line; two protocols that differ have different lines."""
        parts = [self._size_text()]
        parts += [f"but {h}x{w} as it is" for h, w in self.unresized]
        windows = self.slide and f"windows {_by(self.slide.crop)} every {_by(self.slide.stride)}"
        parts.append(windows or "whole")
        if self.flip:
            parts.append("flipped too")
        if self.scales != (1.0,):
            parts.append("scales " + " ".join(f"{scale:g}" for scale in self.scales))
        parts.append("labels at test size" if self.at_test_size else "labels at their own size")
        same = (
            name for name in PRESETS if self == of_settings(EvaluationConfig.model_validate({"preset": name}))
        )
        return "".join(f"{name}: " for name in same) + ", ".join(parts)

    def _size_text(self) -> str:
        if self.size is None:
            return "images as they are"
        if isinstance(self.size, int):
            return f"shorter side {self.size}"
        return f"within {_by(self.size)}"


def protocol_of(config: Config) -> Protocol:
    """The protocol that a configuration asks for."""
    return of_settings(config.evaluation, config.data.size)


def held_out_protocol(config: Config) -> Protocol:
    """That of held-out source data: it must not change when a run is scored in another way."""
    return Protocol(config.data.size)


def of_settings(settings: EvaluationConfig, usual: int = 0) -> Protocol:
    """The protocol of a configuration's section.

    Args:
        settings: the section.
        usual: pixels of the shorter side where the section gives no size.
    """
    size = usual if settings.size is None else None if settings.size == "own" else settings.size
    slide = Slide(settings.crop, settings.stride) if settings.mode == "slide" else None
    at_test_size = settings.labels == "test"
    return Protocol(size, settings.unresized, slide, settings.flip, settings.scales, at_test_size)


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
