"""Sections of the data: sources, their order, what is cut from them and how it is changed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from ppar_dist.config.class_file import is_class_file, pinned
from ppar_dist.config.fields import (
    Bytes,
    Count,
    LocationField,
    NonNegative,
    Number,
    PathField,
    Positive,
    Ratio,
    Whole,
)
from ppar_dist.config.section import Section

MAX_SOURCES = 1024  # each has at least one of the 1024 slots that share out positions (``data.order``)


class SourceConfig(Section):
    """One labelled source domain: a folder of shards under ``data.root`` and its sampling weight."""

    name: str  # folder below data.root
    weight: Positive | None = None  # relative share of positions; None: in proportion to its size


class RareClassConfig(Section):
    """Rare-class sampling: a class is drawn, the rarer the likelier, then a sample that has it."""

    enabled: bool = False  # false: every sample once per epoch
    temperature: Positive = 0.01  # of P(c) ∝ exp((1 - frequency) / temperature); larger: more even
    min_pixels: Count = 3000  # of the class in a sample's label, and a half of them in its crop


class CacheConfig(Section):
    """What a node keeps of shards that lie on object storage."""

    folder: PathField | None = (
        None  # on a disk of the node; null: ppar-dist-cache-UID in the temporary folder
    )
    size: Bytes = 50_000_000_000  # bytes, or text as 50 GB; what is needed last goes first
    ahead: Annotated[Whole, Field(ge=0)] = 8  # reads under way per loader process


class DataConfig(Section):
    """Source domains, their order, and the size of what the model sees."""

    root: LocationField  # folder of the sources: a path, or s3://, gs://, https://
    classes: str  # roads6, cityscapes19, cityscapes16, cityscapes13, camvid11, or a YAML file of classes
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]  # names alone are enough
    size: Count = 180  # pixels of the shorter side before random scaling, and at evaluation
    crop: tuple[Count, Count] = (180, 240)  # height, width in pixels
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.1  # last part of each source, never trained on
    block: Count = 16  # consecutive samples that stay together (sequential reads)
    window: Count = 8  # blocks among which samples are permuted
    rare_classes: RareClassConfig = RareClassConfig()
    cache: CacheConfig = CacheConfig()
    workers: Annotated[Whole, Field(ge=0)] = 1  # loader processes per rank
    max_bad_ratio: Ratio = (
        0.01  # of a domain's samples; more bad ones than that, each counted once, end the job
    )

    @field_validator("classes")
    @classmethod
    def _a_file_is_pinned(cls, value: str) -> str:
        return pinned(value) if is_class_file(value) else value

    @field_validator("sources", mode="before")
    @classmethod
    def _names_are_enough(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple({"name": item} if isinstance(item, str) else item for item in value)
        return value

    @model_validator(mode="after")
    def _sources_agree(self) -> DataConfig:
        if len(self.sources) > MAX_SOURCES:
            raise ValueError(
                f"at most {MAX_SOURCES} sources, got {len(self.sources)}; pack some into one domain"
            )
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each source is named once, {twice} are repeated; use weight instead")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise ValueError("give every source a weight, or none (then size decides)")
        return self


class AugmentConfig(Section):
    """Training augmentation; every draw is seeded by position."""

    scale: tuple[Positive, Positive] = (0.75, 1.75)  # range of the random scaling
    flip: Ratio = 0.5  # chance of a horizontal flip
    photometric: Ratio = 0.8  # chance of colour jitter
    brightness: NonNegative = 0.5  # factor drawn from 1 ± this; the next two alike
    contrast: NonNegative = 0.5  # as brightness
    saturation: NonNegative = 0.5  # as brightness
    hue: Annotated[Number, Field(ge=0, le=0.5)] = 0.1  # shift drawn from ± this part of the circle
    grayscale: Ratio = 0.1  # chance of grey
    gamma: tuple[Positive, Positive] | None = (0.5, 2.0)  # drawn log-uniformly; None: off
    blur: Ratio = 0.2  # chance of a Gaussian blur
    random_convolution: Ratio = 0.0  # chance of RandConv, a random 1x1 or 3x3 filter mixed with the image
    style_exchange: Ratio = 0.0  # chance of the colour statistics of an image of another source
    cat_max_ratio: Annotated[Number, Field(gt=0, le=1)] = (
        1.0  # share of a crop's labelled pixels; where one class has more, up to 10 places are tried; 1: off
    )

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentConfig:
        for name in ("scale", "gamma"):
            pair = getattr(self, name)
            if pair is not None and pair[0] > pair[1]:
                raise ValueError(f"{name} is (low, high), got {pair}; swap the two")
        return self
