"""Sections of the method: alignment, prototypes, reweighting and the last fit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ppar_dist.config.fields import Count, Momentum, NonNegative, Number, Positive, Ratio, Whole
from ppar_dist.config.section import Section


class AlignmentConfig(Section):
    """Progressive alignment, easy to difficult."""

    enabled: bool = True  # the alignment losses
    features: Literal["dense", "embedding"] = "dense"  # the encoder's joint features or the decoder's
    boundaries: tuple[Ratio, Ratio, Ratio] = (0.1, 0.3, 0.5)  # progress at which stages 1, 2, 3 begin
    keep_earlier: bool = True  # later stages keep the losses of earlier ones
    temperature: Positive = 0.1  # of the softmax over prototypes
    text_weight: NonNegative = 0.1  # of the loss against text prototypes
    visual_weight: NonNegative = 0.1  # of the loss against visual text prototypes
    pixel_weight: NonNegative = 0.1  # of the loss of single cells
    admit_from: Annotated[Number, Field(gt=0, le=1)] = 0.3  # share of cells, easiest first, as stage 3 begins
    difficulty_bins: Annotated[Whole, Field(ge=2)] = 64  # of the histogram that ranks cells by difficulty

    @model_validator(mode="after")
    def _boundaries_rise(self) -> AlignmentConfig:
        if list(self.boundaries) != sorted(self.boundaries):
            raise ValueError(f"boundaries rise from stage to stage, got {self.boundaries}")
        return self


class BankConfig(Section):
    """The prototype bank."""

    momentum: Momentum = 0.9  # of the moving average
    teacher: Literal["student", "ema", "frozen"] = "student"  # whose features feed the bank
    teacher_every: Count = 1  # steps between passes of the teacher (frozen, ema)
    teacher_momentum: Momentum = 0.99  # of the ema teacher


class VtpConfig(Section):
    """Visual text prototypes; disabled means v_k = t_k everywhere."""

    enabled: bool = True  # false: text prototypes alone
    alpha_max: Ratio = 0.5  # largest share of the visual prototype
    count_0: Positive = 2000.0  # cells of a class after which 63 % of alpha_max is reached


class TrustConfig(Section):
    """Trust in the labels of each source and class, from what the other sources say before the first step."""

    enabled: bool = False  # false: all labels are trusted in full
    images: Count = 48  # of each source that are looked at
    tolerance: Annotated[Number, Field(gt=0, le=1)] = 0.85  # share of the others' agreement that is enough
    gamma: NonNegative = 20.0  # steepness below it: (agreement / enough)^γ


class ReweightingConfig(Section):
    """Reliability weights of source samples."""

    enabled: bool = True  # false: every sample weighs 1, and trust is off; beta=0 keeps it
    start_stage: Annotated[Whole, Field(ge=0, le=3)] = 1  # of alignment
    beta: NonNegative = 1.5  # steepness: exp(β · standardised reliability)
    min: Positive = 0.05  # smallest weight
    max: Positive = 1.5  # largest weight
    min_spread: Positive = 1.0  # nats; floor of σ_r, so that clean sources keep nearly equal weights
    momentum: Momentum = 0.95  # of mean and spread of reliabilities
    trust: TrustConfig = TrustConfig()

    @model_validator(mode="after")
    def _clip_holds_one(self) -> ReweightingConfig:
        if not self.min <= 1.0 <= self.max:
            raise ValueError(f"min <= 1 <= max, got min={self.min}, max={self.max}")
        return self


class PparConfig(Section):
    """The method; ``enabled: false`` is plain fine-tuning with the same model, data and budget."""

    enabled: bool = True  # the whole method
    min_purity: Annotated[Number, Field(gt=0, le=1)] = 0.75  # share of one class in a cell that has a class
    alignment: AlignmentConfig = AlignmentConfig()
    bank: BankConfig = BankConfig()
    vtp: VtpConfig = VtpConfig()
    reweighting: ReweightingConfig = ReweightingConfig()


class RefitConfig(Section):
    """The last stage: what is fitted to the sources' images as they are, without augmentation."""

    linear: bool = False  # fit the linear classifier again
    prototypes: bool = False  # correct a prediction by the prototypes of its image
    images: Count = 48  # of each source
    share: Annotated[Number, Field(ge=0, le=10)] = (
        0.5  # how far prototypes move to those of the image; 1: 7 % of the way
    )
